"""The reader and writer of safetensors, beside the official one."""

import json
import os
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_diffusion.checkpoints.formats import safetensors
from keras_diffusion.checkpoints.formats.tensors import DTYPES, largest, read
from keras_diffusion.errors import CorruptCheckpointError


def write(path, header, data=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def entry(**changes):
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}


def bfloat16(array):
    """The upper halves of float32 numbers that bfloat16 can hold."""
    bits = array.astype("<f4").view("<u4")
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype("<u2").tobytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_reads_what_the_official_writer_writes(path, dtype):
    random = np.random.default_rng(0)
    arrays = {"a": random.normal(size=(2, 3, 4)), "b.c": random.normal(size=()), "empty": np.zeros((0, 5))}
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    save_file(arrays, path, {"format": "pt"})

    tensors = safetensors.index(path)

    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert tensors[name].shape == array.shape
        values = read(tensors[name])
        assert values.dtype == dtype
        np.testing.assert_array_equal(values, array)


def test_reads_bfloat16_as_float32(path):
    array = np.array([[1.0, -2.5, 3.0e38], [1e-40, -0.0, 0.15625]], "float32")
    array = (array.view("uint32") & 0xFFFF0000).view("float32")
    write(path, {"a": entry(dtype="BF16", shape=[2, 3], data_offsets=[0, 12])}, bfloat16(array))

    values = read(safetensors.index(path)["a"])

    assert values.dtype == "float32"
    np.testing.assert_array_equal(values.view("uint32"), array.view("uint32"))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_official_reader_reads_what_is_written(path, dtype):
    arrays = {"b": np.arange(6.0).reshape(2, 3), "a": np.array([0.1, -7.0])}
    safetensors.write(path, dtype, {name: array.shape for name, array in arrays.items()}, arrays.values())

    for name, values in load_file(path).items():
        assert values.dtype == dtype
        np.testing.assert_array_equal(values, arrays[name].astype(dtype))


def test_writes_the_bfloat16_that_torch_rounds_to(path):
    import torch
    from safetensors.torch import load_file

    random = np.random.default_rng(0).integers(0, 2**32, 2**20, "uint32")
    upper = np.arange(2**16, dtype="uint32") << 16  # and what lies halfway, and just beside it
    bits = np.concatenate([random, *(upper + lower for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF))])
    array = bits.view("float32")
    array = array[np.abs(array) < 2.0**128 - 2.0**119].reshape(-1, 2)
    safetensors.write(path, "bfloat16", {"a": array.shape, "b": ()}, [array.T.copy().T, np.float32(0.1)])

    written, expected = load_file(path), {"a": torch.tensor(array).bfloat16(), "b": torch.tensor(0.1).bfloat16()}
    for name, tensor in expected.items():
        assert written[name].dtype == torch.bfloat16
        assert torch.equal(written[name].view(torch.int16), tensor.view(torch.int16))


@pytest.mark.parametrize("name", ["a", "ab", "abc", "abcd", "abcde"])
def test_tensors_begin_at_multiples_of_8(path, name):
    safetensors.write(path, "float32", {name: (1,)}, [np.ones(1)])
    assert safetensors.index(path)[name].offset % 8 == 0


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([0.5, -3.0, 2.0], 3.0),
        ([0.5, 3.0, -2.0], 3.0),
        ([3.0, -0.5], 3.0),
        ([-0.5, -0.25], 0.5),
        ([0.0, -0.0], 0.0),
        ([1.0, np.inf], np.inf),
        ([1.0, -np.inf, 2.0], np.inf),
        ([np.inf, -1.0], np.inf),
        ([np.inf, 1.0, np.nan], np.nan),
        ([1.0, -np.nan], np.nan),
        ([], 0.0),
    ],
)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_finds_the_largest_magnitude(path, monkeypatch, dtype, numbers, expected):
    monkeypatch.setattr("keras_diffusion.checkpoints.formats.tensors.CHUNK", 2)
    array = np.array(numbers, "float32")
    data = {"F32": array.tobytes, "F16": array.astype("float16").tobytes, "BF16": lambda: bfloat16(array)}[dtype]()
    write(path, {"a": entry(dtype=dtype, shape=[len(numbers)], data_offsets=[0, len(data)])}, data)

    np.testing.assert_equal(largest(safetensors.index(path)["a"]), expected)


