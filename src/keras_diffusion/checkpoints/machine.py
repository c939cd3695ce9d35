"""The machine that pickles are programs for, with the instructions and the calls that checkpoints need."""

import json
import math
from itertools import accumulate
from operator import mul
from pathlib import Path
from pickletools import genops
from typing import NamedTuple

import numpy as np

from keras_diffusion.checkpoints.tensors import READABLE, Tensor, extent
from keras_diffusion.errors import UnsafeCheckpointError

GLOBALS = json.loads(Path(__file__).with_name("globals.json").read_text(encoding="utf-8"))  # module → name → meaning
MAX_STEPS = 400_000  # a tensor takes about forty
MAX_DEPTH = 64
MAX_ITEMS = 1_000_000  # of the whole structure, those of a shared part counted wherever it appears
MAX_ARGUMENTS = 8
MAX_AXES = 32
MAX_NUMEL = 2**40
MAX_BYTES = 64  # of a NumPy scalar


class Known(str):
    """The name of something in `GLOBALS`, with what it means."""

    def __new__(cls, module, name):
        if name not in GLOBALS.get(module, ()):
            raise _unsafe(f"{module[:100]}.{name[:100]}")
        known = super().__new__(cls, f"{module}.{name}")
        known.meaning = GLOBALS[module][name]
        return known


class Code(str):
    """The name of a dtype of NumPy's."""


class Parameters(dict):
    """A dict of parameters, which files hold as an object with many attributes."""


DICTS = (dict, Parameters)
CONTAINERS = (*DICTS, list, tuple)


class Storage(NamedTuple):
    """The numbers that tensors share."""

    path: str
    key: str
    dtype: str
    numel: int
    offset: int  # bytes from the beginning of the file


class Machine:
    """What an instruction changes.

    Args:
        path: The file.
        place: A function from key, number of elements and bytes of an element of a storage to where the file has it.
    """

    def __init__(self, path, place):
        self.path, self.place = path, place
        self.stack, self.below, self.memo, self.steps = [], [], {}, 0

    def spend(self, steps):
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise ValueError(f"it takes more than {MAX_STEPS} steps to read")

    def push(self, value):
        self.stack.append(value)

    def pop(self, count):
        if len(self.stack) < count:
            raise ValueError("it takes more from the stack than is there")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def put(self, place):
        self.memo[_key(place)] = self.stack[-1]

    def mark(self):
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self):
        values, self.stack = self.stack, self.below.pop()
        return values

    def extend(self, values):
        _typed(self.stack[-1], list).extend(values)

    def update(self, values):
        target = _typed(self.stack[-1], *DICTS)
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_key(key)] = value

    def new_dict(self, values):
        self.push({})
        self.update(values)

    def storage(self, name):
        """The storage that a persistent name means."""
        if not (type(name) is tuple and len(name) in (5, 6) and name[0] == "storage" and name[5:] in ((), (None,))):
            raise ValueError("it refers to something that is no storage")
        _, kind, key, _, numel, *_ = name
        dtype, key, numel = _typed(kind, Known).meaning, _typed(key, str), _integer(numel)
        return Storage(self.path, key, dtype, numel, self.place(key, numel, _itemsize(dtype)))

    def call(self, function, arguments):
        """What a call gives, by our own function for it."""
        meaning = _typed(function, Known).meaning
        if meaning not in CALLS or len(_typed(arguments, tuple)) > MAX_ARGUMENTS:
            raise ValueError(f"it calls {function} as no checkpoint does")
        return CALLS[meaning](*arguments)

    def build(self, state):
        """Gives an object its attributes, of which most mean nothing here."""
        target = self.stack[-1]
        if type(target) is Parameters:
            parameters = _typed(_typed(state, dict)["_parameters"], dict)
            self.spend(len(parameters))
            target.update(parameters)
        elif type(target) is Code:
            little_endian(_typed(state, tuple)[1] in ("<", "|"))
        else:
            _typed(target, dict)


def run(file, path="", place=None):
    """Reads the pickle at the present position of a file.

    Args:
        file: A binary file, all of it in memory.
        path: The path for its `Tensor`s.
        place: A function from key, number of elements and bytes of an element of a storage to its place in the file.

    Returns:
        What it describes, made of dicts, lists, tuples, strings, numbers and `Tensor`.

    Raises:
        UnsafeCheckpointError: If it asks for anything else.
        ValueError, TypeError, LookupError, ArithmeticError, Warning: If it is damaged.
    """
    machine = Machine(path, place)
    for opcode, argument, _ in genops(file):
        machine.spend(1)
        if opcode.name not in STEPS:
            raise _unsafe(argument.replace(" ", ".", 1) if opcode.name == "INST" else f"{opcode.name} {argument}")
        STEPS[opcode.name](machine, argument)
    (content,) = machine.stack
    _measure(content)
    return content


