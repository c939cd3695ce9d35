"""The machine that pickles are programs for, with the instructions that checkpoints need."""

import logging
from pickletools import genops

from keras_diffusion.checkpoints.formats.pickle_calls import (
    CALLS,
    Code,
    Inert,
    Known,
    Parameters,
    Storage,
    itemsize,
    known,
    little_endian,
    named,
    natural,
    refuse,
    typed,
)
from keras_diffusion.system import limits

logger = logging.getLogger(__name__)

CALL = 10  # steps
DICTS = (dict, Parameters)
CONTAINERS = (*DICTS, list, tuple)


class Interpreter:
    """Holds the stack and the memo of a pickle, which its instructions change.

    Args:
        path: The file.
        place: A function from key, number of elements and bytes of an element of a storage to where the file has it.
        steps: How many steps the pickle may take.
    """

    def __init__(self, path, place, steps):
        self.path, self.place, self.steps = path, place, steps
        self.stack, self.below, self.memo, self.inert = [], [], {}, {}

    def spend(self, steps):
        self.steps -= steps
        if self.steps < 0:
            raise ValueError("it takes more steps to read than checkpoints do")

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
        typed(self.stack[-1], list).extend(values)

    def update(self, values):
        target = typed(self.stack[-1], *DICTS)
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_key(key)] = value

    def new_dict(self, values):
        self.push({})
        self.update(values)

    def name(self, module, name):
        self.push(value := named(module, name))
        if type(value) is Inert:
            self.inert[value] = None

    def storage(self, name):
        """Returns the storage that a persistent name means."""
        if not (type(name) is tuple and len(name) in (5, 6) and name[0] == "storage" and name[5:] in ((), (None,))):
            raise ValueError("it refers to something that is no storage")
        _, kind, key, _, numel, *_ = name
        dtype, key, numel = known(kind).meaning, typed(key, str), natural(numel)
        return Storage(self.path, key, dtype, numel, self.place(key, numel, itemsize(dtype)))

    def call(self, function, arguments):
        """Calls our own function in place of the one that a file names."""
        meaning = known(function).meaning
        if meaning not in CALLS or len(typed(arguments, tuple)) > limits.PICKLE_ARGUMENTS:
            raise ValueError(f"it calls {function} as no checkpoint does")
        self.spend(CALL)
        return CALLS[meaning](*arguments)

    def build(self, state):
        """Gives an object its attributes, of which most mean nothing here."""
        target = self.stack[-1]
        if type(target) is Parameters:
            parameters = typed(typed(state, dict)["_parameters"], dict)
            self.spend(len(parameters))
            target.update(parameters)
        elif type(target) is Code:
            little_endian(typed(state, tuple)[1] in ("<", "|"))
        else:
            typed(target, dict)


def run(file, path=None, place=None, steps=limits.PICKLE_STEPS):
    """Reads the pickle at the present position of a file.

    Args:
        file: A binary file, all of it in memory.
        path: The path for its tensors, a `Path`.
        place: A function from key, number of elements and bytes of an element of a storage to its place in the file.
        steps: How many steps the pickle may take.

    Returns:
        What it describes, made of dicts, lists, tuples, strings, numbers and `Tensor`.

    Raises:
        UnsafeCheckpointError: If it asks for anything else.
        ValueError, TypeError, LookupError, ArithmeticError, Warning: If it is damaged.
    """
    machine = Interpreter(path, place, steps)
    for opcode, argument, _ in genops(file):
        machine.spend(1)
        if opcode.name not in STEPS:
            raise ValueError(f"it has an instruction that no checkpoint has: {opcode.name}")
        STEPS[opcode.name](machine, argument)
    (content,) = machine.stack
    if machine.inert:
        names = ", ".join([*machine.inert][:10])
        logger.warning("%s mentions classes that mean nothing here, ignored: %.500s", path, names)
    _measure(content)
    return content


def _measure(content):
    """Refuses what contains itself, is nested deeply, or is larger than it seems because it shares its parts."""
    measures, stack, open_ = {}, [content], 0  # measures by id: depth and items, None while a value is open
    while stack:
        value = stack[-1]
        if measures.get(id(value)):
            stack.pop()
            continue
        items = value.values() if type(value) in DICTS else value if type(value) in CONTAINERS else ()
        inner = [item for item in items if type(item) in CONTAINERS and item]
        if id(value) not in measures:
            measures[id(value)], open_ = None, open_ + 1
            if any(measures.get(id(item), ()) is None for item in inner):
                raise ValueError("it contains itself")
            depth, count = open_, 0
            stack += inner
        else:
            depth = 1 + max((measures[id(item)][0] for item in inner), default=0)
            count = len(items) + sum(measures[id(item)][1] for item in inner)
            measures[id(value)], open_ = (depth, count), open_ - 1
        if depth > limits.PICKLE_DEPTH or count > limits.PICKLE_ITEMS:
            most = f"nested deeper than {limits.PICKLE_DEPTH} or holds more than {limits.PICKLE_ITEMS} items"
            raise ValueError(f"it is {most}")


def _key(key):
    """A key of a dict, of few whose hash an author can choose."""
    if type(key) is int and abs(key) < 2**63:
        return key
    return typed(key, str, Known, Inert)


def _each(names, step):
    return dict.fromkeys(names.split(), step)


STEPS = {  # name of an instruction → what it does with the machine and its argument
    **_each("PROTO FRAME STOP", lambda machine, _: None),
    **_each("INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT", Interpreter.push),
    **_each("UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 STRING SHORT_BINSTRING BINSTRING", Interpreter.push),
    **_each("SHORT_BINBYTES BINBYTES BINBYTES8", Interpreter.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    **_each("EMPTY_LIST EMPTY_SET", lambda machine, _: machine.push([])),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "LIST": lambda machine, _: machine.push(machine.pop_mark()),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    **_each("APPENDS ADDITEMS", lambda machine, _: machine.extend(machine.pop_mark())),
    "DICT": lambda machine, _: machine.new_dict(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.update(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.pop_mark()),
    **_each("PUT BINPUT LONG_BINPUT", Interpreter.put),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **_each("GET BINGET LONG_BINGET", lambda machine, place: machine.push(machine.memo[place])),
    "GLOBAL": lambda machine, names: machine.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*(typed(name, str) for name in machine.pop(2))),
    "INST": lambda machine, names: refuse(names.replace(" ", ".", 1)),
    **_each("EXT1 EXT2 EXT4", lambda machine, number: refuse(f"extension {number}")),
    "BINPERSID": lambda machine, _: machine.push(machine.storage(*machine.pop(1))),
    **_each("REDUCE NEWOBJ", lambda machine, _: machine.push(machine.call(*machine.pop(2)))),
    "BUILD": lambda machine, _: machine.build(*machine.pop(1)),
}
