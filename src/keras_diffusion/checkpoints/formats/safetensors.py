"""Reads and writes safetensors files.

The official reader checks a file; the values are then read from where its header says they are.
"""

import json
import math
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from keras_diffusion.checkpoints.formats.tensors import DTYPES, Tensor, mistaken_for, round_to
from keras_diffusion.errors import CorruptCheckpointError
from keras_diffusion.system import limits
from keras_diffusion.system.paths import existing_file

NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # what `write` can write


def index(path):
    """Lists the tensors of a safetensors file without reading their values.

    Args:
        path: The file.

    Returns:
        A dict from names to `Tensor`, in the order of the file.

    Raises:
        CorruptCheckpointError: If the file is damaged or of another kind.
    """
    path = existing_file(path)
    header = _header(path)
    try:
        with safe_open(path, framework="numpy"):
            pass  # the header fits the file: no hole, no overlap, nothing behind, no size that is not its shape's
        tensors = json.loads(header)
    except (SafetensorError, ValueError) as error:
        raise CorruptCheckpointError(f"{path} is damaged: {error!s:.200}. Fetch it again.") from error
    tensors.pop("__metadata__", None)
    _check(path, tensors)
    return {
        name: Tensor(path, name, entry["dtype"], tuple(entry["shape"]), 8 + len(header) + entry["data_offsets"][0])
        for name, entry in tensors.items()
    }


def metadata(path):
    """Returns what a file says about itself: a dict of str that `write` was given. The file must be sound."""
    return dict(json.loads(_header(Path(path))).get("__metadata__") or {})


def _header(path):
    """The header's JSON, unless there is absurdly much of it."""
    with path.open("rb") as file:
        start = file.read(32)
        length = int.from_bytes(start[:8], "little")
        if length > limits.HEADER:
            kind = mistaken_for(start) or f"damaged: its header claims {length} bytes, of at most {limits.HEADER}"
            raise CorruptCheckpointError(f"{path} is not a safetensors file but {kind}.")
        file.seek(8)
        header = file.read(min(length, path.stat().st_size))
    if header.count(b'"') - header.count(b'\\"') > limits.QUOTES:
        raise CorruptCheckpointError(f"{path} lists more than {limits.TENSORS} tensors or names.")
    return header


def _check(path, tensors):
    """Refuses more tensors, longer names and more axes than any model has."""
    if len(tensors) > limits.TENSORS:
        raise CorruptCheckpointError(f"{path} lists {len(tensors)} tensors, of at most {limits.TENSORS}.")
    for name, entry in tensors.items():
        if len(name) > limits.NAME or len(entry["shape"]) > limits.AXES:
            raise CorruptCheckpointError(
                f"{path} may have names of {limits.NAME} characters and tensors of {limits.AXES} axes. Received: "
                f"{name!r:.200} of {len(name)} characters, with {len(entry['shape'])} axes"
            )


def write(path, dtype, shapes, arrays, metadata=None):
    """Writes a safetensors file; the same values make the same bytes.

    Args:
        path: The file to write.
        dtype: "float32", "float16" or "bfloat16".
        shapes: A dict from names to shapes.
        arrays: The values in the same order, finite in `dtype`, taken one at a time; several may make up one tensor.
        metadata: A dict of str that says more about the file.
    """
    header, end = {"__metadata__": {"format": "pt", **(metadata or {})}}, 0  # without this, transformers refuses it
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * np.dtype(DTYPES[NAMES[dtype]][0]).itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(header, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for array in arrays:
            # not tofile(), which takes no notice of an error in its last 4 kB
            file.write(np.ascontiguousarray(round_to(array, dtype)).reshape(-1).view("u1"))
