"""Reads what an HDF5 file is made of: groups, datasets and attributes, in the form that Keras has h5py write.

HDF5's own library takes the memory that a damaged file claims to need, and some files crash it and Python with it. Here
nothing is read that is not within the file, and little of it altogether.

Source: "HDF5 File Format Specification Version 3.0". Of its forms, those that HDF5 1.8 added are refused: h5py writes
them on request alone.
"""

import math
import os
import struct
from enum import IntEnum
from typing import NamedTuple

from keras_diffusion.system import limits

STEP = 64  # bytes that each part of it counts for on top of its own
NOWHERE = 2**64 - 1
NEWER = "it is in a form of HDF5 that Keras reads and does not write; load it into Keras' own model and save it again"
SHARED = 2  # flag of a message
CONTIGUOUS, VIRTUAL = 1, 3  # kinds of a layout
SOFT = 2  # kind of a symbol
KINDS = "integer float time string bits opaque compound reference enum list array".split()


def _float(size, mantissa, exponent):
    sign = size * 8 - 1
    numbers = (0x11, 0x20, sign, 0, size, 0, size * 8, mantissa, exponent, 0, mantissa, 2 ** (exponent - 1) - 1)
    return struct.pack("<4BIHH4BI", *numbers)


def _integer(size):
    return struct.pack("<4BIHH", 0x10, 8, 0, 0, size, 0, size * 8)


class Message(IntEnum):
    """The kinds of messages about an object that are read; there are others."""

    SHAPE = 1
    LINKS = 2
    TYPE = 3
    LINK = 6
    ELSEWHERE = 7  # where the values are, in other files
    LAYOUT = 8
    ATTRIBUTE = 12
    MORE = 16  # where further messages are
    SYMBOLS = 17


KNOWN = frozenset(Message)


DTYPES = {  # how the message of a type begins → the dtype
    _float(4, 23, 8): "F32",
    _float(2, 10, 5): "F16",
    _float(8, 52, 11): "F64",
    **{_integer(size): f"I{size * 8}" for size in (1, 2, 4, 8)},
}


class Kind(NamedTuple):
    """The type of the elements of a dataset or an attribute."""

    name: str
    size: int  # bytes
    dtype: str


class Attribute(NamedTuple):
    """An attribute: its name, the messages of its type and its shape, and its values."""

    name: str
    type: bytes
    shape: bytes
    values: bytes


