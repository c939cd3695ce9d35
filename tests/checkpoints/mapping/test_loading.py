"""Strict loading of a few variables: what is refused, and that nothing is assigned then."""

import tracemalloc

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from keras_diffusion.checkpoints.formats import safetensors, tensors
from keras_diffusion.checkpoints.formats.tensors import Tensor
from keras_diffusion.checkpoints.mapping import loading
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError

pytestmark = pytest.mark.backend


def part(path, arrays, targets, known=(), label="unet"):
    path = path / f"{label}.safetensors"
    save_file({name: np.asarray(array) for name, array in arrays.items()}, path)
    return loading.Part(label, safetensors.index(path), targets, set(known))


@pytest.fixture(params=[2**20, 7], ids=["whole", "sliced"], autouse=True)
def slicing(request, monkeypatch):
    """Every test once with tensors in one piece and once in several."""
    monkeypatch.setattr(tensors, "CHUNK", request.param)


def target(name, shape, layout="same", dtype="float32"):
    return loading.Target(keras.Variable(np.full(shape, 7.0), dtype=dtype, name="v"), name, layout)


def value(target):
    return np.asarray(keras.ops.convert_to_numpy(target.variable), "float32")


def floats(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@pytest.mark.parametrize(
    ("layout", "stored", "shape"),
    [
        ("same", (5,), (5,)),
        ("matrix", (3, 2), (2, 3)),
        ("matrix", (3, 2, 1, 1), (2, 3)),
        ("pointwise", (3, 2, 1, 1), (2, 3)),
        ("pointwise", (3, 2), (2, 3)),
        ("conv", (5, 4, 3, 2), (3, 2, 4, 5)),
    ],
)
def test_assigns_what_is_stored(tmp_path, layout, stored, shape):
    array, wanted = floats(*stored), target("a", shape, layout)
    loading.load([part(tmp_path, {"a": array}, [wanted])])
    axes = {"same": "o->o", "matrix": "oi->io", "pointwise": "oi->io", "conv": "oihw->hwio"}[layout]
    expected = np.einsum(axes, array if layout == "conv" else array.reshape(stored[:2]))
    np.testing.assert_array_equal(value(wanted), expected)


def test_the_smallest_numbers_stay(tmp_path):
    """Also on a processor that takes them for zero: in the place of a float32's, a float16's bits mean such numbers."""
    torch = pytest.importorskip("torch")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        array, wanted = np.array([2.0**-24, -3e-5, 1], "float16"), target("a", (3,))
        loading.load([part(tmp_path, {"a": array}, [wanted])])
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_array_equal(value(wanted), array.astype("float32"))


@pytest.mark.parametrize("stored", ["float32", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_converts_to_the_dtype_of_the_variable(tmp_path, stored, dtype):
    array, wanted = floats(4, 3).astype(stored), target("a", (4, 3), dtype=dtype)
    loading.load([part(tmp_path, {"a": array}, [wanted])])
    assert wanted.variable.dtype == dtype
    tolerance = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}[dtype]
    np.testing.assert_allclose(value(wanted), array.astype("float32"), rtol=tolerance)


def test_names_everything_that_does_not_fit(tmp_path):
    wanted = [target(name, (2,)) for name in ("good", "absent", "long", "whole")]
    arrays = {"good": floats(2), "long": floats(3), "whole": np.zeros(2, "int64")}
    arrays |= {"more": floats(1), "known": floats(9)}
    other = part(tmp_path, {"b": floats(2), "c": floats(2)}, [target("b", (1, 2))], label="vae")

    with pytest.raises(CheckpointMismatchError) as caught:
        loading.load([part(tmp_path, arrays, wanted, known=["known"]), other], ["decoder: built with heads=3"])

    error = caught.value
    assert error.missing == ["unet/absent"]
    assert error.unexpected == ["unet/more", "vae/c"]
    assert error.mismatched == [
        "decoder: built with heads=3",
        "unet/long: shape (3,), not (2,)",
        "unet/whole: dtype I64, not one of F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1",
        "vae/b: shape (2,), not (1, 2)",
    ]
    for line in error.missing + error.unexpected + error.mismatched:
        assert line in str(error)
    assert str(tmp_path / "vae.safetensors") in str(error)
    assert all((value(one) == 7).all() for one in [*wanted, *other.targets])


def test_torch_gets_kernels_in_the_order_in_which_it_convolves(tmp_path):
    with keras.StatelessScope(initialize_variables=False):
        variable = keras.Variable("zeros", shape=(2, 2, 3, 5), name="v")
    wanted = loading.Target(variable, "a", "conv")
    loading.load([part(tmp_path, {"a": np.ones((5, 3, 2, 2), "float32")}, [wanted])])
    channels_last = np.moveaxis(loading.stored(keras.ops.convert_to_numpy(variable), "conv"), 1, -1)
    assert channels_last.flags.c_contiguous == (keras.backend.backend() == "torch") == loading.keeps_strides()


def test_reads_every_float16(tmp_path):
    every = np.arange(2**16, dtype="uint16").view("float16")
    every = np.stack([every[np.isfinite(every)]] * 3)
    wanted = target("a", every.T.shape, "matrix")
    loading.load([part(tmp_path, {"a": every}, [wanted])])
    np.testing.assert_array_equal(value(wanted).T.view("uint32"), every.astype("float32").view("uint32"))


@pytest.mark.parametrize(
    ("number", "dtype", "reason"),
    [
        (np.nan, "float32", "holds nan"),
        (np.inf, "float32", "holds inf"),
        (-np.inf, "float16", "holds inf"),
        (65520.0, "float16", "holds ±65520, which overflows in float16"),
        (-1e30, "float16", "overflows in float16"),
        (3.3999e38, "bfloat16", "overflows in bfloat16"),
    ],
)
def test_refuses_values_that_do_not_fit(tmp_path, number, dtype, reason):
    wanted = [target("a", (2,), dtype=dtype), target("b", (3,), dtype=dtype), target("c", (1,), dtype=dtype)]
    arrays = {"a": floats(2), "b": np.array([0, number, 1], "float32"), "c": np.array([number], "float32")}

    with pytest.raises(CheckpointMismatchError) as caught:
        loading.load([part(tmp_path, arrays, wanted)])

    assert [line.partition(":")[0] for line in caught.value.mismatched] == ["unet/b", "unet/c"]
    assert all(reason in line for line in caught.value.mismatched)
    assert all((value(one) == 7).all() for one in wanted)


@pytest.mark.parametrize(
    ("number", "dtype", "expected"), [(65519.0, "float16", 65504.0), (3.39e38, "bfloat16", 3.3895314e38)]
)
def test_accepts_the_largest_values_that_fit(tmp_path, number, dtype, expected):
    wanted = target("a", (1,), dtype=dtype)
    loading.load([part(tmp_path, {"a": np.array([number], "float32")}, [wanted])])
    np.testing.assert_allclose(value(wanted), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("family", "name", "shape"),
    [
        ("a LoRA", "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", (4, 320)),
        ("a LoRA", "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.lora_A.weight", (4, 320)),
        ("a LoRA", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_k_lora.down.weight", (4, 320)),
        ("a textual inversion", "emb_params", (4, 768)),
        ("a textual inversion", "<cat-toy>", (768,)),
        ("a textual inversion", "string_to_param.*", (2, 768)),
        ("a ControlNet", "controlnet_cond_embedding.conv_in.weight", (16, 3, 3, 3)),
        ("AnimateDiff", "down_blocks.0.motion_modules.0.norm.weight", (320,)),
        ("SDXL", "add_embedding.linear_1.weight", (1280, 2816)),
        ("SDXL", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight", (640, 2048)),
        ("SDXL", "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", (768,)),
        ("Stable Diffusion 3 or Flux", "double_blocks.0.img_attn.proj.weight", (8, 8)),
        ("a single file in the original (LDM) layout", "model.diffusion_model.out.2.bias", (4,)),
        ("Stable Diffusion 2", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", (320, 1024)),
        ("Stable Diffusion 1", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", (320, 768)),
        ("Stable Diffusion 1", "embeddings.token_embedding.weight", (49408, 768)),
        ("a vae", "post_quant_conv.weight", (4, 4, 1, 1)),
        ("a text_encoder", "embeddings.token_embedding.weight", (49408, 512)),
    ],
)
def test_says_what_the_file_looks_like(tmp_path, family, name, shape):
    tensor = Tensor(tmp_path, name, "F32", shape, 0)
    found = loading.Part("unet", {"conv_norm_out.bias": tensor, name: tensor}, [target("a", (1,))], set())
    with pytest.raises(CheckpointMismatchError) as caught:
        loading.load([found])
    assert f"unet looks like {family}." in str(caught.value)


def test_says_nothing_of_what_it_does_not_know(tmp_path):
    with pytest.raises(CheckpointMismatchError) as caught:
        loading.load([part(tmp_path, {"x": floats(1)}, [target("a", (1,))])])
    assert "looks like" not in str(caught.value)


def test_shows_no_control_characters_and_no_endless_names(tmp_path):
    names = ["\x1b[31mred", "x" * 1000, "\u202etxet", "line\nbreak"]
    with pytest.raises(CheckpointMismatchError) as caught:
        loading.load([part(tmp_path, {name: floats(1) for name in names}, [])])
    assert set(caught.value.unexpected) == {f"unet/{name}" for name in names}
    lines = str(caught.value).split("\n")
    assert len(lines) == len(names) + 2
    assert all(line.isprintable() and len(line) < 300 for line in lines)


@pytest.mark.parametrize("stored", ["float32", "float16"])
@pytest.mark.parametrize(("layout", "shape"), [("same", (512, 1024)), ("matrix", (1024, 512))])
def test_only_the_values_themselves_need_memory(tmp_path, monkeypatch, stored, layout, shape):
    monkeypatch.setattr(tensors, "CHUNK", 2**12)
    wanted, size = target("a", shape, layout), 4 * 2**19
    parts = [part(tmp_path, {"a": floats(512, 1024).astype(stored)}, [wanted])]
    tracemalloc.start()
    loading.load(parts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.3 * size
    expected = floats(512, 1024).astype(stored).astype("float32")
    np.testing.assert_array_equal(value(wanted), expected if layout == "same" else expected.T)


def without_values(name, initializer="zeros"):
    with keras.StatelessScope(initialize_variables=False):
        return loading.Target(keras.Variable(initializer, shape=(2,), dtype="float32", name="v"), name, "same")


def test_fills_variables_that_have_no_values_yet(tmp_path):
    arrays, wanted = {"a": floats(2), "b": floats(2) + 1}, [without_values("a"), target("b", (2,))]
    loading.load([part(tmp_path, arrays, wanted)])
    for one in wanted:
        np.testing.assert_array_equal(value(one), arrays[one.name])
        one.variable.assign(value(one) + 1)
        np.testing.assert_array_equal(value(one), arrays[one.name] + 1)


def test_reads_what_is_for_variables_without_values_only_once(tmp_path, monkeypatch):
    reads, blocks = [], loading.blocks
    monkeypatch.setattr(loading, "blocks", lambda tensor: reads.append(tensor.name) or blocks(tensor))
    loading.load([part(tmp_path, {"a": floats(2), "b": floats(2)}, [without_values("a"), without_values("b")])])
    assert sorted(reads) == ["a", "b"]


def test_values_that_do_not_fit_leave_variables_without_values_so(tmp_path):
    wanted = [without_values("a", "ones"), without_values("b", "ones")]
    with pytest.raises(CheckpointMismatchError):
        loading.load([part(tmp_path, {"a": floats(2), "b": np.float32([1, np.nan])}, wanted)])
    assert all(one.variable._value is None and (value(one) == 1).all() for one in wanted)


@pytest.mark.parametrize("error", [CorruptCheckpointError, KeyboardInterrupt])
def test_an_interruption_leaves_them_without_values(tmp_path, monkeypatch, error):
    arrays, wanted = {"a": floats(2), "b": floats(2)}, [without_values("a", "ones"), without_values("b", "ones")]
    both = [part(tmp_path, arrays, wanted)]

    def fail(tensor):
        if tensor.name == "b":
            raise error
        return blocks(tensor)

    with monkeypatch.context() as patch:
        blocks = loading.blocks
        patch.setattr(loading, "blocks", fail)
        with pytest.raises(error):
            loading.load(both)
    with keras.StatelessScope():
        pass  # here Keras initializes what is left

    assert all((value(one) == 1).all() for one in wanted)
    loading.load(both)
    np.testing.assert_array_equal(value(wanted[1]), arrays["b"])