HOSTILE = {
    "empty": b"",
    "cut in the length": b"\x10\x00\x00",
    "cut in the header": struct.pack("<Q", 100) + b"{}",
    "length beyond the file": struct.pack("<Q", 24_000_000) + b"{}",
    "length beyond everything": struct.pack("<Q", 2**64 - 1) + b"{}",
    "header too long": struct.pack("<Q", 25_000_001) + b"{}",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3438167540\n",
    "HTML page": b"<!DOCTYPE html><html><title>404</title></html>",
    "zip archive": b"PK\x03\x04" + bytes(60),
    "HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(60),
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(60),
    "GGUF file": b"GGUF\x03" + bytes(60),
}
HEADERS = {
    "trailing bytes": ({"a": entry()}, bytes(5)),
    "too few bytes": ({"a": entry()}, bytes(3)),
    "hole": ({"a": entry(data_offsets=[4, 8])}, bytes(8)),
    "overlap": ({"a": entry(), "b": entry()}, bytes(4)),
    "partial overlap": ({"a": entry(shape=[2], data_offsets=[0, 8]), "b": entry(data_offsets=[4, 8])}, bytes(8)),
    "offsets reversed": ({"a": entry(data_offsets=[4, 0])}, bytes(4)),
    "offsets negative": ({"a": entry(data_offsets=[-4, 0])}, bytes(4)),
    "offsets huge": ({"a": entry(data_offsets=[0, 2**63])}, bytes(4)),
    "shape does not fit": ({"a": entry(shape=[2])}, bytes(4)),
    "shape negative": ({"a": entry(shape=[-1])}, bytes(4)),
    "shape overflows": ({"a": entry(shape=[2**32, 2**32 + 1])}, bytes(4)),
    "shape of floats": ({"a": entry(shape=[1.0])}, bytes(4)),
    "unknown dtype": ({"a": entry(dtype="F31")}, bytes(4)),
    "endless dtype": ({"a": entry(dtype="F" * 10**6)}, bytes(4)),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "tensor is a number": ({"a": 1}, b""),
    "header is a list": ([], b""),
    "header is not JSON": (b"{'a': 1}", b""),
    "header goes on": (b"{}{}", b""),
    "header nested deeply": (b'{"a":' + b"[" * 200_000, b""),
    "not UTF-8": (b'{"\xff": 1}', b""),
    "half a surrogate": (b'{"\\ud800": 1}', b""),
    "more tensors than any model": ({f"t{i}": entry(shape=[0], data_offsets=[0, 0]) for i in range(10_001)}, b""),
    "metadata of numbers": ({"__metadata__": {"format": 1}}, b""),
}


@pytest.mark.parametrize("name", [*HOSTILE, *HEADERS])
def test_refuses_a_damaged_file(path, refused, name):
    if name in HOSTILE:
        path.write_bytes(HOSTILE[name])
    else:
        write(path, *HEADERS[name])
    refused("safetensors", path)


@pytest.mark.parametrize("name", ["Git LFS pointer", "HTML page", "zip archive", "HDF5 file", "picture", "GGUF file"])
def test_says_what_was_taken_for_a_checkpoint(path, name):
    path.write_bytes(HOSTILE[name])
    with pytest.raises(CorruptCheckpointError, match=name):
        safetensors.index(path)


def test_refuses_every_shorter_file(path):
    save_file({"a": np.arange(4.0), "b": np.ones(3, "float32")}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptCheckpointError):
            safetensors.index(path)


def test_survives_changed_bytes(path):
    """Whatever is changed: our own error, or tensors that can be read."""
    save_file({"a": np.arange(4.0, dtype="float32"), "b": np.ones((3, 2), "float16")}, path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    count = 0
    for _ in range(300):
        changed = bytearray(whole)
        for place in random.integers(0, len(whole), random.integers(1, 4)):
            changed[place] = random.integers(256)
        path.write_bytes(changed)
        try:
            tensors = safetensors.index(path)
        except CorruptCheckpointError:
            continue
        for tensor in tensors.values():
            if tensor.dtype in DTYPES:
                assert read(tensor).shape == tensor.shape
                count += 1
    assert count > 30


@pytest.mark.parametrize("reader", [read, largest])
def test_notices_a_file_cut_short_after_it_was_listed(path, reader):
    save_file({"a": np.arange(4.0, dtype="float32")}, path)
    tensor = safetensors.index(path)["a"]
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(CorruptCheckpointError, match="cut short"):
        reader(tensor)
