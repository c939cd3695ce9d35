import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_diffusion.architectures import TINY
from keras_diffusion.checkpoints.mapping.names import rows
from keras_diffusion.networks.layers import Attention, GroupNorm, Upsample, conv, dense, embedding, layer_norm
from keras_diffusion.networks.network import construction
from keras_diffusion.system import memory

from ..golden import comparison, networks

HALVES = {"mixed_float16": 0.01, "mixed_bfloat16": 0.05, "float16": 0.01, "bfloat16": 0.05}  # policy → relative error
every_network = pytest.mark.parametrize("network", TINY.networks)
every_half = pytest.mark.parametrize("dtype", HALVES)
CASES = {"text_encoder": "short", "diffusion_model": "inpainting", "image_encoder": "wide", "decoder": "wide"}


def numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def relative_error(ours, expected):
    return np.linalg.norm(ours - expected) / np.linalg.norm(expected)


# ---- Normalisation


def normalised(x, groups, epsilon):
    """Group normalisation by its definition, in float64."""
    grouped = x.astype("float64").reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)


def features(mean=0.0, deviation=1.0):
    return (mean + deviation * networks.uniform("features", (2, 5, 7, 24), -(3**0.5), 3**0.5)).astype("float32")


@pytest.mark.parametrize("groups", [1, 4, 24])
def test_group_norm_is_its_definition(groups):
    norm = GroupNorm(groups, epsilon=1e-2)
    norm.build((None, None, None, 24))
    gamma, beta = networks.uniform("gamma", 24), networks.uniform("beta", 24)
    norm.gamma.assign(gamma)
    norm.beta.assign(beta)
    np.testing.assert_allclose(numpy(norm(features())), normalised(features(), groups, 1e-2) * gamma + beta, atol=1e-5)


def test_group_norm_ends_with_silu_on_request():
    x = normalised(features(), 4, 1e-5)
    np.testing.assert_allclose(numpy(GroupNorm(4, silu=True)(features())), x / (1 + np.exp(-x)), atol=1e-5)


def test_group_norm_does_not_cancel():
    """Subtracting a squared mean from a mean square would give a negative variance here."""
    x = features(mean=100, deviation=0.01)
    np.testing.assert_allclose(numpy(GroupNorm(4, epsilon=1e-6)(x)), normalised(x, 4, 1e-6), atol=5e-3)


@every_half
@pytest.mark.parametrize("norm", [lambda: GroupNorm(1), lambda: layer_norm("norm")], ids=["group_norm", "layer_norm"])
def test_statistics_are_float32(norm, dtype):
    """Squares of these features overflow float16."""
    x = features(mean=2e3, deviation=1e4)[:, :1, :1]  # one position: groups are layers
    with construction(dtype):
        norm = norm()
    out = norm(ops.cast(x, norm.compute_dtype))
    assert keras.backend.standardize_dtype(out.dtype) == norm.compute_dtype
    assert relative_error(numpy(out), normalised(x, 1, 1e-5)) < HALVES[dtype]


# ---- Attention


@every_half
def test_softmax_is_float32(dtype, monkeypatch):
    seen, softmax = [], ops.softmax
    monkeypatch.setattr(ops, "softmax", lambda x: seen.append(keras.backend.standardize_dtype(x.dtype)) or softmax(x))
    with construction(dtype):
        attention = Attention(heads=2)
        out = attention(ops.cast(features()[:, 0], attention.compute_dtype))
    assert seen == ["float32"]
    assert keras.backend.standardize_dtype(out.dtype) == attention.compute_dtype


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_is_its_definition(heads):
    x, context = features()[:, 0], networks.uniform("context", (2, 5, 11))
    attention = Attention(heads, qkv_bias=True)
    attention.build(x.shape, context.shape)
    for variable in attention.variables:
        variable.assign(networks.uniform(variable.path, variable.shape))
    q, k, v = (
        np.stack(np.split(numpy(layer(y)).astype("float64"), heads, axis=-1), 1)  # (b, heads, n, c / heads)
        for layer, y in [(attention.to_q, x), (attention.to_k, context), (attention.to_v, context)]
    )
    weights = np.exp(q @ k.swapaxes(2, 3) / np.sqrt(24 / heads))
    out = np.concatenate(np.moveaxis(weights / weights.sum(-1, keepdims=True) @ v, 1, 0), axis=-1)
    np.testing.assert_allclose(numpy(attention(x, context)), numpy(attention.to_out(out.astype("float32"))), atol=1e-4)


# ---- Resampling


