"""Kernels that are stored as int8."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_diffusion import StableDiffusion, training
from keras_diffusion.checkpoints.mapping import loading
from keras_diffusion.checkpoints.mapping.names import rows
from keras_diffusion.engines.choice import choose_by_work
from keras_diffusion.engines.engine import Engine
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.int8 import is_int8, quantise

from ..small import SMALL

# Importing openvino forks, which JAX warns about once it runs.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")
QUICK = {"num_steps": 2, "verbose": 0, "seed": 0}
NAMES = ("text_encoder", "diffusion_model")


def targets(model):
    networks = {name: getattr(model, name) for name in model.architecture.networks}
    found, _ = loading.find_targets(networks, model.architecture)
    return {target.name: target for part in found.values() for target in part}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model of float32, the same read as int8, and what that saves read as float32."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("int8")
    full = StableDiffusion(preset=SMALL)
    full.save_to_preset(folder / "full")
    quantised = StableDiffusion.from_preset(folder / "full", dtype="float32_from_int8")
    quantised.save_to_preset(folder / "quantised")
    return full, quantised, StableDiffusion.from_preset(folder / "quantised")


def test_values_are_rounded_for_each_channel():
    values = np.array([[0.5, 0.0, -254.0, 1e-44], [-1.27, 0.0, 3.0, 0.0]], "float32")
    codes, scale = quantise(values)
    assert codes.tolist() == [[50, 0, -127, 0], [-127, 0, 2, 0]]  # 1.5 becomes the even one
    np.testing.assert_allclose(scale[[0, 2]], [0.01, 2.0], rtol=1e-6)
    assert np.isfinite(codes * scale).all()


@pytest.mark.backend
def test_kernels_are_rounded_and_the_rest_is_as_it_was(models):
    full, quantised, again = map(targets, models)
    kernels = {name for name, target in quantised.items() if target.scale is not None}
    assert {quantised[name].variable.dtype for name in kernels} == {"int8"}
    assert {target.variable.dtype for name, target in quantised.items() if name not in kernels} == {"float32"}
    for name, target in quantised.items():
        step = 0 if target.scale is None else ops.convert_to_numpy(target.scale)
        assert (np.abs(target.values() - full[name].values()) <= 0.501 * step).all()
        np.testing.assert_array_equal(target.values(), again[name].values())
    inside = {row.path for network in NAMES for row in getattr(models[1], network).variables if "kernel" in row.path}
    assert len(inside) == 2 * len(kernels)  # none of the text encoder and the diffusion model stays a float


@pytest.mark.backend
def test_the_image_is_that_of_the_same_weights_in_float32(models):
    images = [model.text_to_image("a cat", **QUICK).astype(int) for model in models[1:]]
    assert np.abs(images[0] - images[1]).max() <= 1


def test_openvino_draws_it_too(models):
    pytest.importorskip("openvino")
    tokens = np.arange(77, dtype="int32")[None]
    found, expected = (Engine(way).encode(models[1].text_encoder, tokens) for way in ("openvino", False))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.backend
def test_a_network_is_built_again_and_saved_as_floats(tmp_path):
    network = DiffusionModel(architecture=SMALL, dtype="float16_from_int8")
    assert {layer.compute_dtype for layer in network.layers[2:]} == {"float16"}
    network.save(tmp_path / "network.keras")
    again = keras.models.load_model(tmp_path / "network.keras")
    assert is_int8(again)
    for ours, theirs in zip(network.variables, again.variables, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(*(ops.convert_to_numpy(x) for x in (ours, theirs)))
    codes = next(v for v in again.variables if v.path == "conv_in/kernel")
    assert len(np.unique(ops.convert_to_numpy(codes))) > 50  # the first values are random ones
    network.save_weights(tmp_path / "network.weights.h5")
    floats = DiffusionModel(architecture=SMALL, initialize=False)
    floats.load_weights(tmp_path / "network.weights.h5")
    for ours, theirs in zip(targets_of(again), targets_of(floats), strict=True):
        np.testing.assert_array_equal(ours.values(), theirs.values())


def targets_of(network):
    return loading.targets(network, rows("diffusion_model", network.architecture))


def test_what_would_be_lost_is_refused(models, tmp_path):
    with pytest.raises(ValueError, match="text_encoder, diffusion_model in int8"):
        models[1].load_lora(tmp_path / "any.safetensors")
    with pytest.raises(ValueError, match="int8 cannot be trained"):
        training.Trainer(models[1], train="lora")


def test_openvino_which_holds_floats_is_not_chosen_for_them(models, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr("keras_diffusion.engines.choice.AUTO", {("tensorflow", "cpu"): {"openvino": 1}})
    monkeypatch.setattr("keras.backend.backend", lambda: "tensorflow")
    monkeypatch.setattr("keras_diffusion.engines.choice.device", lambda: "cpu")
    assert [choose_by_work(10, 10, model.diffusion_model) for model in models[:2]] == ["openvino", "graph"]
