"""Files of weights as Keras writes them: what is read exactly, and what is refused.

That the names and their order are KerasCV's is shown by golden/keras_cv.npz, in test_keras_names.py.
"""

import struct

import h5py
import keras
import numpy as np
import pytest

from keras_diffusion.architectures import TINY
from keras_diffusion.checkpoints.formats import hdf5_file
from keras_diffusion.checkpoints.formats.tensors import read
from keras_diffusion.checkpoints.layouts import files, keras_files
from keras_diffusion.checkpoints.layouts.keras_files import KerasCVFolder
from keras_diffusion.errors import (
    CheckpointError,
    CheckpointMismatchError,
    CorruptCheckpointError,
)
from keras_diffusion.networks.controlnet import ControlNet

NAMES = ["text_encoder", "diffusion_model", "image_encoder", "decoder"]
WRITERS = {  # suffix → what writes it
    ".weights.h5": lambda network, path: network.save_weights(path),
    ".whole.h5": lambda network, path: keras.Model.save(network, path),
    ".kerascv.weights.h5": lambda network, path: keras_files.write(path, network),
    ".kerascv.h5": lambda network, path: keras_files.write(path, network),
}


def assert_equal(one, other):
    for a, b in zip(one.variables, other.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))


@pytest.fixture
def blank(small, emptied):
    return emptied(small)


@pytest.fixture
def untouched(blank):
    """Checks afterwards that nothing was loaded into the networks, whose kernels are zero."""
    yield blank
    for network in blank.values():
        assert not any(keras.ops.convert_to_numpy(v).any() for v in network.variables if v.name == "kernel")


@pytest.fixture
def legacy(tmp_path, networks):
    """A decoder's .h5 in the layout of Keras 2."""
    keras_files.write(tmp_path / "decoder.h5", networks["decoder"])
    return tmp_path / "decoder.h5"


# ---- What is exact


@pytest.mark.backend
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_exact(networks, blank, tmp_path, name, suffix):
    path = tmp_path / f"file{suffix}"
    WRITERS[suffix](networks[name], path)
    blank[name].load_weights(path)
    assert_equal(blank[name], networks[name])


def test_keras_itself_loads_what_it_saved(networks, blank, tmp_path):
    networks["decoder"].save_weights(tmp_path / "a.weights.h5")
    keras.Model.load_weights(blank["decoder"], tmp_path / "a.weights.h5")
    assert_equal(blank["decoder"], networks["decoder"])


def test_networks_that_keras_cv_has_not_are_loaded_by_keras(tmp_path):
    keras.utils.set_random_seed(0)
    saved, loaded = ControlNet(architecture=TINY), ControlNet(architecture=TINY)
    saved.save_weights(tmp_path / "own.weights.h5")
    loaded.load_weights(tmp_path / "own.weights.h5")
    for ours, theirs in zip(loaded.get_weights(), saved.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.backend
def test_an_optimizer_is_restored(small, build, tmp_path):
    first, second = (build(small, ["decoder"])["decoder"] for _ in range(2))
    for network in (first, second):
        network.compile(optimizer="adam", loss="mse")
        network.optimizer.build(network.trainable_variables)
    first.optimizer.iterations.assign(7)
    first.save_weights(tmp_path / "a.weights.h5")
    second.load_weights(tmp_path / "a.weights.h5")
    assert int(second.optimizer.iterations) == 7


def test_the_state_of_another_optimizer_is_refused(small, build, tmp_path):
    first, second = (build(small, ["decoder"])["decoder"] for _ in range(2))
    for network in (first, second):
        network.compile(optimizer="sgd", loss="mse")
        network.optimizer.build(network.trainable_variables)
    first.variables[0].assign(first.variables[0] + 1)
    first.save_weights(tmp_path / "a.weights.h5")
    with h5py.File(tmp_path / "a.weights.h5", "a") as file:
        del file["optimizer/vars/0"]
        file["optimizer/vars/0"] = np.zeros(3)
    before = keras.ops.convert_to_numpy(second.variables[0])
    with pytest.raises(CheckpointMismatchError, match=r"optimizer/vars/0: F64 \(3,\), not"):
        second.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(second.variables[0]), before)


