"""Arrays whose memory becomes a tensor's: what is as large as a model is not copied for being handed over."""

import ctypes
import math
import os
import sys

import numpy as np

ALIGNMENT = 64  # bytes; a backend takes no array that begins elsewhere than at a multiple


class Gift:
    """An array that nobody else has: `keras.ops.convert_to_tensor` may take its memory instead of a copy.

    TensorFlow and torch do; JAX copies.

    Args:
        array: An array from `aligned`, of which no other reference is kept.
    """

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def aligned(allocate, shape, dtype):
    """Makes an array for a `Gift`.

    Args:
        allocate: `np.empty`, or `np.zeros`, which takes no time: the system provides memory where it is first written.
        shape: Its shape.
        dtype: Its dtype.

    Returns:
        The array.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = allocate(size + ALIGNMENT, "u1")
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def trim():
    """Gives the system what the C library keeps of memory that was freed, which is much after many large arrays."""
    if sys.platform == "linux":
        function = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if function:
            function(0)


def physical():
    """Bytes of memory that the machine has; infinite where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):
        return math.inf
