"""Every kind of adapter: what it makes of the weights, by the formulas of its paper, and back again."""

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from keras_diffusion import StableDiffusion
from keras_diffusion.checkpoints.adapters import lora_file
from keras_diffusion.checkpoints.mapping.loading import stored

from ...golden import lora

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
MATRIX, SECOND_MATRIX, CONV = f"{BLOCK}.ff.net.0.proj", f"{BLOCK}.attn1.to_q", "down_blocks.1.resnets.0.conv1"
SHAPES = {MATRIX: (128, 16), SECOND_MATRIX: (16, 16), CONV: (32, 16, 3, 3)}
R = 3


def kron(first, second):
    """The Kronecker product of (a, c) and (b, d, …)."""
    product = np.einsum("ac,bd...->abcd...", first, second)
    return product.reshape(len(first) * len(second), first.shape[1] * second.shape[1], *second.shape[2:])


def tucker(mid, out, into):
    return np.einsum("rs...,ro,si->oi...", mid, out, into)


def dora(weight, delta, magnitude, axes):
    merged = weight + delta
    return merged * magnitude / np.sqrt((merged**2).sum(axis=axes, keepdims=True)) - weight


# kind → layer, {part: shape}, the change by weight, parts and factor alpha / rank
FLAT, KERNEL = (R, 16 * 9), (R, R, 3, 3)
KINDS = {
    "LoRA": (
        MATRIX,
        {"lora_down.weight": (R, 16), "lora_up.weight": (128, R), "alpha": ()},
        lambda w, x, f: f * x["lora_up.weight"] @ x["lora_down.weight"],
    ),
    "LoCon": (
        CONV,
        {"lora_down.weight": (R, 16, 3, 3), "lora_up.weight": (32, R, 1, 1), "alpha": ()},
        lambda w, x, f: f * np.einsum("or,rihw->oihw", x["lora_up.weight"][..., 0, 0], x["lora_down.weight"]),
    ),
    "LoCon, Tucker": (
        CONV,
        {"lora_down.weight": (R, 16, 1, 1), "lora_mid.weight": KERNEL, "lora_up.weight": (32, R, 1, 1), "alpha": ()},
        lambda w, x, f: (
            f * tucker(x["lora_mid.weight"], x["lora_up.weight"][..., 0, 0].T, x["lora_down.weight"][..., 0, 0])
        ),
    ),
    "LoHa": (
        MATRIX,
        {"hada_w1_a": (128, R), "hada_w1_b": (R, 16), "hada_w2_a": (128, R), "hada_w2_b": (R, 16), "alpha": ()},
        lambda w, x, f: f * (x["hada_w1_a"] @ x["hada_w1_b"]) * (x["hada_w2_a"] @ x["hada_w2_b"]),
    ),
    "LoHa, convolution": (
        CONV,
        {"hada_w1_a": (32, R), "hada_w1_b": FLAT, "hada_w2_a": (32, R), "hada_w2_b": FLAT, "alpha": ()},
        lambda w, x, f: (
            f * ((x["hada_w1_a"] @ x["hada_w1_b"]) * (x["hada_w2_a"] @ x["hada_w2_b"])).reshape(SHAPES[CONV])
        ),
    ),
    "LoHa, Tucker": (
        CONV,
        {
            **{"hada_t1": KERNEL, "hada_w1_a": (R, 32), "hada_w1_b": (R, 16), "alpha": ()},
            **{"hada_t2": KERNEL, "hada_w2_a": (R, 32), "hada_w2_b": (R, 16)},
        },
        lambda w, x, f: (
            f
            * tucker(x["hada_t1"], x["hada_w1_a"], x["hada_w1_b"])
            * tucker(x["hada_t2"], x["hada_w2_a"], x["hada_w2_b"])
        ),
    ),
    "LoKr, whole": (  # alpha says nothing
        MATRIX,
        {"lokr_w1": (4, 2), "lokr_w2": (32, 8), "alpha": ()},
        lambda w, x, f: kron(x["lokr_w1"], x["lokr_w2"]),
    ),
    "LoKr, whole, convolution": (
        CONV,
        {"lokr_w1": (4, 2), "lokr_w2": (8, 8, 3, 3)},
        lambda w, x, f: kron(x["lokr_w1"], x["lokr_w2"]),
    ),
    "LoKr, second factor of low rank": (
        MATRIX,
        {"lokr_w1": (4, 2), "lokr_w2_a": (32, R), "lokr_w2_b": (R, 8), "alpha": ()},
        lambda w, x, f: f * kron(x["lokr_w1"], x["lokr_w2_a"] @ x["lokr_w2_b"]),
    ),
    "LoKr, both factors of low rank": (
        CONV,
        {"lokr_w1_a": (4, R), "lokr_w1_b": (R, 2), "lokr_w2_a": (8, R), "lokr_w2_b": (R, 8 * 9), "alpha": ()},
        lambda w, x, f: (
            f * kron(x["lokr_w1_a"] @ x["lokr_w1_b"], (x["lokr_w2_a"] @ x["lokr_w2_b"]).reshape(8, 8, 3, 3))
        ),
    ),
    "LoKr, Tucker": (
        CONV,
        {"lokr_w1": (4, 2), "lokr_t2": KERNEL, "lokr_w2_a": (R, 8), "lokr_w2_b": (R, 8), "alpha": ()},
        lambda w, x, f: f * kron(x["lokr_w1"], tucker(x["lokr_t2"], x["lokr_w2_a"], x["lokr_w2_b"])),
    ),
    "DoRA of outputs": (
        MATRIX,
        {"lora_down.weight": (R, 16), "lora_up.weight": (128, R), "alpha": (), "dora_scale": (128, 1)},
        lambda w, x, f: dora(w, f * x["lora_up.weight"] @ x["lora_down.weight"], x["dora_scale"], 1),
    ),
    "DoRA of inputs": (
        SECOND_MATRIX,
        {"lora_down.weight": (R, 16), "lora_up.weight": (16, R), "alpha": (), "dora_scale": (1, 16)},
        lambda w, x, f: dora(w, f * x["lora_up.weight"] @ x["lora_down.weight"], x["dora_scale"], 0),
    ),
    "DoRA of inputs, convolution": (
        CONV,
        {"lora_down.weight": (R, 16, 3, 3), "lora_up.weight": (32, R, 1, 1), "alpha": (), "dora_scale": (1, 16, 1, 1)},
        lambda w, x, f: dora(
            w,
            f * np.einsum("or,rihw->oihw", x["lora_up.weight"][..., 0, 0], x["lora_down.weight"]),
            x["dora_scale"],
            (0, 2, 3),
        ),
    ),
    "DoRA of peft": (
        CONV,
        {"lora_A.weight": (R, 16, 3, 3), "lora_B.weight": (32, R, 1, 1), "lora_magnitude_vector": (1, 32, 1, 1)},
        lambda w, x, f: dora(
            w,
            np.einsum("or,rihw->oihw", x["lora_B.weight"][..., 0, 0], x["lora_A.weight"]),
            x["lora_magnitude_vector"].reshape(32, 1, 1, 1),
            (1, 2, 3),
        ),
    ),
    "DoRA of a LoKr": (
        MATRIX,
        {"lokr_w1": (4, 2), "lokr_w2": (32, 8), "dora_scale": (128, 1)},
        lambda w, x, f: dora(w, kron(x["lokr_w1"], x["lokr_w2"]), x["dora_scale"], 1),
    ),
    "difference": (CONV, {"diff": (32, 16, 3, 3)}, lambda w, x, f: x["diff"]),
    "norm": ("down_blocks.1.resnets.0.norm1", {"w_norm": (16,)}, lambda w, x, f: x["w_norm"]),
    "difference of a norm": ("mid_block.resnets.0.norm2", {"diff": (32,)}, lambda w, x, f: x["diff"]),
}
BIASES = {  # beside a change of the weight
    "difference of a bias": (MATRIX, {"diff": (128, 16), "diff_b": (128,)}, lambda x, f: x["diff_b"]),
    "bias of a norm": (
        "down_blocks.1.resnets.0.norm1",
        {"w_norm": (16,), "b_norm": (16,)},
        lambda x, f: x["b_norm"],
    ),
    "bias of a LoRA": (
        MATRIX,
        {"lora_A.weight": (R, 16), "lora_B.weight": (128, R), "lora_B.bias": (128,), "alpha": ()},
        lambda x, f: f * x["lora_B.bias"],
    ),
}