def _measure(content):
    """Refuses what contains itself, is nested deeply, or is larger than it seems because it shares its parts."""
    measures, stack = {}, [content]  # by id: depth and number of items, None while it is being looked into
    while stack:
        value = stack[-1]
        if measures.get(id(value)):
            stack.pop()
            continue
        items = value.values() if type(value) in DICTS else value if type(value) in CONTAINERS else ()
        inner = [item for item in items if type(item) in CONTAINERS]
        if id(value) not in measures:
            measures[id(value)] = None
            if any(measures.get(id(item), ()) is None for item in inner):
                raise ValueError("it contains itself")
            stack += inner
            continue
        depth = 1 + max((measures[id(item)][0] for item in inner), default=0)
        count = len(items) + sum(measures[id(item)][1] for item in inner)
        if depth > MAX_DEPTH or count > MAX_ITEMS:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} or holds more than {MAX_ITEMS} items")
        measures[id(value)] = depth, count


def _tensor(storage, offset, shape, strides, *_):
    """A view of a storage."""
    _typed(storage, Storage)
    offset, shape, strides = _integer(offset), _integers(shape), _integers(strides)
    if len(shape) != len(strides) or offset > storage.numel:
        raise ValueError("it holds a tensor whose offset or strides cannot be")
    size = math.prod(shape)
    if math.prod(length or 1 for length in shape) > MAX_NUMEL or size > storage.numel:
        raise ValueError(f"it holds a tensor that is larger than its storage. Received: shape={shape}")
    if size:
        if any(stride == 0 for length, stride in zip(shape, strides, strict=True) if length > 1):
            raise ValueError("it holds a tensor with a stride of 0")
        reach = extent(shape, strides)
        if offset + reach > storage.numel:
            raise ValueError("it holds a tensor beyond the end of its storage")
        if reach > 16 * size + 2**16:
            raise ValueError("it holds a tensor that skips nearly all of its storage")
    plain = list(accumulate(shape[:0:-1], mul, initial=1))[::-1]
    view = size and any(s != p for n, s, p in zip(shape, strides, plain[: len(shape)], strict=True) if n > 1)
    offset = storage.offset + offset * _itemsize(storage.dtype)
    return Tensor(Path(storage.path), storage.key, storage.dtype, shape, offset, strides if view else None)


def _code(code, *_):
    """The dtype of a scalar."""
    if _typed(code, str) not in CODES:
        raise ValueError(f"it holds a number of an unknown dtype. Received: {code[:200]!r}")
    return Code(f"<{code}")


def _scalar(code, data):
    """A number of NumPy's."""
    return np.frombuffer(_typed(data, bytes), _typed(code, Code), 1)[0].item()


def _bytes(text, encoding):
    """Bytes, which old protocols store as text."""
    if encoding != "latin1" or len(_typed(text, str)) > MAX_BYTES:
        raise ValueError("it holds bytes of an unknown kind")
    return text.encode("latin1")


def _itemsize(dtype):
    if dtype not in READABLE:
        raise ValueError("it holds a storage that is no list of numbers")
    return np.dtype(READABLE[dtype][0]).itemsize


def _key(key):
    """A key of a dict, of few whose hash an author can choose."""
    if type(key) is int and abs(key) < 2**63:
        return key
    return _typed(key, str, Known)


def _typed(value, *kinds):
    if type(value) not in kinds:
        raise ValueError(f"it has a {type(value).__name__} in place of a {kinds[0].__name__}")
    return value


def little_endian(stated):
    """Refuses numbers of the other byte order."""
    if not stated:
        raise ValueError("its numbers are not little-endian")


def _integer(value):
    if type(value) is not int or not 0 <= value <= MAX_NUMEL:
        raise ValueError(f"it has something else in place of a number from 0 to {MAX_NUMEL}")
    return value


def _integers(values):
    if len(_typed(values, tuple)) > MAX_AXES:
        raise ValueError(f"it holds a tensor of more than {MAX_AXES} axes")
    return tuple(map(_integer, values))


def _unsafe(name):
    return UnsafeCheckpointError(
        f"asks for something that no checkpoint needs. Nothing of it was run. Delete it, and get the model as "
        f"safetensors. Received: {name[:200]!r}"
    )


CODES = {"f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1"}
CALLS = {  # meaning in `GLOBALS` → what is done instead of the call
    "dict": lambda: {},
    "first": lambda first, *_: first,
    "tensor": _tensor,
    "dtype": _code,
    "scalar": _scalar,
    "bytes": _bytes,
    "parameters": lambda: Parameters(),
}


def _each(names, step):
    return dict.fromkeys(names.split(), step)


STEPS = {  # name of an instruction → what it does with the machine and its argument
    **_each("PROTO FRAME STOP", lambda machine, _: None),
    **_each("INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT", Machine.push),
    **_each("UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 STRING SHORT_BINSTRING BINSTRING", Machine.push),
    **_each("SHORT_BINBYTES BINBYTES BINBYTES8", Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "LIST": lambda machine, _: machine.push(machine.pop_mark()),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_mark()),
    "DICT": lambda machine, _: machine.new_dict(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.update(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.pop_mark()),
    **_each("PUT BINPUT LONG_BINPUT", Machine.put),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **_each("GET BINGET LONG_BINGET", lambda machine, place: machine.push(machine.memo[place])),
    "GLOBAL": lambda machine, names: machine.push(Known(*names.split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.push(Known(*(_typed(name, str) for name in machine.pop(2)))),
    "BINPERSID": lambda machine, _: machine.push(machine.storage(*machine.pop(1))),
    **_each("REDUCE NEWOBJ", lambda machine, _: machine.push(machine.call(*machine.pop(2)))),
    "BUILD": lambda machine, _: machine.build(*machine.pop(1)),
}
