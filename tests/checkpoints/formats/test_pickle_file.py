"""The reader of pickle checkpoints, on files of the real writer and on hostile ones."""

import os
import pickle
import pickletools
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from keras_diffusion.checkpoints.formats import pickle_file
from keras_diffusion.checkpoints.formats.gguf_blocks import QUANTISED
from keras_diffusion.checkpoints.formats.tensors import DTYPES, READABLE, Tensor, largest, read
from keras_diffusion.errors import CheckpointError, CorruptCheckpointError

GOLDEN = Path(__file__).parents[2] / "golden"
DEEP = 200_000
DEEP_TUPLE = b")" + b"\x85" * DEEP
FOUR = np.array([0.5, -3.0, 2.0, 1.0], "<f4").tobytes()
# A small assembler. Nothing is put in the memo that is not needed, so its pieces fit together.


def value(content):
    return pickletools.optimize(pickle.dumps(content, 2))[2:-1]


def name(module, what):
    return f"c{module}\n{what}\n".encode()


def call(function, *arguments):
    return function + b"(" + b"".join(arguments) + b"tR"


def mapping(**items):
    return b"}(" + b"".join(value(key) + item for key, item in items.items()) + b"u"


def storage(kind="FloatStorage", key="0", numel=4, kwargs=(), what="storage"):
    more = b"".join((value(key), value("cpu"), value(numel), *kwargs))
    return b"(" + value(what) + name("torch", kind) + more + b"tQ"


def tensor(offset=0, shape=(4,), strides=(1,), **options):
    hooks = call(name("collections", "OrderedDict"))
    view = map(value, (offset, shape, strides, False))
    return call(name("torch._utils", "_rebuild_tensor_v2"), storage(**options), *view, hooks)


def program(content):
    return b"\x80\x02" + content + b"."


