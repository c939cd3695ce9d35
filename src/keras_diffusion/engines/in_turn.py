"""Turns stored kernels into those to compute with in turn, each when its layer needs it.

A compiler would otherwise begin with the kernels of all layers, which depend on nothing, and keep them all in memory.
"""

from keras import ops

from keras_diffusion.architectures import STORED
from keras_diffusion.networks import operations


def kernel_after(x, layer):
    """Returns the kernel of a layer of a policy in `STORED`, computed after x.

    It is the stored one for every finite x, which no compiler knows.
    """
    inside = tuple((side or 0) // 2 for side in x.shape)  # a compiler knows what is padded
    finite = x[inside] != float("inf")
    stored = ops.convert_to_tensor(layer.stored)
    return layer.expand(ops.where(finite, stored, ops.zeros((), stored.dtype)))


def project(layer, x):
    """Computes `operations.project`."""
    if layer.dtype_policy.name not in STORED:
        return operations.project(layer, x)
    return _biased(layer, ops.matmul(x, kernel_after(x, layer)))


def convolve(layer, x):
    """Computes `operations.convolve`."""
    if layer.dtype_policy.name not in STORED:
        return operations.convolve(layer, x)
    return _biased(layer, layer.convolution_op(x, kernel_after(x, layer)))


def _biased(layer, x):
    return ops.add(x, layer.bias) if layer.use_bias else x
