"""The ControlNet and what it does to the diffusion model, against diffusers' outputs."""

from functools import cache

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_diffusion.architectures import TINY
from keras_diffusion.checkpoints.mapping import names
from keras_diffusion.checkpoints.mapping.layer_tables import LAYOUTS
from keras_diffusion.checkpoints.mapping.loading import targets
from keras_diffusion.networks import controlnet
from keras_diffusion.networks.controlnet import ControlNet, with_controlnets
from keras_diffusion.networks.diffusion_model import DiffusionModel, UNetEncoder
from keras_diffusion.networks.timesteps import timestep_embedding

from ..golden import comparison, controlnets, networks
from ..golden.comparison import TOLERANCE, once

CASES = {case.name: case for case in controlnets.CASES}
SMALLEST = CASES["inpainting"]


def each_case(test):
    return pytest.mark.backend("inpainting")(pytest.mark.parametrize("case", CASES.values(), ids=CASES)(test))


EXPECTED = controlnets.expected()


def build(case, name):
    network = ControlNet(
        architecture=case.architecture,
        conditioning=case.conditioning,
        channel_order=case.channel_order,
        initialize=False,
        name=name,
    )
    tensors = controlnets.tensors(case, name)
    for target in targets(network, names.controlnet(case.architecture, case.conditioning)):
        target.variable.assign(LAYOUTS[target.layout][0](tensors[target.name]))
    return network


@cache
def built(name):
    """The two ControlNets of a case."""
    return both(CASES[name])


@cache
def steered(name):
    return joined(name, built(name))


def joined(name, pair):
    return with_controlnets(comparison.built("diffusion_model", name), pair)


def both(case):
    return [build(case, name) for name in controlnets.SCALES]


def inputs(case):
    latent, timesteps, context = networks.inputs(case.unet, case.unet.calls[0])
    return tensors(latent, timestep_embedding(timesteps, case.architecture.diffusion_model.frequencies), context)


def tensors(*arrays):
    return [ops.convert_to_tensor(array, "float32") for array in arrays]


def say(case, name, network):
    """What a ControlNet returns."""
    latent, timestep, context = inputs(case)
    image = ops.convert_to_tensor(controlnets.image(case, name))
    residuals = network([latent[..., : case.in_channels], timestep, context, image])
    return [ops.convert_to_numpy(residual) for residual in residuals]


def predict(case, network, scales=controlnets.SCALES):
    """What a steered diffusion model returns."""
    batch = len(case.unet.calls[0]["timesteps"])
    places = case.architecture.diffusion_model.residuals
    scales = np.tile(np.array(list(scales.values()))[:, None], (batch, 1, places))
    further = tensors(scales, *(controlnets.image(case, name) for name in controlnets.SCALES))
    return ops.convert_to_numpy(network([*inputs(case), *further]))


def adapt(case, network):
    """What a diffusion model with the features of an adapter returns."""
    features = tensors(*controlnets.features(case))
    places = [keras.Input(x.shape[1:]) for x in (*network.inputs, *features)]
    first = len(network.inputs)
    adapted = keras.Model(places, network.steer(places[:first], features=places[first:])[0])
    return ops.convert_to_numpy(adapted([*inputs(case), *features]))


def error(case, pair=None, scales=controlnets.SCALES):
    """The largest deviation of anything that the ControlNets of a case say or bring about."""
    network = joined(case.name, pair) if pair else steered(case.name)
    pair, outputs = pair or built(case.name), {"steered": predict(case, network, scales)}
    for name, network in zip(controlnets.SCALES, pair, strict=True):
        for place, residual in zip(controlnets.places(case), say(case, name, network), strict=True):
            outputs[f"{name}_{place}"] = residual[..., :: controlnets.EVERY]
    expected = {name: EXPECTED[f"{case.name}_{name}"] for name in outputs}
    assert {name: x.shape for name, x in outputs.items()} == {name: x.shape for name, x in expected.items()}
    return max(np.abs(outputs[name] - expected[name]).max() for name in outputs)


@each_case
def test_computes_what_diffusers_computes(case):
    assert error(case) < TOLERANCE


@each_case
def test_adapters_do_what_they_do_in_diffusers(case):
    adapted = adapt(case, comparison.built("diffusion_model", case.name))
    np.testing.assert_allclose(adapted, EXPECTED[f"{case.name}_adapted"], rtol=0, atol=TOLERANCE)


# ---- A change shows


def second_place_first(self, inputs, residuals=(), features=(), steer=DiffusionModel.steer):
    return steer(self, inputs, [residuals[1], residuals[0], *residuals[2:]], features)


def middle_left_out(self, inputs, residuals=(), features=(), steer=DiffusionModel.steer):
    return steer(self, inputs, [*residuals[:-1], 0 * residuals[-1]], features)