def zipped(path, content, storages=None, **members):
    """Writes a checkpoint as a zip file; `content` is a pickle without beginning and end."""
    members = {"data.pkl": program(content), **members}
    members |= {f"data/{key}": data for key, data in (storages or {"0": FOUR}).items()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(f"archive/{member}", data)
    return path


STORED = struct.pack("<q", 4) + FOUR
MAGIC, VERSION = value(0x1950A86A20F9469CFC6C), value(1001)
SYSTEM = value({"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}})


def legacy(content, keys=("0",), magic=MAGIC, version=VERSION, system=SYSTEM, data=STORED):
    """A checkpoint as it was before zip."""
    return b"".join(map(program, (magic, version, system, content, value(list(keys))))) + data


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.ckpt"


# Files of the real writer.


@pytest.fixture(scope="session")
def golden():
    with np.load(GOLDEN / "pickles.npz") as file:
        return dict(file)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_reads_what_the_real_writer_writes(golden, kind):
    tensors = pickle_file.index(GOLDEN / f"pickles_{kind}.ckpt")

    assert list(tensors) == list(golden)
    for key, expected in golden.items():
        assert tensors[key].name == key
        assert tensors[key].shape == expected.shape
        values = read(tensors[key])
        assert values.dtype == expected.dtype
        np.testing.assert_array_equal(values, expected)
        if tensors[key].dtype in DTYPES:
            assert largest(tensors[key]) == np.abs(expected).max(initial=0)
    assert {tensor.dtype for tensor in tensors.values()} == READABLE.keys() - QUANTISED
    assert tensors["float32"].offset == tensors["shared"].offset
    assert tensors["channels_last"].strides == (12, 1, 6, 3)
    assert tensors["expanded"].strides is None


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_gives_all_that_is_in_a_file(kind):
    contents = pickle_file.contents(GOLDEN / f"pickles_{kind}.ckpt")

    assert list(contents["state_dict"]) == list(pickle_file.index(GOLDEN / f"pickles_{kind}.ckpt"))
    assert all(isinstance(tensor, Tensor) for tensor in contents.pop("state_dict").values())
    callback = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    assert contents == {
        "epoch": 6,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "callbacks": {callback: {"monitor": "val/loss_simple_ema", "best_model_score": 0.25}},
        "lr_schedulers": [{"base_lrs": [1e-4], "last_epoch": 6, "betas": (0.9, 0.999), "on": True, "none": None}],
    }


def test_reads_a_textual_inversion():
    path = GOLDEN / "pickles_embedding.pt"
    tensors, contents = pickle_file.index(path), pickle_file.contents(path)

    assert list(tensors) == ["string_to_token.*", "string_to_param.*"]
    assert read(tensors["string_to_token.*"]) == 265
    np.testing.assert_array_equal(read(contents["string_to_param"]["*"]), [np.arange(8) / 8])
    assert (contents["name"], contents["step"]) == ("style", 500)


@pytest.mark.parametrize("protocol", range(1, 6))
@pytest.mark.parametrize("zipped", [True, False])
def test_reads_what_torch_writes_today(path, golden, protocol, zipped):
    torch = pytest.importorskip("torch")
    expected = {key: torch.from_numpy(array) for key, array in golden.items()}
    expected["bfloat16"] = expected["bfloat16"].bfloat16()
    expected["view"] = expected["float32"].t()[2:, 1::2]
    content = {"epoch": 3, "state_dict": expected, "size": torch.Size([2, 3]), "dtype": torch.float16, "set": {1}}
    content |= {"device": torch.device("cuda", 1), "long": -(2**70), "float": np.float32(0.5), "flag": np.bool_(True)}
    content["text"] = "ä\n" * 300
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)

    for key, stored in pickle_file.index(path).items():
        values = expected[key].float() if key == "bfloat16" else expected[key]
        np.testing.assert_array_equal(read(stored), values.numpy())
    contents = pickle_file.contents(path)
    assert contents == {**contents, "set": [1], "size": (2, 3), "dtype": "torch.float16", "device": "cuda"}
    assert contents == {**contents, "long": -(2**70), "float": 0.5, "flag": True, "text": "ä\n" * 300}


# Names.


NAMES = {
    "a dict": (mapping(a=tensor(), b=tensor()), ["a", "b"]),
    "a state_dict": (mapping(state_dict=mapping(b=tensor()), optimizer=mapping(a=tensor())), ["b"]),
    "a tensor named state_dict": (mapping(state_dict=tensor()), ["state_dict"]),
    "dicts in dicts": (mapping(a=mapping(b=mapping(c=tensor())), d=tensor()), ["a.b.c", "d"]),
    "no tensors": (mapping(epoch=value(3)), []),
    "tensors in a list": (mapping(a=b"]" + tensor() + b"a", b=tensor()), ["b"]),
    "attributes, however deep": (mapping(a=tensor()) + DEEP_TUPLE + b"b", ["a"]),
    "numbers": (b"}" + value(7) + tensor() + b"s", ["7"]),
    "surrogates": (b"}X\3\0\0\0\xed\xa0\x80" + tensor() + b"s", ["\ud800"]),
    "one tensor twice": (b"}(" + value("a") + tensor() + b"q\x09" + value("b") + b"h\x09u", ["a", "b"]),
}


@pytest.mark.parametrize("case", NAMES)
def test_names(path, case):
    content, names = NAMES[case]
    tensors = pickle_file.index(zipped(path, content))
    assert list(tensors) == names
    assert [tensor.name for tensor in tensors.values()] == names


def test_reads_what_python_2_and_protocol_0_wrote(path):
    path.write_bytes(legacy(b"(dS'a'\np1\n" + tensor() + b"sVb\nI01\nsU\1cL-5L\nsS'd'\nF1.5\nsS'e'\n(lp2\nI1\nas"))
    contents = pickle_file.contents(path)
    assert isinstance(contents.pop("a"), Tensor)
    assert contents == {"b": True, "c": -5, "d": 1.5, "e": [1]}


def scalar(dtype="f8", order="<", data="\0\0\0\0\0\0\xd0?", encoding="latin1"):
    kind = call(name("numpy", "dtype"), *map(value, (dtype, 0, 1)))
    kind += b"(" + b"".join(map(value, (3, order, None, None, None, -1, -1, 0))) + b"tb"
    data = call(name("_codecs", "encode"), value(data), value(encoding))
    return call(name("numpy.core.multiarray", "scalar"), kind, data)


def test_reads_numbers_of_older_numpys(path):
    assert pickle_file.contents(zipped(path, mapping(number=scalar()))) == {"number": 0.25}


CALLBACK = ("some.trainer.callbacks", "EpochTimer")


@pytest.mark.parametrize("content", [
    mapping(a=tensor(), b=name(*CALLBACK)),
    b"}" + value("a") + tensor() + b"s" + value("callbacks") + b"}" + name(*CALLBACK) + value(1) + b"ss",
    mapping(a=tensor(), b=b"(" + name(*CALLBACK) + value(2) + b"l"),
    mapping(a=tensor(), b=value(CALLBACK[0]) + value(CALLBACK[1]) + b"\x93"),
])  # fmt: skip
def test_a_class_may_be_mentioned_that_is_not_known(path, caplog, content):
    assert list(pickle_file.index(zipped(path, content))) == ["a"]
    assert "some.trainer.callbacks.EpochTimer" in caplog.text


@pytest.mark.parametrize("content", [
    call(name(*CALLBACK), value("x")),
    call(name(*CALLBACK)),
    name(*CALLBACK) + b")\x81",
    tensor(kind="EvilStorage"),
    call(name("subprocess", "Popen"), value("x")),
])  # fmt: skip
def test_but_nothing_is_done_with_it(path, refused, content):
    zipped(path, mapping(a=content))
    assert "asks for something" in (message := refused("pickles", path, "UnsafeCheckpointError"))
    assert "Delete" not in message


# What asks for more.


class Evil:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


UNSAFE = {  # content → the name that the error gives
    **{module + "." + what: (mapping(a=call(name(module, what), value("x"))), f"{module}.{what}") for module, what in [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("__builtin__", "eval"),
        ("__builtin__", "getattr"),
        ("builtins", "bytearray"),
        ("subprocess", "Popen"),
        ("functools", "partial"),
        ("functools", "reduce"),
        ("operator", "attrgetter"),
        ("operator", "methodcaller"),
        ("importlib", "import_module"),
        ("runpy", "run_path"),
        ("pickle", "loads"),
        ("_pickle", "loads"),
        ("marshal", "loads"),
        ("types", "CodeType"),
        ("collections", "OrderedDict.__reduce__"),
        ("collections", "namedtuple"),
        ("collections", "defaultdict"),
        ("collections.OrderedDict", "fromkeys"),
        ("torch", "load"),
        ("torch", "Storage"),
        ("torch", "FloatStorage.from_file"),
        ("torch", "hub.load"),
        ("torch", "_utils._rebuild_tensor_v2"),
        ("torch.serialization", "load"),
        ("torch.serialization", "os.system"),
        ("torch._utils", "_import_dotted_name"),
        ("torch._utils", "_rebuild_tensor_v2 "),
        ("torch._utils.os", "system"),
        ("torch._dynamo.guards.GuardBuilder", "get"),
        ("torch.nn.modules.container", "Sequential"),
        ("torch.storage", "_load_from_bytes"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy", "load"),
        ("numpy.testing._private.utils", "runstring"),
        ("_codecs", "decode"),
        ("codecs", "encode"),
        ("pytorch_lightning.callbacks.model_checkpoint", "os.system"),
        ("pytorch_lightning.callbacks", "ModelCheckpoint"),
        ("keras_diffusion.checkpoints.formats.pickle_file", "index"),
        ("", ""),
    ]},
    "a space": (name("torch._utils ", "_rebuild_tensor_v2"), "torch._utils. _rebuild_tensor_v2"),
    "not called": (mapping(a=name("os", "system")), "os.system"),
    "as a key": (b"}" + name("os", "system") + value(1) + b"s", "os.system"),
    "popped": (b"}" + name("os", "system") + b"0", "os.system"),
    "STACK_GLOBAL": (value("os") + value("system") + b"\x93" + value("x") + b"\x85R", "os.system"),
    "STACK_GLOBAL of a known module": (value("torch") + value("load") + b"\x93", "torch.load"),
    "INST": (b"(" + value("x") + b"ios\nsystem\n", "os.system"),
    "INST of something known": (b"(icollections\nOrderedDict\n", "collections.OrderedDict"),
    "OBJ": (b"(" + name("os", "system") + value("x") + b"o", "os.system"),
    "NEWOBJ": (name("subprocess", "Popen") + value(("x",)) + b"\x81", "subprocess.Popen"),
    "EXT1": (b"\x82\x01)R", "extension 1"),
    "EXT2": (b"\x83\x01\x01)R", "extension 257"),
    "EXT4": (b"\x84\x01\x01\x01\x01)R", "extension 16843009"),
    "an endless name": (name("o" * 10**6, "s" * 10**6), "ooo"),
    "a name like another's start": (mapping(a=b"cos\nsystem.\n"), "os.system."),
}  # fmt: skip


@pytest.mark.parametrize("write", [
    zipped,
    lambda path, content: path.write_bytes(legacy(content)),
], ids=["zip", "legacy"])  # fmt: skip
@pytest.mark.parametrize("case", UNSAFE)
def test_refuses_what_no_checkpoint_needs(path, refused, write, case):
    content, shown = UNSAFE[case]
    write(path, content)
    assert shown in refused("pickles", path, "UnsafeCheckpointError")


@pytest.mark.parametrize("write", [
    lambda path, content: path.write_bytes(content),
    lambda path, content: zipped(path, b"", **{"data.pkl": content}),
    lambda path, content: path.write_bytes(program(MAGIC) + program(VERSION) + program(SYSTEM) + content),
], ids=["bare", "zip", "legacy"])  # fmt: skip
@pytest.mark.parametrize("protocol", range(6))
def test_runs_nothing_in_any_protocol(path, refused, write, protocol):
    write(path, pickle.dumps(Evil(os.system, "touch executed"), protocol))
    assert f"{os.system.__module__}.system" in refused("pickles", path, "UnsafeCheckpointError")


# What is damaged, or costs much.


def doubled(empty, add, levels=30):
    """Each level holds twice the one before."""
    return b"(" + empty + b"q\0" + b"".join(empty + b"q%c" % i + add(b"h%c" % (i - 1)) for i in range(1, levels)) + b"l"


def repeated(argument, call, times=50_000):
    """Many calls with one large argument."""
    return b"(" + argument + b"q\1" + call * times + b"l"


LARGE = b"}(" + b"".join(value(i) + b"N" for i in range(10_000)) + b"u"
PARAMETERS = name("torch.nn.modules.container", "ParameterDict") + b")\x81"
CORRUPT = {
    "nothing on the stack": b"",
    "too little on the stack": b"}" + value("a") + b"s",
    "two things on the stack": b"}}",
    "too few for a tuple": b"K\1\x87",
    "no mark": b"}" + value("a") + value(1) + b"u",
    "unknown memo": b"h\7",
    "no such instruction": b"\xff",
    "odd items": b"}(" + value("a") + b"u",
    "items of a list": b"](" + value("a") + value(1) + b"u",
    "a list's items for a dict": b"}(" + value(1) + b"e",
    "a list as a key": b"}](" + value(1) + b"es",
    "a tuple as a key": b"}" + value((1,)) + value(1) + b"s",
    "None as a key": b"}" + value(None) + value(1) + b"s",
    "a call of a string": value("os.system") + value(("x",)) + b"R",
    "a call of a tag": call(name("torch", "float32")),
    "a call of a storage": call(name("torch", "FloatStorage"), value(4)),
    "a call with a list": name("collections", "OrderedDict") + b"]R",
    "a call with many arguments": name("torch", "Size") + value((1,) * 100) + b"R",
    "a dict from a list": call(name("collections", "OrderedDict"), value([["a", 1]])),
    "attributes of a number": b"K\1}b",
    "attributes of a tensor": tensor() + b"}b",
    "no parameters": PARAMETERS + b"}b",
    "parameters in a list": PARAMETERS + b"" + value({"_parameters": []}) + b"b",
    "a list at the top": b"]" + tensor() + b"a",
    "a tensor at the top": tensor(),
    "a number at the top": value(1),
    "a name twice": mapping(**{"a.b": tensor(), "a": mapping(b=tensor())}),
    "a name twice, one a number": b"}(" + value(1) + tensor() + value("1") + tensor() + b"u",
    "an endless name": b"}" + value("a" * 10**6) + tensor() + b"s",
    "OBJ": b"(" + name("collections", "OrderedDict") + b"o",
    "NEWOBJ_EX": name("collections", "OrderedDict") + b")}\x92",
    "PERSID": b"Pos.system\n",
    "NEXT_BUFFER": b"\x97",
    "POP": b"}}0",
    "an escaped string": b"S'\\q'\n",
    "not UTF-8": b"X\1\0\0\0\xff",
    "a number too long": b"I" + b"1" * 5000 + b"\n",
    # Storages and tensors.
    "a name of no storage": value("0") + b"Q",
    "a name too short": value(("storage", 1, 2)) + b"Q",
    "a name too long": value(("storage", 1, 2, 3, 4, 5, 6)) + b"Q",
    "a module in place of a storage": storage(what="module"),
    "a view of a storage": storage(kwargs=[value(("1", 0, 4))]),
    "a storage of a tag": storage(kind="float32"),
    "a storage of sizes": storage(kind="Size"),
    "no such storage": tensor(key="1"),
    "a storage elsewhere": tensor(key="../data.pkl"),
    "a storage far away": tensor(key="../../../../etc/passwd"),
    "a storage by another name": tensor(key="x"),
    "a storage by a number": tensor(key=0),
    "too many numbers": tensor(numel=5),
    "too few numbers": tensor(numel=3, shape=(3,)),
    "numbers of another size": tensor(kind="HalfStorage"),
    "less than no numbers": tensor(numel=-4),
    "half a number": tensor(numel=4.0),
    "true numbers": tensor(numel=True),
    "more numbers than there are": tensor(numel=2**62),
    "a stride of 0": tensor(strides=(0,)),
    "a stride of 0 in a large tensor": tensor(shape=(2**39,), strides=(0,)),
    "a negative stride": tensor(offset=3, strides=(-1,)),
    "a stride beyond the end": tensor(strides=(2,)),
    "an overlap": tensor(shape=(2, 2, 2), strides=(1, 1, 1)),
    "an offset beyond the end": tensor(offset=1),
    "an offset beyond the end, of nothing": tensor(offset=5, shape=(0,)),
    "an offset before the beginning": tensor(offset=-1),
    "an offset that wraps": tensor(offset=2**64 - 4),
    "a negative shape": tensor(shape=(-4,)),
    "two negatives": tensor(shape=(-2, -2), strides=(2, 1)),
    "a shape that wraps": tensor(shape=(2**32, 2**32), strides=(2**32, 1)),
    "a large shape of nothing": tensor(shape=(0, 2**39, 2**39), strides=(1, 1, 1)),
    "a shape of floats": tensor(shape=(4.0,)),
    "a shape of booleans": tensor(shape=(True,)),
    "a shape that is a number": tensor(shape=4),
    "a shape that is a list": tensor(shape=[4]),
    "fewer strides": tensor(strides=()),
    "more strides": tensor(strides=(1, 1)),
    "more axes than any tensor": tensor(shape=(1,) * 9, strides=(1,) * 9),
    "a tensor of no storage": call(name("torch._utils", "_rebuild_tensor_v2"), *map(value, ("0", 0, (4,), (1,)))),
    "a tensor of too little": call(name("torch._utils", "_rebuild_tensor_v2"), storage()),
    "a big-endian number": scalar(order=">"),
    "a number of objects": scalar(dtype="O8"),
    "a number of structures": scalar(dtype="f8,f8"),
    "a number too short": scalar(data="\0"),
    "bytes in another encoding": scalar(encoding="rot13"),
    "bytes that are no Latin": scalar(data="\u20ac" * 8),
    # What grows.
    "a string of 4 GiB": b"X\xff\xff\xff\xff",
    "a string of 2 EiB": b"\x8d" + struct.pack("<Q", 2**61) + b"x",
    "a string of more than there can be": b"\x8d" + struct.pack("<Q", 2**64 - 1),
    "bytes of 2 EiB": b"\x8e" + struct.pack("<Q", 2**61),
    "a long number": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "a number of negative length": b"\x8b" + struct.pack("<i", -1),
    "a memo far away": b"}r\xff\xff\xff\xff" * 2,
    "deep lists": b"]" * DEEP + b"a" * (DEEP - 1),
    "deep tuples": DEEP_TUPLE,
    "deep dicts": b"}" + value("state_dict") + (b"}" + value("a")) * DEEP + b"N" + b"s" * (DEEP + 1),
    "deep marks": b"(" * DEEP,
    "a deep key": b"}" + DEEP_TUPLE + b"Ns",
    "a deep argument": name("torch", "Size") + DEEP_TUPLE + b"R",
    "a deep storage": DEEP_TUPLE + b"Q",
    "a deep key of a storage": b"(" + value("storage") + name("torch", "FloatStorage") + DEEP_TUPLE + b"NK\4tQ",
    "a deep name": value("os") + DEEP_TUPLE + b"\x93",
    "a deep module": DEEP_TUPLE + value("system") + b"\x93",
    "a deep shape": call(name("torch._utils", "_rebuild_tensor_v2"), storage(), b"K\0" + DEEP_TUPLE + b")"),
    "a deep dtype": call(name("numpy", "dtype"), DEEP_TUPLE),
    "a deep encoding": call(name("_codecs", "encode"), value("a") + DEEP_TUPLE),
    "wide lists": b"}" + value("a") + b"](" + b"N\x85" * 145_000 + b"e",
    "wide dicts": b"(" + b"}NNs" * 10**5 + b"l",
    "itself": b"}q\0" + value("state_dict") + b"h\0s",
    "itself, further in": b"}q\0" + value("state_dict") + b"}" + value("a") + b"h\0ss",
    "itself, in a list": b"}" + value("a") + b"]q\0(h\0es",
    "itself, in a tuple": b"}" + value("a") + b"]q\0h\0\x85as",
    "a billion dicts": doubled(b"}", lambda last: b"(" + value("a") + last + value("b") + last + b"u"),
    "a billion items": doubled(b"]", lambda last: b"(" + last + last + b"e"),
    "many steps": b"]" + b"Na" * 10**6,
    "many values": b"(" + b"}" * 10**6,
    "many tensors": b"}(" + value("a") + tensor() + b"q\1" + b"".join(value(i) + b"h\1" for i in range(10_000)) + b"u",
    "many numbers of one hash": b"}(" + b"".join(value(i * (2**61 - 1)) + b"N" for i in range(60_000)) + b"u",
    "many places of one hash": b"}" + b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(60_000)),
    "many copies of a dict": repeated(LARGE + b"\x85", name("collections", "OrderedDict") + b"h\1R"),
    "many copies of a tuple": repeated(b"(" + value("a") * 10_000 + b"t", name("torch", "Size") + b"h\1R"),
    "many copies of a string": repeated(value("a" * 10**6), name("_codecs", "encode") + b"h\1\x85R"),
    "many copies of parameters": repeated(
        mapping(_parameters=LARGE),
        PARAMETERS + b"h\1b",
    ),
    "many views": repeated(
        b"(" + storage() + b"".join(map(value, (0, (2, 2, 1, 1, 1, 1, 1), (1, 2, 3, 4, 5, 6, 7)))) + b"t",
        name("torch._utils", "_rebuild_tensor_v2") + b"h\1R",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CORRUPT)
def test_refuses_damaged_pickles(path, refused, case):
    refused("pickles", zipped(path, CORRUPT[case]))


def archive(path, members, compression=zipfile.ZIP_STORED):
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w", compression) as file:
        for member, data in members:
            file.writestr(member, data)
    return path.read_bytes()


GOOD = mapping(a=tensor())
MEMBERS = [("archive/data.pkl", program(GOOD)), ("archive/data/0", FOUR)]
ZIPS = {
    "two pickles": [*MEMBERS, ("other/data.pkl", program(GOOD))],
    "two pickles of one name": [*MEMBERS, MEMBERS[0]],
    "two storages of one name": [*MEMBERS, MEMBERS[1]],
    "no pickle": MEMBERS[1:],
    "no folder": [("data.pkl", program(GOOD)), ("data/0", FOUR)],
    "a pickle too deep": [("a/b/data.pkl", program(GOOD)), ("a/b/data/0", FOUR)],
    "a hidden name": [*MEMBERS, ("archive/data.pkl\0.txt", b"")],
    "big-endian": [*MEMBERS, ("archive/byteorder", b"big")],
    "an unknown byte order": [*MEMBERS, ("archive/byteorder", b"middle")],
    "a long byte order": [*MEMBERS, ("archive/byteorder", b"little" * 10**6)],
    "a storage that is missing": MEMBERS[:1],
    "a storage elsewhere": [("archive/data.pkl", program(mapping(a=tensor(key="../x")))), ("archive/data/../x", FOUR)],
    "a large pickle": [("archive/data.pkl", program(mapping(a=value("a" * 2**21)))), MEMBERS[1]],
}


@pytest.mark.parametrize("case", ZIPS)
def test_refuses_damaged_zip_files(path, refused, case):
    archive(path, ZIPS[case])
    refused("pickles", path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_refuses_compressed_members(path, refused, method):
    archive(path, MEMBERS, method)
    assert "compressed" in refused("pickles", path)


def patched(path, member, changes):
    """A zip file with some fields of a member's entry in the list of members changed."""
    data = bytearray(archive(path, MEMBERS))
    entry = data.rindex(member.encode()) - 46
    for place, (kind, number) in changes.items():
        struct.pack_into(kind, data, entry + place, number)
    path.write_bytes(data)


ENTRIES = {  # of the list of members: offset of a field → its kind and value
    "encrypted": {8: ("<H", 1)},
    "of another method": {10: ("<H", 99)},
    "of a wrong checksum": {16: ("<I", 1)},
    "larger than the file": {20: ("<I", 2**31), 24: ("<I", 2**31)},
    "larger than compressed": {24: ("<I", 2**31)},
    "beyond the end": {42: ("<I", 2**31)},
    "elsewhere": {42: ("<I", 1)},
    "of another version": {6: ("<H", 99)},
}


@pytest.mark.parametrize("member", ["archive/data.pkl", "archive/data/0"])
@pytest.mark.parametrize("case", ENTRIES)
def test_refuses_members_that_lie(path, refused, case, member):
    patched(path, member, ENTRIES[case])
    if (case, member) == ("of a wrong checksum", "archive/data/0"):  # which nobody computes
        assert list(pickle_file.index(path)) == ["a"]
    else:
        refused("pickles", path)


def test_a_list_of_members_may_not_fill_the_memory(path, refused):
    count = 2**17
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, *[0] * 4, *[0] * 3, 1, *[0] * 4, 0, 0) + b"a"
    with path.open("wb") as file:
        file.write(b"PK\3\4" + bytes(26))
        file.write(entry * count)
        end = file.tell()
        file.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, end - 30, 30))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, end, 1))
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *[2**16 - 1] * 2, *[2**32 - 1] * 2, 0))
    refused("pickles", path)


