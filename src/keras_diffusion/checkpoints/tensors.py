"""Where the tensors of a file are, and their values, one tensor in memory at a time.

Every format stores its tensors as plain bytes, so a format's reader only has to say where. Nothing is mapped, so that a
file which is cut short in the meantime is an error and not the end of the process.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_diffusion.errors import CorruptCheckpointError

CHUNK = 2**20  # values that `largest` looks at together: they stay in the processor's cache
DTYPES = {  # stored dtype → (its bits, as NumPy's floats)
    "F32": ("<u4", lambda bits: bits.view("<f4")),
    "F16": ("<u2", lambda bits: bits.view("<f2")),
    "BF16": ("<u2", lambda bits: np.left_shift(bits, 16, dtype="<u4").view("<f4")),  # NumPy has no bfloat16
}


class Tensor(NamedTuple):
    """A tensor in a file: how it is stored, and where."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes from the beginning of the file

    @property
    def size(self):
        return math.prod(self.shape)


def read(tensor):
    """Reads one tensor.

    Args:
        tensor: A `Tensor` of dtype F32, F16 or BF16.

    Returns:
        A new float32 or float16 array; bfloat16 becomes float32.

    Raises:
        CorruptCheckpointError: If the file has become shorter.
    """
    floats = DTYPES[tensor.dtype][1]
    return floats(_bits(tensor, 0, tensor.size)).reshape(tensor.shape)


def largest(tensor):
    """Returns the largest magnitude in a tensor, NaN where it holds one.

    Floats of one sign sort as their bits do, with infinity above all numbers and NaN above infinity.
    """
    bits, floats = DTYPES[tensor.dtype]
    sign = 1 << 8 * np.dtype(bits).itemsize - 1
    top = 0
    for start in range(0, tensor.size, CHUNK):
        chunk = _bits(tensor, start, min(CHUNK, tensor.size - start))
        positive, negative = int(chunk.view(bits.replace("u", "i")).max()), int(chunk.max()) & (sign - 1)
        top = max(top, positive, negative)
    return float(floats(np.array([top], bits))[0])


def _bits(tensor, start, count):
    dtype = np.dtype(DTYPES[tensor.dtype][0])
    bits = np.fromfile(tensor.path, dtype, count, offset=tensor.offset + start * dtype.itemsize)
    if bits.size != count:
        raise CorruptCheckpointError(f"{tensor.path} was cut short while {tensor.name} was read. Fetch it again.")
    return bits
