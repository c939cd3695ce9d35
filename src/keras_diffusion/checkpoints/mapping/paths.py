"""Names the tensors of networks whose layers are called as their checkpoints call them."""

import re

from keras_diffusion.checkpoints.mapping.loading import Target

LEAVES = {"kernel": ("weight", "conv"), "bias": ("bias", "same"), "alpha": ("weight", "same")}  # → stored name, layout
PLACE = re.compile(r"_(?=\d)")


def targets_by_path(network):
    """Pairs the variables of a network with tensors: that of "layers_3/conv_0/kernel" is layers.3.conv.0.weight.

    Returns:
        A list of `Target`.
    """
    found = []
    for variable in network.variables:
        *layers, leaf = variable.path.split("/")
        stored, layout = LEAVES[leaf]
        found.append(Target(variable, ".".join([*(PLACE.sub(".", layer) for layer in layers), stored]), layout))
    return found