CHANGES = {
    "two residuals exchanged": (DiffusionModel, "steer", second_place_first),
    "nothing in the middle": (DiffusionModel, "steer", middle_left_out),
    "image padded otherwise": (layers, "ZeroPadding2D", lambda _, pad=layers.ZeroPadding2D: pad(((0, 1), (0, 1)))),
    "another activation": (controlnet, "Silu", lambda: layers.Activation("relu")),
    "no timestep": (UNetEncoder, "embed_time", lambda self, x, embed=UNetEncoder.embed_time: 0 * embed(self, x)),
}


@once
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_shows(change, monkeypatch):
    pair = built(SMALLEST.name)
    monkeypatch.setattr(*CHANGES[change])
    if CHANGES[change][0] is not DiffusionModel:
        pair = both(SMALLEST)
    assert not error(SMALLEST, pair) < 1e-4


@once
@pytest.mark.parametrize("scales", [{"first": 0.8, "second": -1.4}, {"first": -1.5, "second": 0.8}])
def test_another_scale_shows(scales):
    assert not error(SMALLEST, scales=scales) < 1e-4


@once
def test_another_channel_order_shows():
    assert SMALLEST.channel_order == "bgr"
    assert not error(SMALLEST, both(SMALLEST._replace(channel_order="rgb"))) < 1e-4


@once
@pytest.mark.parametrize(
    "layer",
    [
        "controlnet_down_blocks_0",
        "controlnet_down_blocks_3",
        "controlnet_mid_block",
        "controlnet_cond_embedding_conv_out",
        "controlnet_cond_embedding_blocks_3",
    ],
)
def test_a_lost_layer_shows(layer):
    kernel = built(SMALLEST.name)[1].get_layer(layer).kernel
    kept = ops.convert_to_numpy(kernel).copy()
    kernel.assign(0 * kept)
    changed = error(SMALLEST)
    kernel.assign(kept)
    assert not changed < 1e-4


# ---- What holds without diffusers


@pytest.fixture(scope="module")
def tiny():
    keras.utils.set_random_seed(0)
    return DiffusionModel(architecture=TINY), ControlNet(architecture=TINY)


def tiny_inputs():
    shape = TINY.diffusion_model
    return tensors(
        networks.uniform("latent", (2, 8, 8, 4)),
        timestep_embedding([7, 500], shape.frequencies),
        networks.uniform("context", (2, 5, shape.context)),
    )


def test_an_untrained_controlnet_changes_nothing(tiny):
    network, control = tiny
    plain = ops.convert_to_numpy(network(tiny_inputs()))
    further = tensors(np.ones((1, 1, 5)), networks.uniform("image", (2, 64, 64, 3), 0))
    np.testing.assert_array_equal(
        ops.convert_to_numpy(with_controlnets(network, [control])([*tiny_inputs(), *further])), plain
    )


def test_a_steered_network_shares_its_layers(tiny):
    network, control = tiny
    whole = with_controlnets(network, [control, control])
    assert {id(v) for v in whole.variables} == {id(v) for v in (*network.variables, *control.variables)}
    assert len(whole.variables) == len(network.variables) + len(control.variables)


@pytest.mark.parametrize("given", [{"residuals": [0]}, {"residuals": [0] * 6}, {"features": [0]}])
def test_as_many_additions_as_places(tiny, given):
    with pytest.raises(ValueError, match=rf"Received: {len(*given.values())} tensors"):
        tiny[0].steer(tiny[0].inputs, **given)


def test_is_described_by_its_configuration():
    network = ControlNet(architecture=TINY, conditioning=(2, 3, 4, 5), channel_order="bgr", dtype="mixed_bfloat16")
    again = ControlNet.from_config(network.get_config())
    assert again.get_config() == network.get_config()
    assert [v.shape for v in again.variables] == [v.shape for v in network.variables]


@pytest.mark.backend("mixed_float16", "bfloat16")
@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
def test_half_precision(dtype, tiny):
    network, control = DiffusionModel(architecture=TINY, dtype=dtype), ControlNet(architecture=TINY, dtype=dtype)
    network.set_weights(tiny[0].get_weights())
    control.get_layer("controlnet_mid_block").bias.assign(np.full(32, 0.5))
    further = tensors(np.ones((1, 1, 5)), networks.uniform("image", (2, 64, 64, 3), 0))
    prediction = with_controlnets(network, [control])([*tiny_inputs(), *further])
    assert keras.backend.standardize_dtype(prediction.dtype) == dtype.removeprefix("mixed_")
    plain = ops.convert_to_numpy(ops.cast(network(tiny_inputs()), "float32"))
    assert np.abs(ops.convert_to_numpy(ops.cast(prediction, "float32")) - plain).max() > 1e-2


@pytest.mark.parametrize(
    "arguments",
    [
        {"conditioning": (16, 32, 96)},
        {"conditioning": ()},
        {"channel_order": "gbr"},
        {"channel_order": None},
        {"img_height": 60},
    ],
)
def test_refuses_what_it_cannot_be(arguments):
    with pytest.raises(ValueError, match="Received: "):
        ControlNet(architecture=TINY, **arguments)
