"""Computes blocks again in the backward pass instead of keeping what is inside (Chen et al. 2016, arXiv:1604.06174)."""

import keras

from keras_diffusion.networks.operations import operation


def rematerialized(applied, tensors, outside):
    """Makes an operation "block" that keeps the inputs of blocks alone for the backward pass.

    Args:
        applied: The `Learner.applied` of what is trained.
        tensors: What it takes, a dict from ids of kernels. TensorFlow knows of no tensors that a function takes from
            around it, so each block gets its own as inputs.
        outside: The `contextvars.Context` to compute in again, when the replaced operations are no longer in force.

    Returns:
        A function of a layer and its inputs, see `operations.block`.
    """
    usual = operation("block")

    def block(layer, *inputs):
        given = [x for x in inputs if x is not None]
        own = {id(v): tensors[id(v)] for v in layer.variables if id(v) in tensors}

        def compute(*flat):
            with applied(keras.tree.pack_sequence_as(own, flat[len(given) :])):
                return usual(layer, *flat[: len(given)])

        def again(*flat):
            return outside.copy().run(compute, *flat)

        return keras.remat(again)(*given, *keras.tree.flatten(own))

    return block