@pytest.fixture(scope="module")
def model():
    return StableDiffusion(preset=lora.ARCHITECTURE)


def draw(parts, seed=0):
    """Random tensors of some shapes; an alpha is 2."""
    random = np.random.default_rng(seed)
    drawn = {part: random.normal(size=shape).astype("float32") for part, shape in parts.items()}
    return drawn | {part: np.float32(2) for part in parts if part == "alpha"}


def tensor(model, name):
    """The values of a tensor of the diffusion model, as files store it."""
    target = lora_file.targets({"diffusion_model": model.diffusion_model})[f"diffusion_model/{name}"]
    return stored(np.array(keras.ops.convert_to_numpy(target.variable)), target.layout)


@pytest.mark.parametrize("kind", KINDS | BIASES)
@pytest.mark.parametrize("scale", [1.0, -0.3])
def test_weights_are_those_of_the_formula(model, tmp_path, kind, scale):
    layer, parts, formula = (KINDS | BIASES)[kind]
    parts, name = draw(parts), f"{layer}.{'bias' if kind in BIASES else 'weight'}"
    save_file({f"unet.{layer}.{part}": np.array(x) for part, x in parts.items()}, tmp_path / "some.safetensors")
    before = tensor(model, name)
    exact = {part: x.astype("float64") for part, x in parts.items()}
    change = formula(*([] if kind in BIASES else [before.astype("float64")]), exact, 2 / R)
    model.load_lora(tmp_path / "some.safetensors", scale)
    after = tensor(model, name)
    model.unload_lora()
    assert np.abs(scale * change).max() > 0.1
    np.testing.assert_allclose(after, before + scale * change, atol=1e-5 * max(1, np.abs(change).max()))
    np.testing.assert_array_equal(tensor(model, name), before)
