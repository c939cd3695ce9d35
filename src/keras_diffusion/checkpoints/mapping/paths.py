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
    variables = {variable.path: variable for variable in network.variables}
    for path in variables:
        *layers, leaf = path.split("/")
        if leaf in LEAVES:
            stored, layout = LEAVES[leaf]
            layout = "pointwise" if leaf == "kernel" and len(variables[path].shape) == 2 else layout
            name = ".".join([*(PLACE.sub(".", layer) for layer in layers), stored])
            found.append(Target.of(variables, path, name, layout))
    return found