def test_a_folder(networks, blank, tmp_path, small, monkeypatch):
    monkeypatch.setitem(keras_files.KNOWN, small.text_encoder.width, small)
    assert not files.is_keras_cv(tmp_path)
    for name, (file, *_) in files.KERAS_CV.items():
        keras_files.write(tmp_path / file, networks[name])
    assert files.is_keras_cv(tmp_path)
    folder = KerasCVFolder(tmp_path)
    folder.load(**blank)
    assert folder.architecture == small
    assert folder.scheduler_config["beta_schedule"] == "scaled_linear"
    stored = sum(tensor.size for part in files.WEIGHTS for tensor in folder.tensors(part).values())
    assert stored == sum(network.count_params() for network in networks.values())
    for name in NAMES:
        assert_equal(blank[name], networks[name])


def test_a_folder_that_lacks_a_file(networks, untouched, tmp_path, small, monkeypatch):
    monkeypatch.setitem(keras_files.KNOWN, small.text_encoder.width, small)
    for name in NAMES[:-1]:
        keras_files.write(tmp_path / files.KERAS_CV[name][0], networks[name])
    with pytest.raises(CorruptCheckpointError, match="kcv_decoder"):
        KerasCVFolder(tmp_path).load(**untouched)


# ---- What is refused


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5"])
def test_refuses_the_file_of_another_network(networks, untouched, tmp_path, suffix):
    keras_files.write(tmp_path / f"a{suffix}", networks["image_encoder"])
    with pytest.raises(CheckpointMismatchError) as caught:
        untouched["decoder"].load_weights(tmp_path / f"a{suffix}")
    assert caught.value.missing


def test_names_everything_that_does_not_fit(networks, untouched, tmp_path):
    path = tmp_path / "a.weights.h5"
    keras_files.write(path, networks["decoder"])
    with h5py.File(path, "a") as file:
        del file["layers/padded_conv2d/conv2d/vars/1"], file["layers/padded_conv2d_1/conv2d/vars/1"]
        file["layers/padded_conv2d_1/conv2d/vars/1"] = np.zeros(3, "float32")
        file["layers/more/vars/0"] = np.zeros(1, "float32")
    with pytest.raises(CheckpointMismatchError) as caught:
        untouched["decoder"].load_weights(path)
    assert caught.value.missing == ["decoder/layers/padded_conv2d/conv2d/vars/1"]
    assert caught.value.unexpected == ["decoder/layers/more/vars/0"]
    assert caught.value.mismatched == ["decoder/layers/padded_conv2d_1/conv2d/vars/1: shape (3,), not (16,)"]


@pytest.mark.parametrize(("one", "reason"), [(0, "in the place of"), (2, "out of the order")])
def test_order_alone_is_not_enough(legacy, untouched, one, reason):
    """The shapes fit: first gamma and beta, then the kernels of query and key change places."""
    with h5py.File(legacy, "a") as file:
        parts = {part: f"padded_conv2d_{i}" for i, part in enumerate(["q", "k", "v", "proj_out"])}
        for layer in file.attrs["layer_names"]:  # named as by KerasCV on Keras 2: alike but for numbers, unlike ours
            steps = [name.split("/") for name in file[layer].attrs["weight_names"]]
            names = ["/".join(["x", *(parts.get(step, step) for step in name)]) for name in steps]
            for old, new in zip(file[layer].attrs["weight_names"], names, strict=True):
                file[layer].move(old, new)
            if layer == "attention_block":
                other = one + 1 if one == 0 else one + 2
                names[one], names[other] = names[other], names[one]
            file[layer].attrs["weight_names"] = names
    with pytest.raises(CheckpointMismatchError, match=reason):
        untouched["decoder"].load_weights(legacy)


def test_refuses_options_that_load_a_part(legacy, untouched):
    with pytest.raises(ValueError, match="strictly"):
        untouched["decoder"].load_weights(legacy, skip_mismatch=True)


def test_writes_nothing_over_a_file(legacy, networks):
    with pytest.raises(FileExistsError):
        keras_files.write(legacy, networks["decoder"])