LEGACY = {
    "another magic number": legacy(GOOD, magic=value(1)),
    "a list as magic number": legacy(GOOD, magic=b"]"),
    "another version": legacy(GOOD, version=value(1000)),
    "big-endian": legacy(GOOD, system=value({"little_endian": False})),
    "an unknown byte order": legacy(GOOD, system=value({})),
    "no byte order": legacy(GOOD, system=value([1])),
    "a long beginning": legacy(GOOD, system=b"}" + value("a") * 10**5),
    "a storage too few": legacy(GOOD, keys=()),
    "a storage too many": legacy(GOOD, keys=("0", "1")),
    "a storage twice": legacy(GOOD, keys=("0", "0")),
    "another storage": legacy(GOOD, keys=("1",)),
    "storages by number": legacy(GOOD, keys=(0,)),
    "a storage of another size": legacy(GOOD, data=struct.pack("<q", 5) + FOUR + bytes(4)),
    "a storage of no size": legacy(GOOD, data=struct.pack("<q", -4) + FOUR),
    "a storage of two sizes": legacy(mapping(a=tensor(), b=tensor(numel=3, shape=(3,)))),
    "a storage cut short": legacy(GOOD)[:-1],
    "another kind of pickle": pickle.dumps({"a": [1, 2]}),
    "deep storages": b"".join(map(program, (MAGIC, VERSION, SYSTEM, GOOD, b"]" + DEEP_TUPLE + b"a"))) + FOUR,
    "no file": b"",
    "text": b"Not Found",
    "zeros": bytes(1000),
    "an empty zip file": b"PK\5\6" + bytes(18),
    "the beginning of a zip file": b"PK\3\4" + bytes(1000),
    "a safetensors file": struct.pack("<Q", 2) + b"{}",
}


