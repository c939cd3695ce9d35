"""Weights that are stored in half precision and computed with in float32."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_diffusion import StableDiffusion
from keras_diffusion.architectures import INT8, STORED, TINY
from keras_diffusion.engines.engine import Engine
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.network import construction
from keras_diffusion.networks.text_encoder import TextEncoder

pytestmark = [
    pytest.mark.backend("float32_from_float16"),
    # Importing openvino forks, which JAX warns about once it runs.
    pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning"),
]
QUICK = {"num_steps": 2, "verbose": 0, "seed": 0}
NETWORKS = ("text_encoder", "diffusion_model", "decoder", "image_encoder")


@pytest.fixture(scope="module", params=[name for name in STORED if name not in INT8])
def models(request):
    """A model with stored weights, and one of float32 with the same numbers."""
    keras.utils.set_random_seed(0)
    half, full = (StableDiffusion(preset=TINY, dtype=dtype) for dtype in (request.param, "float32"))
    for name in NETWORKS:
        ours, theirs = getattr(full, name), getattr(half, name)
        for variable, stored in zip(ours.variables, theirs.variables, strict=True):
            variable.assign(ops.cast(stored.value, "float32"))
    return half, full


def test_weights_are_half_as_large(models):
    stored = STORED[models[0].diffusion_model.get_config()["dtype"]][1]
    for name in NETWORKS:
        ours, theirs = (getattr(model, name) for model in models)
        assert {variable.dtype for variable in ours.variables} == {stored}
        assert {variable.dtype for variable in theirs.variables} == {"float32"}
        assert {layer.compute_dtype for layer in ours._flatten_layers()} == {"float32"}


def test_the_picture_is_that_of_the_same_weights_in_float32(models):
    for options in {}, {"clip_skip": 1}, {"image": np.full((64, 64, 3), 0.3), "strength": 0.5}:
        pictures = [model.text_to_image("a cat", **options, **QUICK).astype(int) for model in models]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1
    np.testing.assert_allclose(*(model.encode_text("a cat") for model in models), rtol=0, atol=1e-6)


def test_openvino_computes_in_float32(models):
    pytest.importorskip("openvino")
    tokens = np.arange(77, dtype="int32")[None]
    half, full = models
    found, expected = Engine("openvino").encode(half.text_encoder, tokens), Engine().encode(full.text_encoder, tokens)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_it_is_saved_and_loaded(models, tmp_path):
    half, _ = models
    dtype = half.diffusion_model.get_config()["dtype"]
    half.save_to_preset(tmp_path / "model")
    again = StableDiffusion.from_preset(tmp_path / "model", dtype=dtype)
    for name in NETWORKS:
        for ours, theirs in zip(getattr(again, name).variables, getattr(half, name).variables, strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(*(ops.convert_to_numpy(ops.cast(x.value, "float32")) for x in (ours, theirs)))


def test_a_configuration_says_so(models):
    half, _ = models
    again = DiffusionModel.from_config(half.diffusion_model.get_config())
    assert [v.dtype for v in again.variables] == [v.dtype for v in half.diffusion_model.variables]
    policy = half.diffusion_model.layers[-1].dtype_policy
    assert keras.dtype_policies.deserialize(keras.dtype_policies.serialize(policy)) == policy


def test_it_is_no_global_policy():
    with construction("float32_from_float16"):
        assert keras.config.dtype_policy().name == "float32_from_float16"
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="about TensorFlow's graph")
def test_a_graph_converts_weights_in_turn():
    """All of them at the start would be the memory of float32 and half as much again."""
    import tensorflow as tf

    from keras_diffusion.engines.tensorflow import _in_turn

    network = TextEncoder(architecture=TINY, dtype="float32_from_float16")
    step = tf.function(_in_turn(network)).get_concrete_function([tf.zeros((1, 77), "int32")] * 2)
    reads = [op for op in step.graph.get_operations() if op.type == "ReadVariableOp"]
    assert len(reads) >= len(network.variables)
    assert all(op.control_inputs for op in reads)
