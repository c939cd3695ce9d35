"""Says where the tensors of a file are, and reads their values, one tensor in memory at a time.

Every format stores its tensors as plain bytes, so a format's reader only has to say where. Nothing is mapped, so that a
file which is cut short in the meantime is an error and not the end of the process.
"""

import math
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from keras_diffusion.checkpoints.formats.gguf_blocks import BLOCK, QUANTISED, values_of
from keras_diffusion.errors import CorruptCheckpointError

CHUNK = 2**18  # values that are looked at together: they stay in the processor's cache
LINE = 16  # rows whose values, once turned, fill whole lines of the cache
DTYPES = {  # stored dtype of weights → (its bits, as NumPy's floats)
    "F32": ("<u4", lambda bits: bits.view("<f4")),
    "F16": ("<u2", lambda bits: bits.view("<f2")),
    "BF16": ("<u2", lambda bits: np.left_shift(bits, 16, dtype="<u4").view("<f4")),  # NumPy has no bfloat16
    **{name: ("<u4", lambda bits: bits.view("<f4")) for name in QUANTISED},  # they are read as float32
}
SIGN_EXPONENT_MANTISSA = np.int32(-0x70002000)  # of a float16, 13 bits further up: 0x8FFFE000
RESCALE, SMALLEST = np.float32(2.0**112), np.float32(2.0**-149)
READABLE = DTYPES | {  # and of what else may lie beside weights → (how it is stored, as NumPy's numbers)
    "F64": ("<f8", np.asarray),
    "I64": ("<i8", np.asarray),
    "I32": ("<i4", np.asarray),
    "I16": ("<i2", np.asarray),
    "I8": ("i1", np.asarray),
    "U8": ("u1", np.asarray),
    "BOOL": ("u1", lambda bits: bits != 0),
}
MISTAKEN_FOR = {  # how other files begin
    b"version https://git-lfs": "a Git LFS pointer, the place of a file that was not fetched; run `git lfs pull`",
    b"<!doctype": "an HTML page; the download went wrong",
    b"<html": "an HTML page; the download went wrong",
    b"pk\x03\x04": "a zip archive, perhaps a pickle checkpoint",
    b"\x89png": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"gguf": "a GGUF file, which is read as a model or a `diffusion_model`",
    b"\x89hdf": "an HDF5 file; one network's weights are for its load_weights, a whole model is a folder of them",
}

_scratch = threading.local()