@pytest.mark.parametrize("case", LEGACY)
def test_refuses_damaged_legacy_files(path, refused, case):
    path.write_bytes(LEGACY[case])
    refused("pickles", path)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><title>404</title>", "HTML page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "HDF5 file"),
    ],
)
def test_says_what_was_taken_for_a_checkpoint(path, refused, start, kind):
    path.write_bytes(start)
    assert kind in refused("pickles", path)


def test_a_file_that_is_missing_is_no_damaged_one(path):
    with pytest.raises(FileNotFoundError):
        pickle_file.index(path)


# Chance.

SMALL = mapping(
    a=tensor(shape=(2, 2), strides=(1, 2)),
    b=tensor(kind="HalfStorage", key="1", shape=(3,)),
    c=value([1, (2.5, "x"), {"y": None}]),
    d=scalar(),
)
STORAGES = {"0": FOUR, "1": bytes(8)}


@pytest.fixture
def seeds(path):
    """One small file of each format, and the pickle in it."""
    both = zipped(path, SMALL, STORAGES).read_bytes()
    data = b"".join(struct.pack("<q", 4) + storage for storage in STORAGES.values())
    return both, legacy(SMALL, STORAGES, data=data)


def survives(path, data):
    """Whether a file can be read; if not, the error is one of ours."""
    path.write_bytes(data)
    try:
        tensors = pickle_file.index(path)
    except CheckpointError:
        return False
    for tensor in tensors.values():
        assert read(tensor).shape == tensor.shape
    return True