@pytest.mark.parametrize("size", [(10, 14), (9, 13), (9, 14)])
def test_upsampling_takes_the_nearest_pixel(size):
    upsample = Upsample(24, name="upsample")
    upsample.build((None, None, None, 24))
    identity = np.zeros((3, 3, 24, 24), "float32")
    identity[1, 1] = np.eye(24)
    upsample.conv.kernel.assign(identity)
    rows, columns = (np.arange(side) * small // side for side, small in zip(size, (5, 7), strict=True))
    like = np.zeros((2, *size, 1), "float32")
    np.testing.assert_allclose(numpy(upsample(features(), like)), features()[:, rows][:, :, columns], atol=1e-6)


# ---- Construction


def test_a_dtype_is_the_objects_own():
    before = keras.config.dtype_policy()
    half, full = (comparison.NETWORKS["decoder"](architecture=TINY, dtype=d) for d in ("mixed_float16", None))
    assert keras.config.dtype_policy() is before
    assert (half.output.dtype, full.output.dtype) == ("float16", "float32")
    assert dense(3, "later").dtype_policy == before


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(("dtype", "body"), [("mixed_float16", interrupt), ("float17", lambda: None)])
def test_a_failed_construction_leaves_no_trace(dtype, body):
    before = keras.config.dtype_policy()
    with pytest.raises((KeyboardInterrupt, ValueError)), construction(dtype, initialize=False):
        body()
    assert keras.config.dtype_policy() is before
    later = dense(3, "later")
    later.build((1, 2))
    assert numpy(later.kernel).all()


def test_constructions_nest():
    with construction("mixed_float16", initialize=False):
        with construction("bfloat16"):
            inner = dense(3, "inner")
        outer = dense(3, "outer")
    for layer in (inner, outer):
        layer.build((1, 2))
    assert (inner.kernel.dtype, outer.kernel.dtype) == ("bfloat16", "float32")
    assert numpy(inner.kernel).any()
    assert not numpy(outer.kernel).any()


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX copies")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_kernels_without_values_are_memory_that_nothing_has_written(monkeypatch, dtype):
    made = []

    def aligned(allocate, *arguments):
        made.append((allocate, memory.aligned_array(allocate, *arguments)))
        return made[-1][1]

    monkeypatch.setattr("keras_diffusion.networks.network.aligned_array", aligned)
    with construction(dtype, initialize=False):
        parts = [dense(30, "dense"), embedding(20, 30, "embedding"), conv(30, "conv")]
    for layer, shape in zip(parts, [(1, 20), (1,), (1, 8, 8, 7)], strict=True):
        layer.build(shape)
        allocate, array = made.pop()
        assert allocate is np.zeros
        array[...] = 3
        assert (numpy(layer.weights[0]) == 3).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_kernels_without_values_are_zero_and_can_be_assigned(dtype):
    with construction(dtype, initialize=False):
        parts = [dense(3, "dense"), embedding(4, 5, "embedding"), conv(6, "conv")]
    for layer, shape in zip(parts, [(1, 2), (1,), (1, 8, 8, 7)], strict=True):
        layer.build(shape)
        kernel = layer.weights[0]
        assert kernel.dtype == dtype
        assert not numpy(kernel).any()
        kernel.assign(ops.ones(kernel.shape, dtype))
        kernel.assign_add(ops.ones(kernel.shape, dtype))
        assert (numpy(kernel) == 2).all()


# ---- What every network has from its base class


def tiny(network, **arguments):
    sizes = {"max_length": 7} if network == "text_encoder" else {"img_height": 32, "img_width": 16}
    return comparison.NETWORKS[network](**sizes, **arguments)


@every_network
def test_every_variable_has_its_row_in_the_table_of_names(network):
    paths = [variable.path for variable in tiny(network, architecture=TINY).variables]
    assert sorted(paths) == sorted(row.path for row in rows(network, TINY))
    assert not any("." in path for path in paths)


@every_network
def test_without_initialisation_every_kernel_is_zero(network):
    for variable in tiny(network, architecture=TINY, initialize=False).variables:
        np.testing.assert_array_equal(numpy(variable), variable.name == "gamma", err_msg=variable.path)


@every_network
def test_with_initialisation_no_kernel_is_zero(network):
    for variable in tiny(network, architecture=TINY).variables:
        assert numpy(variable).any() == (variable.name not in ("bias", "beta")), variable.path


@every_network
def test_configuration_survives_json(network):
    model = tiny(network, architecture=TINY, dtype="mixed_bfloat16", name="mine")
    again = type(model).from_config(json.loads(json.dumps(model.get_config())))
    assert again.get_config() == model.get_config()
    assert again.name == "mine"
    assert again.architecture == TINY
    assert again.input_shape == model.input_shape
    assert again.output.dtype == "bfloat16"
    described = [[(v.path, v.shape, v.dtype) for v in m.variables] for m in (model, again)]
    assert described[0] == described[1]


@every_network
def test_a_saved_network_computes_the_same(network, tmp_path):
    name = CASES[network]
    comparison.built(network, name).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is comparison.NETWORKS[network]
    assert comparison.error(network, name, loaded) < comparison.TOLERANCE


@pytest.mark.backend("mixed_float16", "bfloat16")
@every_network
@every_half
def test_half_precision_stays_near(network, dtype):
    name, policy = CASES[network], keras.DTypePolicy(dtype)
    model = comparison.build(network, name, dtype=dtype)
    assert {variable.dtype for variable in model.variables} == {policy.variable_dtype}
    assert model.output.dtype == policy.compute_dtype
    for ours, expected in zip(
        comparison.evaluate(model, network, name), networks.expected(comparison.case(network, name)), strict=True
    ):
        assert relative_error(ours.astype("float32"), expected) < HALVES[dtype]


@pytest.mark.parametrize("home", ["keras_diffusion", "keras_diffusion.networks.decoder"])
def test_weights_load_strictly_however_the_class_was_imported(home, tmp_path):
    """Keras' own reader would take the part that fits, and name nothing."""
    program = f"""
from {home} import Decoder
from keras_diffusion.architectures import TINY
network = Decoder(architecture=TINY)
network.save_weights({str(tmp_path / "a.weights.h5")!r})
try:
    network.load_weights({str(tmp_path / "a.weights.h5")!r}, skip_mismatch=True)
except ValueError as error:
    print(error)
"""
    environment = os.environ | {"KERAS_BACKEND": "numpy"}  # for the shortest start
    child = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert "Weights are loaded strictly" in child.stdout
