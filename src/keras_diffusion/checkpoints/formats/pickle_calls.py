"""Maps the names that a pickle calls to our own functions, which replace theirs."""

import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_diffusion.checkpoints.formats.tensors import READABLE, Tensor, extent
from keras_diffusion.errors import UnsafeCheckpointError
from keras_diffusion.system import limits

FILE = Path(__file__).with_name("pickle_globals.json")
GLOBALS = json.loads(FILE.read_text(encoding="utf-8"))  # module → name → meaning
CODES = {"f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1"}  # of NumPy's scalars
CLASS = re.compile(r"[A-Za-z_]\w{0,50}(\.[A-Za-z_]\w{0,50}){0,9}\.[A-Z]\w{0,50}[a-z]\w{0,50}", re.ASCII)


class Known(str):
    """The name of something in `GLOBALS`, with what it means."""

    def __new__(cls, module, name):
        if name not in GLOBALS.get(module, ()):
            refuse(f"{module[:100]}.{name[:100]}")
        known = super().__new__(cls, f"{module}.{name}")
        known.meaning = GLOBALS[module][name]
        return known


class Inert(str):
    """The name of an unknown class; a file may mention it, but not use it."""


class Code(str):
    """The name of a dtype of NumPy's."""


class Parameters(dict):
    """A dict of parameters, which files hold as an object with many attributes."""


class Storage(NamedTuple):
    """The numbers that tensors share."""

    path: Path
    key: str
    dtype: str
    numel: int
    offset: int  # bytes from the beginning of the file

    @property
    def itemsize(self):
        return itemsize(self.dtype)


def named(module, name):
    """Returns what a name in a file stands for; an unknown class, told by its capitals, is an `Inert`."""
    if name not in GLOBALS.get(module, ()) and CLASS.fullmatch(f"{module}.{name}"):
        return Inert(f"{module}.{name}")
    return Known(module, name)


def known(value):
    """Returns a value if it names something in `GLOBALS`; otherwise it is an error."""
    return refuse(value) if type(value) is Inert else typed(value, Known)


def refuse(name):
    """Refuses something that is not known."""
    raise UnsafeCheckpointError(
        "asks for something that no checkpoint needs. Nothing of it was run, and it can harm no one here. Get the "
        f"model as safetensors. Received: {name[:200]!r}"
    )


def typed(value, *kinds):
    """The value, if it is of one of these types: nothing else may be hashed, compared or counted."""
    if type(value) not in kinds:
        raise ValueError(f"it has a {type(value).__name__} in place of a {kinds[0].__name__}")
    return value


def natural(value):
    """The value, if it is a number that can count something."""
    if type(value) is not int or not 0 <= value <= limits.ELEMENTS:
        raise ValueError(f"it has something else in place of a number from 0 to {limits.ELEMENTS}")
    return value


def itemsize(dtype):
    """The bytes of an element of a storage."""
    if dtype not in READABLE:
        raise ValueError("it has a storage of something else than numbers")
    return np.dtype(READABLE[dtype][0]).itemsize


def little_endian(stated):
    """Refuses numbers of the other byte order."""
    if not stated:
        raise ValueError("its numbers are not little-endian")


def tensor(storage, offset, shape, strides, *_):
    """A view of a storage: all of it within, no element twice."""
    typed(storage, Storage)
    if not len(typed(shape, tuple)) == len(typed(strides, tuple)) <= limits.AXES:
        raise ValueError(f"it has a tensor of more than {limits.AXES} axes, or of another number of strides")
    for number in (offset, *shape, *strides):
        natural(number)
    natural(math.prod(length or 1 for length in shape))
    size = math.prod(shape)
    reach = extent(shape, strides) if size else 0
    usual = (math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    axes = [(stride, plain) for length, stride, plain in zip(shape, strides, usual, strict=True) if length > 1]
    if not size <= reach <= storage.numel - offset or any(stride == 0 for stride, _ in axes):
        raise ValueError(f"it has a tensor that does not fit its storage. Received: {shape=}, {strides=}, {offset=}")
    if reach > 16 * size + 2**16:
        raise ValueError(f"it has a tensor that leaves out nearly all of its storage. Received: {shape=}, {strides=}")
    view = size and any(stride != plain for stride, plain in axes)
    offset = storage.offset + offset * storage.itemsize
    return Tensor(storage.path, storage.key, storage.dtype, shape, offset, strides if view else None)


def code(name, *_):
    """The dtype of a scalar."""
    if typed(name, str) not in CODES:
        raise ValueError(f"it has a number of an unknown dtype. Received: {name[:200]!r}")
    return Code(f"<{name}")


def scalar(dtype, data):
    """A number of NumPy's."""
    return np.frombuffer(typed(data, bytes), typed(dtype, Code), 1)[0].item()


def latin1(text, encoding):
    """Bytes, which old protocols store as text."""
    if len(typed(text, str)) > limits.PICKLE_SCALAR or typed(encoding, str) != "latin1":
        raise ValueError(f"it has bytes that are no number. Received: {text[:200]!r}")
    return text.encode("latin1")


CALLS = {  # meaning in `GLOBALS` → what is done instead of the call
    "dict": lambda: {},
    "first": lambda first, *_: first,
    "tensor": tensor,
    "dtype": code,
    "scalar": scalar,
    "bytes": latin1,
    "parameters": lambda: Parameters(),
}