class Objects:
    """The objects of a file, each told by its address.

    Where the file is damaged, methods raise `ValueError`, `LookupError` or `struct.error`.

    Args:
        file: A binary file.

    Attributes:
        root: The address of the outermost group.
    """

    def __init__(self, file):
        self.file, self.left, self.size = file, limits.HDF5_STRUCTURE, os.fstat(file.fileno()).st_size
        self.strings_at, self.strings = None, {}
        version, widths, base, end, self.root = self._unpack("8xB4x2s9xQ8xQ16xQ", 0)
        if version != 0 or widths != b"\x08\x08" or base != 0:
            raise ValueError(NEWER)
        if end > self.size:
            raise ValueError("it was cut short")

    def messages(self, address):
        """Reads the messages that describe an object: a dict from each kind to its first message."""
        messages = {}
        for kind, message in self._header(address):
            messages.setdefault(kind, message)
        return messages

    def attributes(self, address):
        """The attributes of an object: a dict from names to `Attribute`."""
        attributes = [_attribute(message) for kind, message in self._header(address) if kind == Message.ATTRIBUTE]
        return {attribute.name: attribute for attribute in attributes}

    def _header(self, address):
        """Yields kind and content of the messages of an object."""
        version, size = self._unpack("B7xI4x", address)
        if version != 1:
            raise ValueError(NEWER)
        chunks = [(address + 16, size)]
        for start, size in chunks:  # which grows meanwhile
            chunk, place = self._read(start, size), 0
            while place + 8 <= size:
                self._spend(STEP)
                kind, length, flags = struct.unpack_from("<HHB", chunk, place)
                message, place = chunk[place + 8 : place + 8 + length], place + 8 + length
                if kind == Message.MORE:
                    chunks.append(struct.unpack("<QQ", message[:16]))
                elif kind not in KNOWN:
                    continue
                elif flags & SHARED:
                    raise ValueError("it shares what Keras does not share")
                else:
                    yield kind, message

    def symbols(self, message):
        """Yields name and address of all that is in a group; instead of the address None, if it is a soft link."""
        tree, heap = struct.unpack("<QQ", message[:16])
        signature, size, place = self._unpack("8sQ8xQ", heap)
        if signature != b"HEAP\0\0\0\0":
            raise ValueError("it lacks the names in a group")
        names = self._read(place, size)
        for leaf in self._leaves(tree):
            signature, count = self._unpack("6sH", leaf)
            if signature != b"SNOD\1\0":
                raise ValueError("it lacks a part of a group")
            for start, address, kind in struct.iter_unpack("<QQI20x", self._read(leaf + 8, 40 * count)):
                name = names[start : names.index(b"\0", start, start + limits.NAME)]
                self._spend(len(name) + STEP)
                yield name.decode(), None if kind == SOFT else address

    def texts(self, attribute):
        """The strings in an `Attribute`."""
        kind, values = _kind(attribute.type), attribute.values
        count = math.prod(_shape(attribute.shape))
        if count == 0:
            return []
        if kind.name not in ("string", "list") or not 0 < count * kind.size <= len(values):
            raise ValueError("it has something else in place of names")
        self._spend(count * STEP)
        texts = [values[i * kind.size : (i + 1) * kind.size] for i in range(count)]
        if kind.name == "list":
            texts = [self._string(*struct.unpack("<IQI", text)) for text in texts]
        return [text.rstrip(b"\0").decode() for text in texts]

    def _string(self, length, address, number):
        """A string that lies in a collection of such."""
        if address != self.strings_at:
            self.strings_at, self.strings = address, self._collection(address)
        string = self.strings[number][:length]
        if len(string) != length or length > limits.NAME:
            raise ValueError(f"it has a string of {length} bytes where there are fewer, or more than {limits.NAME}")
        self._spend(length)
        return string

    def _collection(self, address):
        signature, size = self._unpack("8sQ", address)
        if signature != b"GCOL\1\0\0\0":
            raise ValueError("it lacks strings")
        collection, place, strings = self._read(address, size), 16, {}
        while place + 16 <= size:
            self._spend(STEP)
            number, length = struct.unpack_from("<H6xQ", collection, place)
            if number == 0:  # the rest is free
                break
            strings[number] = collection[place + 16 : place + 16 + length]
            place += 16 + length + -length % 8
        return strings

    def _leaves(self, place, parent=256):
        """Yields where the leaves of a tree are."""
        signature, level, count = self._unpack("5sBH16x", place)
        if signature != b"TREE\0" or level >= parent:
            raise ValueError("it lacks a part of a group")
        for _, child in struct.iter_unpack("<QQ", self._read(place + 24, 16 * count)):
            yield from self._leaves(child, level) if level else [child]

    def _unpack(self, form, place):
        return struct.unpack(f"<{form}", self._read(place, struct.calcsize(f"<{form}")))

    def _read(self, place, size):
        self._spend(size + STEP)
        if place + size > self.size:
            raise ValueError("it was cut short, or refers to what is beyond its end")
        self.file.seek(place)
        return self.file.read(size)

    def _spend(self, size):
        self.left -= size
        if self.left < 0:
            raise ValueError("it is made of more parts than any model")


def dataset(messages):
    """Kind, shape and layout of a dataset, and of a contiguous one, where its values begin and how large they are."""
    version, layout, place, size = struct.unpack_from("<BBQQ", messages[Message.LAYOUT].ljust(18, b"\0"))
    if version not in (3, 4):
        raise ValueError(NEWER)
    return (
        _kind(messages[Message.TYPE]),
        _shape(messages[Message.SHAPE]),
        layout,
        0 if place == NOWHERE else place,
        size,
    )


def _kind(message):
    number, size = message[0] & 15, int.from_bytes(message[4:8], "little")
    order = "big-endian " if message[1] & 1 and KINDS[number] in ("integer", "float") else ""
    dtype = next((dtype for start, dtype in DTYPES.items() if message.startswith(start)), None)
    return Kind(KINDS[number], size, dtype or f"{order}{KINDS[number]} of {size} bytes")


def _shape(message):
    version, axes, _, kind = message[:4]
    if version not in (1, 2) or axes > limits.HDF5_AXES or (version == 2 and kind == 2):
        raise ValueError("it has a shape that no tensor has")
    return struct.unpack_from(f"<{axes}Q", message, 8 if version == 1 else 4)


def _attribute(message):
    """Reads the message of an attribute."""
    version, shared, *sizes = struct.unpack_from("<BBHHH", message)
    if version not in (1, 2, 3) or (version > 1 and shared):
        raise ValueError("it has an attribute of another form")
    place, parts = 9 if version == 3 else 8, []
    for size in sizes:
        parts.append(message[place : place + size])
        place += size + (-size % 8 if version == 1 else 0)
    return Attribute(parts[0].rstrip(b"\0").decode(), *parts[1:], message[place:])