@pytest.mark.parametrize("kind", [0, 1], ids=["zip", "legacy"])
def test_refuses_every_shorter_file(path, seeds, kind):
    whole = seeds[kind]
    assert survives(path, whole)
    assert not any(survives(path, whole[:length]) for length in range(len(whole)))


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_survives_changed_bytes(path, seeds, kind):
    """Whatever is changed: our own error, or tensors that can be read."""
    whole, random = {"zip": seeds[0], "legacy": seeds[1], "pickle": SMALL}[kind], np.random.default_rng(0)
    read = 0
    for _ in range(1000):
        changed = bytearray(whole)
        for place in random.integers(0, len(whole), random.integers(1, 4)):
            changed[place] = random.integers(256)
        if kind == "pickle":
            zipped(path, bytes(changed), STORAGES)
            changed = path.read_bytes()
        read += survives(path, changed)
    assert 10 < read < 970


@pytest.mark.parametrize("reader", [read, largest])
@pytest.mark.parametrize("name", ["a", "b"])
def test_notices_a_file_cut_short_after_it_was_listed(path, seeds, reader, name):
    path.write_bytes(seeds[1])
    tensor = pickle_file.index(path)[name]
    os.truncate(path, tensor.offset + 4)
    with pytest.raises(CorruptCheckpointError, match="cut short"):
        reader(tensor)
