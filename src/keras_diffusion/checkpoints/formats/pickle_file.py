"""Reads pickle checkpoints (.ckpt, .pt, .bin) without running them.

A pickle is a program for a machine with a stack. The machine here knows the instructions that build plain values, and
the few calls that checkpoints make: pickle_globals.json lists them as exact pairs of a module and a name, with what
each means here. Nothing is ever imported, and all else that a file asks for is refused.
"""

import os
import struct
from io import BytesIO, FileIO
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from keras_diffusion.checkpoints.formats.pickle_calls import little_endian, typed
from keras_diffusion.checkpoints.formats.pickle_interpreter import run
from keras_diffusion.checkpoints.formats.tensors import Tensor, mistaken_for
from keras_diffusion.errors import CorruptCheckpointError, UnsafeCheckpointError
from keras_diffusion.system import limits
from keras_diffusion.system.paths import existing_file

ZIP = b"PK\x03\x04"
MAGIC = (0x1950A86A20F9469CFC6C, 1001)  # the first two pickles of a file that is no zip file
HEAD = 100  # steps that each pickle before the content may take
DAMAGED = (  # what damaged files cause
    *(ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, OSError),
    *(BadZipFile, EOFError, struct.error, Warning),
)


def index(path):
    """Lists the tensors of a pickle checkpoint without reading their values.

    Args:
        path: The file.

    Returns:
        A dict from names to `Tensor`, in the order of the file: the tensors of its "state_dict" where it has one, else
        all. The names of nested dicts are joined by dots; tensors in lists have no name and are left out.

    Raises:
        UnsafeCheckpointError: If the file asks for anything that no checkpoint needs. Nothing of it was run.
        CorruptCheckpointError: If the file is damaged or of another kind.
    """
    return _examined(path, _names)


def contents(path):
    """Reads all of a pickle checkpoint but the values of its tensors.

    Args:
        path: The file.

    Returns:
        Dicts, lists, tuples, strings and numbers as the file nests them, and a `Tensor` for each tensor, named by the
        key of its storage. A class becomes its name. What appears twice in the file may be one object.

    Raises:
        UnsafeCheckpointError: If the file asks for anything that no checkpoint needs. Nothing of it was run.
        CorruptCheckpointError: If the file is damaged or of another kind.
    """
    return _examined(path, lambda content: content)


def _examined(path, result):
    """Returns what `result` makes of the content of a file; every error about the file is one of ours."""
    with _Bounded(existing_file(path)) as file:
        try:
            start = file.read(32)
            content = _read_zip(file) if start.startswith(ZIP) else _read_legacy(file, mistaken_for(start))
            return result(content)
        except UnsafeCheckpointError as error:
            raise UnsafeCheckpointError(f"{path} {error}") from None
        except DAMAGED as error:
            raise CorruptCheckpointError(f"{path} is damaged or no checkpoint: {error!s:.300}") from error


class _Bounded(FileIO):
    """A file of which nobody gets much at a time."""

    def read(self, size=-1):
        return super().read(limits.PICKLE if size < 0 else min(size, limits.PICKLE))


def _read_zip(file):
    """The content of a zip file: NAME/data.pkl and, as plain bytes, the storages NAME/data/KEY."""
    with ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ValueError("it holds several members of one name")
        for name, member in members.items():
            if member.compress_type != ZIP_STORED or member.flag_bits & 1 or member.compress_size != member.file_size:
                raise ValueError(f"its members may not be compressed or encrypted. Received: {name[:200]!r}")
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it must hold one data.pkl. Received: {len(pickles)}")
        folder = pickles[0].removesuffix("data.pkl")
        order = f"{folder}byteorder"
        for name in {pickles[0], order} & members.keys():
            if members[name].file_size > limits.PICKLE:
                raise ValueError(f"{name[:200]!r} may have {limits.PICKLE} bytes. Received: {members[name].file_size}")
        little_endian(order not in members or archive.read(order) == b"little")
        data = archive.read(pickles[0])
    starts = {}

    def place(key, numel, itemsize):
        if key not in starts:
            name = f"{folder}data/{key}"
            if name not in members or not key.isdecimal():
                raise ValueError(f"it lacks a storage. Received: {key[:200]!r}")
            starts[key] = _start(file, members[name])
        if members[f"{folder}data/{key}"].file_size != numel * itemsize:
            raise ValueError(f"storage {key[:200]!r} is not as large as its tensors say")
        return starts[key]

    return run(BytesIO(data), Path(file.name), place)


def _start(file, member):
    """Returns where the bytes of a member begin."""
    file.seek(member.header_offset)
    signature, *lengths = struct.unpack("<4s22xHH", file.read(30))
    start = file.tell() + sum(lengths)
    if signature != ZIP or start + member.file_size > os.fstat(file.fileno()).st_size:
        raise ValueError(f"it has no room for {member.filename[:200]!r}")
    return start


def _read_legacy(file, mistaken):
    """The content of a file of the older kind: five pickles, then each storage after its length."""
    if mistaken:
        raise ValueError(f"it is {mistaken}")
    file.seek(0)
    data, storages, starts = BytesIO(file.read()), {}, {}
    for number in MAGIC:
        if run(data, steps=HEAD) != number:
            raise ValueError("it does not begin as checkpoints do")
    little_endian(typed(run(data, steps=HEAD), dict).get("little_endian") is True)
    body = data.tell()

    def note(key, *size):
        if storages.setdefault(key, size) != size:
            raise ValueError(f"storage {key[:200]!r} has two sizes")
        return 0

    run(data, Path(file.name), note)
    keys = run(data)
    if sorted(typed(key, str) for key in typed(keys, list)) != sorted(storages):
        raise ValueError("its list of storages is not that of its tensors")
    position = data.tell()
    for key in keys:
        numel, itemsize = storages[key]
        file.seek(position)
        if int.from_bytes(file.read(8), "little") != numel:
            raise ValueError(f"storage {key[:200]!r} is not as large as its tensors say")
        starts[key], position = position + 8, position + 8 + numel * itemsize
    if position > os.fstat(file.fileno()).st_size:
        raise ValueError("it was cut short")
    data.seek(body)
    return run(data, Path(file.name), lambda key, *size: starts[key])


def _names(content):
    """The tensors of nested dicts by their joined names."""
    if not isinstance(content, dict):
        raise ValueError(f"it must hold a dict of tensors. Received: {type(content).__name__}")
    if isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    tensors = {}
    for name, tensor in _flat(content, ""):
        if name in tensors:
            raise ValueError(f"it holds two tensors of one name. Received: {name[:200]!r}")
        if len(tensors) == limits.TENSORS:
            raise ValueError(f"it holds more than {limits.TENSORS} tensors")
        tensors[name] = tensor._replace(name=name)
    return tensors


def _flat(content, prefix):
    for key, value in content.items():
        name = f"{prefix}{key}"
        if len(name) > limits.NAME:
            raise ValueError(f"it has a name of more than {limits.NAME} characters. Received: {name[:200]!r}")
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, dict):
            yield from _flat(value, f"{name}.")