# ---- Hostile files, for the reader alone


def cyclic(file):
    file["a/b"] = file["/"]


def external(file):
    file.create_dataset("x", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def virtual(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("x", layout)


def deep(file):
    file["/".join("a" * 40)] = np.zeros(1, "float32")


def many(file):
    for i in range(hdf5_file.limits.HDF5_OBJECTS + 1):
        file.create_group(f"g{i}")


def many_attributes(file):
    for i in range(2000):
        file.attrs[f"layer_names{i}"] = np.zeros(100, "S90")


def listed(value):
    return lambda file: file.attrs.update(layer_names=value)


HOSTILE = {
    "soft link": ("UnsafeCheckpointError", lambda file: file.update(x=h5py.SoftLink("/layers"))),
    "dangling link": ("UnsafeCheckpointError", lambda file: file.update(x=h5py.SoftLink("/nowhere"))),
    "external link": ("UnsafeCheckpointError", lambda file: file.update(x=h5py.ExternalLink("/etc/passwd", "/"))),
    "external storage": ("UnsafeCheckpointError", external),
    "virtual dataset": ("UnsafeCheckpointError", virtual),
    "cycle": ("UnsafeCheckpointError", cyclic),
    "two names": ("UnsafeCheckpointError", lambda file: file.update(y=file["layers/a"])),
    "chunked": ("CorruptCheckpointError", lambda file: file.create_dataset("x", (4,), "f4", chunks=(2,))),
    "shape bomb": ("CorruptCheckpointError", lambda file: file.create_dataset("x", (2**40,), "f4", compression="gzip")),
    "no values": ("CorruptCheckpointError", lambda file: file.create_dataset("x", (2**40,), "f4")),
    "null dataspace": ("CorruptCheckpointError", lambda file: file.create_dataset("x", data=h5py.Empty("f4"))),
    "named type": ("CorruptCheckpointError", lambda file: file.update(x=np.dtype("f4"))),
    "deep": ("CorruptCheckpointError", deep),
    "many": ("CorruptCheckpointError", many),
    "lists what is not there": ("CorruptCheckpointError", listed(["gone"])),
    "lists a number": ("CorruptCheckpointError", listed(7)),
    "lists numbers": ("CorruptCheckpointError", listed([1.0, 2.0])),
    "lists a layer twice": ("CorruptCheckpointError", listed(["legacy", "legacy"])),
    "lists a long name": ("CorruptCheckpointError", listed(["a" * 5000])),
    "lists a name that is no text": ("CorruptCheckpointError", listed([b"\xff"])),
    "lists names in a table": ("CorruptCheckpointError", listed(np.full((2, 2), b"legacy"))),
    "lists more names than there are": ("CorruptCheckpointError", listed(np.full(60_000, b"a"))),
    "long name": ("CorruptCheckpointError", lambda file: file.create_group("a" * 1001)),
    "long path": ("CorruptCheckpointError", lambda file: file.create_group("/".join(["a" * 300] * 5))),
    "many long names": ("CorruptCheckpointError", lambda file: [file.create_group(f"{i:0999}") for i in range(17_000)]),
    "many attributes": ("CorruptCheckpointError", many_attributes),
    "creation order": ("CorruptCheckpointError", lambda file: file.create_group("x", track_order=True)),
    "lists above the root": ("CorruptCheckpointError", listed(["../../etc/passwd"])),
}


@pytest.fixture
def plain(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["layers/a"] = np.arange(4.0, dtype="float32")
        file["legacy/w:0"] = np.arange(4.0, dtype="float16")
        file["legacy"].attrs["weight_names"] = ["w:0"]
    return tmp_path / "a.h5"


def test_reads_what_h5py_writes(plain):
    with h5py.File(plain, "a") as file:
        file["b"] = np.zeros(3)
        file["c"] = np.zeros(3, ">f4")
    tensors = keras_files.index(plain)
    np.testing.assert_array_equal(read(tensors["layers/a"]), np.arange(4))
    np.testing.assert_array_equal(read(tensors["legacy/w:0"]), np.arange(4))
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "b": "F64",
        "c": "big-endian float of 4 bytes",
        "layers/a": "F32",
        "legacy/w:0": "F16",
    }


@pytest.mark.parametrize("name", HOSTILE)
def test_refuses_a_hostile_file(plain, refused, name):
    error, change = HOSTILE[name]
    with h5py.File(plain, "a") as file:
        change(file)
    refused("datasets", plain, error)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "something else"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "damaged"),
        (b"PK\x03\x04", "zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html>", "HTML page"),
    ],
)
def test_says_what_was_taken_for_a_file(tmp_path, content, kind):
    path = tmp_path / "a.h5"
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=kind):
        keras_files.index(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        keras_files.index(tmp_path / "a.h5")


def test_refuses_every_shorter_file(plain):
    whole = plain.read_bytes()
    for length in range(0, len(whole), 13):
        plain.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            keras_files.index(plain)


def pack(*numbers):
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def number(content, place):
    return int.from_bytes(content[place : place + 8], "little")


def patch(start, offset, change):
    """Changes what lies `offset` bytes behind the first place that begins so."""

    def run(content):
        place = content.index(start) + offset
        new = change if isinstance(change, bytes) else change(content, place)
        content[place : place + len(new)] = new

    return run


def reference(content):
    """Where the file refers to the name of its layer, a string of 7 bytes in a collection."""
    return content.index(struct.pack("<IQ", 7, content.index(b"GCOL")))


def root(offset, change):
    """Changes what lies `offset` bytes behind the beginning of the outermost group."""

    def run(content):
        place = number(content, 64) + offset
        new = change(content, place) if callable(change) else change
        content[place : place + len(new)] = new

    return run


HUGE, LAST = 2**63, 2**64 - 1
LIES = {  # what was changed → how
    "a string of 4 GiB": lambda content: struct.pack_into("<I", content, reference(content), 2**32 - 1),
    "a string in no collection": lambda content: struct.pack_into("<Q", content, reference(content) + 4, 96),
    "a string far away": lambda content: struct.pack_into("<Q", content, reference(content) + 4, LAST),
    "a string that is not there": lambda content: struct.pack_into("<I", content, reference(content) + 12, 99),
    "a collection of strings beyond the end": patch(b"GCOL", 8, pack(HUGE)),
    "a string beyond its collection": patch(b"GCOL", 24, pack(HUGE)),
    "no collection of strings": patch(b"GCOL", 0, b"GCOX"),
    "a collection of another version": patch(b"GCOL", 4, b"\2"),
    "a tree that contains itself": patch(b"TREE", 5, lambda content, place: b"\1"),
    "a tree of many levels": patch(b"TREE", 5, b"\xff"),
    "a tree of many branches": patch(b"TREE", 6, b"\xff\xff"),
    "a tree of another kind": patch(b"TREE", 4, b"\1"),
    "a branch far away": patch(b"TREE", 32, pack(HUGE)),
    "no tree": patch(b"TREE", 0, b"TRUE"),
    "many symbols": patch(b"SNOD", 6, b"\xff\xff"),
    "a symbol far away": patch(b"SNOD", 16, pack(LAST)),
    "a name far away": patch(b"SNOD", 8, pack(HUGE)),
    "no symbols": patch(b"SNOD", 0, b"SNOT"),
    "many names": patch(b"HEAP", 8, pack(HUGE)),
    "names far away": patch(b"HEAP", 24, pack(LAST)),
    "no names": patch(b"HEAP", 0, b"HELP"),
    "a header without an end": root(8, struct.pack("<I", 2**32 - 1)),
    "a header of another version": root(0, b"\2"),
    "a header that goes on in itself": root(16, lambda _, place: struct.pack("<HHI", 16, 16, 0) + pack(place, 24)),
    "a header that goes on far away": root(16, struct.pack("<HHI", 16, 16, 0) + pack(HUGE, HUGE)),
    "wider addresses": lambda content: content.__setitem__(13, 4),
    "another version": lambda content: content.__setitem__(8, 2),
    "no such version": lambda content: content.__setitem__(8, 9),
    "another beginning": lambda content: content.__setitem__(slice(24, 32), pack(512)),
    "a later end": lambda content: content.__setitem__(slice(40, 48), pack(LAST)),
    "a first group far away": lambda content: content.__setitem__(slice(64, 72), pack(LAST)),
}


def endless(message, count):
    """Has the header of the outermost group go on at the end of the file, with many messages."""

    def change(content):
        end, more = len(content), b"".join(message(i) for i in range(count))
        root(16, struct.pack("<HHI", 16, 16, 0) + pack(end, len(more)))(content)
        content += more

    return change


LIES |= {
    "endless attributes": endless(lambda i: pack(16 << 16 | 12, 7 << 16 | 3) + b"\0%07d" % i, 200_000),
    "endless empty attributes": endless(lambda i: struct.pack("<HHI2B3H", 12, 8, 0, 1, 0, 0, 0, 0), 209_000),
    "endless messages": endless(lambda i: bytes(8), 2_000_000),
}


@pytest.fixture
def described(tmp_path):
    """A file of one tensor with all that makes up one."""
    path = tmp_path / "described.h5"
    with h5py.File(path, "w") as file:
        file["a layer/w"] = np.ones((2, 3), "float32")
        file["a layer"].attrs["weight_names"] = ["w"]
        file.attrs["layer_names"] = ["a layer"]
    return path


def test_reads_strings_of_any_length(described):
    assert list(hdf5_file.index(described)) == ["a layer/w"]


def test_free_space_of_no_length_has_an_end(described, sandbox):
    content = bytearray(described.read_bytes())
    free = content.index(b"GCOL") + 16
    while content[free]:  # the strings are numbered from 1
        free += 16 + -(-number(content, free + 8) // 8) * 8
    content[free + 8 : free + 16] = bytes(8)
    described.write_bytes(content)
    assert sandbox("datasets", described)["names"] == ["a layer/w"]


@pytest.mark.parametrize("libver", ["v108", "v110", "latest"])
def test_says_that_a_form_is_not_kerass(tmp_path, refused, libver):
    with h5py.File(tmp_path / "a.h5", "w", libver=libver) as file:
        file["a"] = np.zeros(3, "float32")
    assert "save it again" in refused("datasets", tmp_path / "a.h5")


def test_lists_what_the_library_lists(tmp_path):
    """More than fits one leaf of a tree, and more names than fit one attribute."""
    layers = [f"layer_{i:04}" for i in range(3000)]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for layer in layers:
            file[f"{layer}/b/w:0"] = np.zeros((3, 2), "float32")
            file[f"{layer}/a"] = np.zeros((0, 2), "float16")
            file[f"{layer}"].attrs["weight_names"] = [b"b/w:0", b"a"]
        for i, part in enumerate(np.array_split(layers[::-1], 2)):
            file.attrs[f"layer_names{i}"] = np.array(part, "S")
    tensors = hdf5_file.index(tmp_path / "a.h5")
    assert list(tensors) == [f"{layer}/{name}" for layer in layers[::-1] for name in ("b/w:0", "a")]
    with h5py.File(tmp_path / "a.h5") as file:
        for name, tensor in tensors.items():
            item = file[name]
            assert (tensor.shape, tensor.offset) == (item.shape, item.id.get_offset() or 0)


@pytest.mark.parametrize("name", LIES)
def test_refuses_a_structure_that_lies(described, refused, name):
    content = bytearray(described.read_bytes())
    whole = bytes(content)
    LIES[name](content)
    assert content != whole
    described.write_bytes(content)
    refused("datasets", described)


def test_survives_changed_bytes(plain):
    """Whatever is changed: our own error, or tensors that can be read."""
    whole, random = plain.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(whole)
        for place in random.integers(0, len(whole), random.integers(1, 4)):
            changed[place] = random.integers(256)
        plain.write_bytes(changed)
        try:
            tensors = keras_files.index(plain)
        except CheckpointError:
            continue
        for tensor in tensors.values():
            if tensor.dtype in ("F32", "F16"):
                assert read(tensor).shape == tensor.shape
