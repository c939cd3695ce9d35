"""Reads and writes safetensors files, one tensor in memory at a time.

The official reader checks a file; the values are then read from where its header says they are. Nothing is mapped, so
that a file which is cut short in the meantime is an error and not the end of the process.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from keras_diffusion.errors import CorruptCheckpointError

MAX_HEADER = 25_000_000  # bytes
MAX_TENSORS = 10_000  # four times those of SDXL
CHUNK = 2**20  # values that `largest` looks at together: they stay in the processor's cache
DTYPES = {  # stored dtype → (its bits, as NumPy's floats)
    "F32": ("<u4", lambda bits: bits.view("<f4")),
    "F16": ("<u2", lambda bits: bits.view("<f2")),
    "BF16": ("<u2", lambda bits: np.left_shift(bits, 16, dtype="<u4").view("<f4")),  # NumPy has no bfloat16
}
NAMES = {"float32": "F32", "float16": "F16"}  # what `write` can write
MISTAKEN_FOR = {  # how other files begin
    b"version https://git-lfs": "a Git LFS pointer, the place of a file that was not fetched; run `git lfs pull`",
    b"<!doctype": "an HTML page; the download went wrong",
    b"<html": "an HTML page; the download went wrong",
    b"pk\x03\x04": "a zip archive, perhaps a pickle checkpoint; pickles are not read",
    b"\x89hdf": "an HDF5 file",
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


def index(path):
    """Lists the tensors of a safetensors file without reading their values.

    Args:
        path: The file.

    Returns:
        A dict from names to `Tensor`, in the order of the file.

    Raises:
        CorruptCheckpointError: If the file is damaged or of another kind.
    """
    path = Path(path)
    header = _header(path)
    try:
        with safe_open(path, framework="numpy"):
            pass  # the header fits the file: no hole, no overlap, nothing behind, no size that is not its shape's
        tensors = json.loads(header)
    except (SafetensorError, ValueError) as error:
        raise CorruptCheckpointError(f"{path} is damaged: {error!s:.200}. Fetch it again.") from error
    tensors.pop("__metadata__", None)
    return {
        name: Tensor(path, name, entry["dtype"], tuple(entry["shape"]), 8 + len(header) + entry["data_offsets"][0])
        for name, entry in tensors.items()
    }


def _header(path):
    """The header's JSON, unless there is absurdly much of it."""
    with path.open("rb") as file:
        start = file.read(32)
        length = int.from_bytes(start[:8], "little")
        if length > MAX_HEADER:
            other = (kind for begin, kind in MISTAKEN_FOR.items() if start.lower().startswith(begin))
            kind = next(other, f"damaged: its header claims {length} bytes, of at most {MAX_HEADER}")
            raise CorruptCheckpointError(f"{path} is not a safetensors file but {kind}.")
        file.seek(8)
        header = file.read(min(length, path.stat().st_size))
    if (count := header.count(b"data_offsets")) > MAX_TENSORS:
        raise CorruptCheckpointError(f"{path} lists {count} tensors, of at most {MAX_TENSORS}.")
    return header


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


def write(path, dtype, shapes, arrays):
    """Writes a safetensors file; the same values make the same bytes.

    Args:
        path: The file to write.
        dtype: "float32" or "float16".
        shapes: A dict from names to shapes.
        arrays: The values in the same order, taken one at a time.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0  # without this, transformers refuses the file
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(header, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for array in arrays:
            np.asarray(array, np.dtype(dtype).newbyteorder("<")).tofile(file)
