"""Lists the tensors of an HDF5 file. Nothing in it is followed or run: it holds plain datasets or is refused."""

import math
from itertools import count, takewhile
from pathlib import Path

import h5py

from keras_diffusion.checkpoints.tensors import Tensor, mistaken_for
from keras_diffusion.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError

MAGIC = b"\x89HDF\r\n\x1a\n"
WIDTHS = {0: 13, 1: 13, 2: 9, 3: 9}  # version of the superblock → where it says how wide addresses and lengths are
HEAP = b"GCOL\x01"  # how a collection of strings begins
HEADER = 16  # bytes, of a collection and of each of its objects
BLOCK = 2**24  # bytes that are searched at a time
MAX_OBJECTS = 20_000  # groups and datasets; a trained UNet of KerasCV has 4,500
MAX_DEPTH = 20
DTYPES = {"<f4": "F32", "<f2": "F16"}
WHOLE_MODEL = "model_weights"  # where Keras keeps the weights in an .h5 with a whole model


def index(path):
    """Lists the tensors of an HDF5 file without reading their values.

    Args:
        path: The file.

    Returns:
        A dict from names to `Tensor`: in the order of the layers where the file states one, as Keras 2 does, and then
        all others in the order of their names. The prefix "model_weights/" is left out.

    Raises:
        FileNotFoundError: If there is no file.
        CorruptCheckpointError: If the file is damaged, of another kind, or stores a tensor in pieces or compressed.
        UnsafeCheckpointError: If the file refers to other files, or to the same object twice.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(32)
    if not start.startswith(MAGIC):
        raise CorruptCheckpointError(f"{path} is not an HDF5 file but {mistaken_for(start) or 'something else'}.")
    _check_heaps(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            tensors = dict(_walk(file, path, "", set()))
            listed = _listed(file)
        tensors = {name.removeprefix(f"{WHOLE_MODEL}/"): tensor for name, tensor in tensors.items()}
        return {**{name: tensors[name] for name in listed}, **tensors}
    except CheckpointError:
        raise
    except Exception as error:  # of many kinds, as the C library stumbles
        raise CorruptCheckpointError(f"{path} is damaged: {error!s:.200}. Fetch it again.") from error


def _check_heaps(path):
    """Refuses a file whose strings the C library would read forever: free space of no length in a collection.

    Source: "Disk Format: Level 1E - Global Heap" of the HDF5 file format specification.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(32)
        place = WIDTHS.get(start[len(MAGIC)])
        if place is None or start[place : place + 2] != b"\x08\x08":
            raise CorruptCheckpointError(f"{path} is damaged, or of a version of HDF5 that Keras does not write.")
        for position in _occurrences(file, HEAP):
            step = HEADER
            end = position + int.from_bytes(_at(file, position, HEADER)[8:], "little")
            while (position := position + step) + HEADER <= end <= size:
                header = _at(file, position, HEADER)
                number, length = int.from_bytes(header[:2], "little"), int.from_bytes(header[8:], "little")
                step = HEADER + length + -length % 8 if number else length
                if step < HEADER:
                    raise CorruptCheckpointError(f"{path} is damaged: strings without an end. Fetch it again.")
            if end > size:
                raise CorruptCheckpointError(f"{path} was cut short: it lacks strings. Fetch it again.")


def _occurrences(file, pattern):
    """Yields where a file holds a pattern."""
    start, tail = 0, b""
    while block := _at(file, start, BLOCK):
        block, first = tail + block, start - len(tail)
        place = block.find(pattern)
        while place >= 0:
            yield first + place
            place = block.find(pattern, place + 1)
        start, tail = first + len(block), block[1 - len(pattern) :]


def _at(file, position, size):
    file.seek(position)
    return file.read(size)


def _walk(group, path, prefix, seen):
    """Yields the datasets below a group, each object once."""
    if group.id.get_num_objs() > MAX_OBJECTS or prefix.count("/") > MAX_DEPTH:
        raise CorruptCheckpointError(f"{path} is larger or deeper than any model. Received: {prefix!r:.200}")
    for name in group:
        full = prefix + name
        if type(group.get(name, getlink=True)) is not h5py.HardLink or "/" in name or name == ".":
            raise UnsafeCheckpointError(f"{path} may not refer to other places or files. Received: {full!r:.200}")
        item = group[name]
        address = h5py.h5o.get_info(item.id).addr
        if address in seen:
            raise UnsafeCheckpointError(f"{path} refers to one object twice. Received: {full!r:.200}")
        seen.add(address)
        if len(seen) > MAX_OBJECTS:
            raise CorruptCheckpointError(f"{path} holds more than {MAX_OBJECTS} objects, more than any model.")
        if isinstance(item, h5py.Group):
            yield from _walk(item, path, f"{full}/", seen)
        else:
            yield full, _tensor(item, path, full)


def _tensor(item, path, name):
    """Where a dataset lies, unless that is not in one place in this file."""
    if item.external or item.is_virtual:
        raise UnsafeCheckpointError(f"{path} may not keep a tensor in other files. Received: {name!r:.200}")
    if item.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS:
        raise CorruptCheckpointError(
            f"{path} keeps a tensor in pieces or compressed, which Keras does not; undo it by "
            f"`h5repack -f NONE -l CONTI`. Received: {name!r:.200}"
        )
    dtype = DTYPES.get(item.dtype.str, str(item.dtype)[:40])
    if item.dtype.str == "|V2" and item.attrs.get("dtype") == "bfloat16":
        dtype = "BF16"
    shape, offset = tuple(item.shape), item.id.get_offset() or 0
    size = math.prod(shape) * item.dtype.itemsize
    if size and not 0 < offset <= path.stat().st_size - size:
        raise CorruptCheckpointError(f"{path} was cut short: it lacks values. Received: {name!r:.200}")
    return Tensor(path, name, dtype, shape, offset)


def _listed(file):
    """The names of the weights in the order that Keras 2 states; empty where there is none."""
    root = file.get(WHOLE_MODEL, file)
    layers = _strings(root, "layer_names")
    names = [f"{layer}/{name}" for layer in layers for name in _strings(root[layer], "weight_names")]
    if len(set(names)) != len(names):
        raise CorruptCheckpointError(f"{file.filename} lists a weight twice.")
    return names


def _strings(group, name):
    """A list in an attribute, or, where that would be too long, in name0, name1 and so on."""
    keys = [name] if name in group.attrs else takewhile(group.attrs.__contains__, (f"{name}{i}" for i in count()))
    strings = []
    for key in keys:
        attribute = group.attrs.get_id(key)
        if len(attribute.shape) != 1 or attribute.shape[0] > MAX_OBJECTS:
            raise CorruptCheckpointError(f"{group.file.filename} must list names in {key!r:.200}.")
        strings += [value.decode() if isinstance(value, bytes) else str(value) for value in group.attrs[key]]
    return strings