class Tensor(NamedTuple):
    """A tensor in a file: how it is stored, and where."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes from the beginning of the file
    strides: tuple[int, ...] | None = None  # elements from one to the next, by axis; None: one after the other

    @property
    def size(self):
        return math.prod(self.shape)


def mistaken_for(start):
    """Says what a file is that begins like this; None if that is not known."""
    return next((kind for begin, kind in MISTAKEN_FOR.items() if start.lower().startswith(begin)), None)


def round_to(array, dtype):
    """Rounds finite values to the nearest that a dtype has, of two to the even one.

    Args:
        array: Numbers.
        dtype: "float32", "float16" or "bfloat16".

    Returns:
        An array of what is stored: little-endian floats, or for bfloat16 its bits. What is too large becomes infinite.
    """
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return np.asarray(array, np.dtype(dtype).newbyteorder("<"))
    bits = np.array(array, "<f4", order="C").view("<u4")
    bits += 0x7FFF + (bits >> 16 & 1)
    return (bits >> 16).astype("<u2")


def thirds(tensor):
    """Splits a tensor along its first axis, the length of which three divides."""
    third = tensor._replace(shape=(tensor.shape[0] // 3, *tensor.shape[1:]))
    elements = third.shape[0] * tensor.strides[0] if tensor.strides else third.size
    if tensor.dtype in QUANTISED and elements % BLOCK:
        raise CorruptCheckpointError(f"{tensor.path}: a third of {tensor.name!r:.200} ends within a block of values.")
    size = nbytes(third._replace(shape=(elements,))) if tensor.dtype in DTYPES else 0
    return [third._replace(offset=tensor.offset + i * size) for i in range(3)]


def nbytes(tensor):
    """Counts the bytes of a tensor of a dtype in `DTYPES` whose elements lie one after the other."""
    if tensor.dtype in QUANTISED:
        return -(-tensor.size // BLOCK) * np.dtype(QUANTISED[tensor.dtype][0]).itemsize
    return tensor.size * np.dtype(DTYPES[tensor.dtype][0]).itemsize


def read(tensor):
    """Reads one tensor.

    Args:
        tensor: A `Tensor` of a dtype in `READABLE`.

    Returns:
        A new array of the same dtype, but bfloat16 becomes float32.

    Raises:
        CorruptCheckpointError: If the file has become shorter.
    """
    return READABLE[tensor.dtype][1](_bits(tensor)).reshape(tensor.shape)


def blocks(tensor):
    """Reads a tensor of weights a few rows at a time, so that they stay in the processor's cache.

    Args:
        tensor: A `Tensor` of a dtype in `DTYPES`.

    Yields:
        (start, bits): The index of the first row, and the bits of these rows. The next ones that this thread reads, of
        whichever tensor, overwrite them.

    Raises:
        CorruptCheckpointError: If the file has become shorter.
    """
    width = math.prod(tensor.shape[1:])
    if tensor.strides is not None or tensor.size <= CHUNK or (tensor.dtype in QUANTISED and width % BLOCK):
        yield 0, _bits(tensor)
        return
    if tensor.dtype in QUANTISED:
        rows = max(1, CHUNK // width)
        for start in range(0, tensor.shape[0], rows):
            part = tensor._replace(shape=(min(rows, tensor.shape[0] - start), *tensor.shape[1:]))
            before = nbytes(tensor._replace(shape=(start * width,)))
            yield start, _bits(part._replace(offset=tensor.offset + before))
        return
    rows = max(1, CHUNK // width)
    rows -= rows % LINE if rows > LINE else 0
    buffer = scratch(rows * width, DTYPES[tensor.dtype][0])
    with open(tensor.path, "rb", buffering=0) as file:
        file.seek(tensor.offset)
        for start in range(0, tensor.shape[0], rows):
            bits = buffer[: tensor.size - start * width]
            if file.readinto(bits) != bits.nbytes:
                raise _cut_short(tensor)
            yield start, bits


def scratch(size, dtype):
    """An array for passing use, always the same of a thread and a dtype: memory that is new costs more than reading."""
    arrays = vars(_scratch)
    if dtype not in arrays or arrays[dtype].size < size:
        arrays[dtype] = np.empty(size, dtype)
    return arrays[dtype][:size]


def float16_to_float32(bits):
    """Finite float16 as float32, in a sixth of the time that NumPy's conversion takes; the next call overwrites it.

    A float16's exponent and mantissa in the place of a float32's mean a number that is 2 ** -112 times as large. Where
    the processor was told to take such small ones for zero, as by `torch.set_flush_denormal`, NumPy converts.
    """
    if not SMALLEST * RESCALE:
        return bits.view("<f2").astype("<f4")
    floats = scratch(bits.size, "<f4")
    words = floats.view("<i4")
    words[:] = bits.view("<i2")
    words <<= 13
    words &= SIGN_EXPONENT_MANTISSA
    floats *= RESCALE
    return floats


def bits_of_largest(bits):
    """Returns the bits of the largest magnitude, those of a NaN where there is one.

    Floats of one sign sort as their bits do, with infinity above all numbers and NaN above infinity.
    """
    signed = bits.view(bits.dtype.str.replace("u", "i"))
    return max(int(signed.max(initial=0)), int(bits.max(initial=0)) & np.iinfo(signed.dtype).max)


def value_of_bits(bits, dtype):
    """The number that an int stands for in a dtype of `DTYPES`."""
    stored, floats = DTYPES[dtype]
    return float(floats(np.array([bits], stored))[0])


def largest(tensor):
    """Returns the largest magnitude in a tensor of weights, NaN where it holds one."""
    return value_of_bits(max((bits_of_largest(bits) for _, bits in blocks(tensor)), default=0), tensor.dtype)


def _bits(tensor):
    """The bits of a tensor, in its order."""
    if tensor.strides is None:
        return _stored(tensor, tensor.size)
    stored = _stored(tensor, extent(tensor.shape, tensor.strides))
    strides = [stride * stored.itemsize for stride in tensor.strides]
    return as_strided(stored, tensor.shape, strides).ravel()


def extent(shape, strides):
    """Counts the elements from the first to the last of a tensor that is not empty, both included."""
    return 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))


def _stored(tensor, count):
    if tensor.dtype in QUANTISED:
        block, _ = QUANTISED[tensor.dtype]
        blocks = np.fromfile(tensor.path, block, -(-count // BLOCK), offset=tensor.offset)
        if len(blocks) * BLOCK < count:
            raise _cut_short(tensor)
        return values_of(blocks, tensor.dtype)[:count].view("<u4")
    bits = np.fromfile(tensor.path, READABLE[tensor.dtype][0], count, offset=tensor.offset)
    if bits.size != count:
        raise _cut_short(tensor)
    return bits


def _cut_short(tensor):
    return CorruptCheckpointError(f"{tensor.path} was cut short while {tensor.name} was read. Fetch it again.")
