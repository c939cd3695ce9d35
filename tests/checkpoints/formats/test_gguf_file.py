"""GGUF files: what the package gguf reads from them, and what is refused."""

import struct
from pathlib import Path

import numpy as np
import pytest

from keras_diffusion import CheckpointMismatchError, CorruptCheckpointError
from keras_diffusion.checkpoints.formats import tensor_index
from keras_diffusion.checkpoints.formats.gguf_blocks import QUANTISED
from keras_diffusion.checkpoints.formats.tensors import blocks, largest, nbytes, read, thirds
from keras_diffusion.system import limits

FOLDER = Path(__file__).parents[2] / "golden"

FILE = FOLDER / "types.gguf"


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def entry(name="a", shape=(2,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, offset)


def contents(*entries, keys=(), version=3, count=None, data=bytes(64)):
    """A GGUF file."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(entries) if count is None else count, len(keys))
    head += b"".join(keys) + b"".join(entries)
    return head + bytes(-len(head) % 32) + data


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


def test_reads_every_type_bit_for_bit():
    found, expected = tensor_index.index(FILE), np.load(FOLDER / "types.npz")
    assert found.keys() == set(expected)
    assert QUANTISED.keys() <= {tensor.dtype for tensor in found.values()}
    for name, tensor in found.items():
        np.testing.assert_array_equal(read(tensor), expected[name])
        assert largest(tensor) == np.abs(expected[name]).max()
    assert tensor_index.metadata(FILE) == {}


@pytest.mark.parametrize("name", ["Q5_1.weight", "conv.weight"])
def test_reads_a_few_rows_at_a_time_and_thirds(name, monkeypatch):
    monkeypatch.setattr("keras_diffusion.checkpoints.formats.tensors.CHUNK", 128)
    tensor, expected = tensor_index.index(FILE)[name], np.load(FOLDER / "types.npz")[name]
    parts = [(start, bits.view("f4").reshape(-1, *tensor.shape[1:]).copy()) for start, bits in blocks(tensor)]
    assert len(parts) > 1
    for start, rows in parts:
        np.testing.assert_array_equal(rows, expected[start : start + len(rows)])
    for ours, theirs in zip(thirds(tensor), np.split(expected, 3), strict=True) if name == "Q5_1.weight" else ():
        np.testing.assert_array_equal(read(ours), theirs)
    assert nbytes(tensor) == tensor.size // 32 * 24
    with pytest.raises(CorruptCheckpointError, match="ends within a block"):
        thirds(tensor._replace(shape=(3, 5)))


HOSTILE = {
    "empty": b"GGUF",
    "version": contents(version=4),
    "cut in the header": contents(count=2, data=b""),
    "tensors": contents(count=limits.TENSORS + 1),
    "name": contents(entry("a" * (limits.NAME + 1))),
    "name that is no text": contents(entry("a").replace(b"a", b"\xff")),
    "length of a name": contents(struct.pack("<Q", 2**62)),
    "axes": contents(entry(shape=(1,) * (limits.AXES + 1))),
    "shape": contents(entry(shape=(2**40, 2**40))),
    "size": contents(entry(shape=(17,))),
    "offset": contents(entry(offset=2**62)),
    "offset between": contents(entry(offset=4)),
    "rows of part of a block": contents(entry(shape=(32, 2), kind=8), data=bytes(128)),
    "twice": contents(entry(), entry()),
    "type": contents(entry(kind=99)),
    "type of a key": contents(keys=[key("a", 77, b"")]),
    "list in a list": contents(keys=[key("a", 9, struct.pack("<IQ", 9, 10**9))]),
    "long list": contents(keys=[key("a", 9, struct.pack("<IQ", 0, 2**61))]),
    "long list of texts": contents(keys=[key("a", 9, struct.pack("<IQ", 8, 2**61))]),
    "alignment": contents(keys=[key("general.alignment", 4, struct.pack("<I", 3))]),
    "other shape": contents(entry(), keys=[key("comfy.gguf.orig_shape.a", 9, struct.pack("<IQi", 5, 1, 3))]),
    "shape of text": contents(entry(), keys=[key("comfy.gguf.orig_shape.a", 8, text("2"))]),
    "negative shape": contents(entry(), keys=[key("comfy.gguf.orig_shape.a", 9, struct.pack("<IQ2i", 5, 2, -1, -2))]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refuses_a_damaged_file(path, refused, name):
    path.write_bytes(HOSTILE[name])
    refused("gguf", path)


def test_refuses_every_shorter_file(path):
    whole = FILE.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptCheckpointError):
            tensor_index.index(path)


def test_names_the_types_it_does_not_read(path):
    path.write_bytes(contents(entry(kind=12), entry("b", kind=14)))
    with pytest.raises(CheckpointMismatchError, match=r"holds tensors of Q4_K, Q6_K\. Get .* Q8_0"):
        tensor_index.index(path)


def test_finds_what_is_not_finite(path):
    path.write_bytes(contents(entry(shape=(32,), kind=8), data=struct.pack("<e32b", np.inf, *range(32)) + bytes(30)))
    assert np.isnan(largest(tensor_index.index(path)["a"]))
