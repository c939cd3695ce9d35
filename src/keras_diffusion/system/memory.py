"""Hands arrays as large as a model to the backend without a copy, and gives memory back to the system."""

import ctypes
import math
import os
import sys

import numpy as np

ALIGNMENT = 64  # bytes; a backend takes only arrays that begin at a multiple of it


class OwnedArray:
    """Marks an array whose memory `keras.ops.convert_to_tensor` may take over without copying.

    TensorFlow and torch take it over; JAX copies.

    Args:
        array: An array from `aligned_array`, of which no other reference is kept.
    """

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def aligned_array(allocate, shape, dtype):
    """Makes an array for an `OwnedArray`.

    Args:
        allocate: `np.empty`, or `np.zeros`, which takes no time: the system provides memory at the first write.
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
    """Returns to the system the freed memory that the C library keeps, which is much after many large arrays."""
    if sys.platform == "linux":
        function = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if function:
            function(0)


def resident_memory():
    """Returns the bytes of memory that this process has; None where the system has no file that tells."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def physical_memory():
    """Returns the bytes of memory of the machine; infinity if the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):
        return math.inf
