"""DeepCache: against the whole network with the deep features put into their place by hand."""

from copy import copy
from functools import partial

import keras
import numpy as np
import pytest
from keras import ops

from keras_diffusion import StableDiffusion
from keras_diffusion.engines.engine import Engine
from keras_diffusion.networks import deep_cache
from keras_diffusion.networks.controlnet import ControlNet, with_controlnets
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.layers import ConcatenateSkip
from keras_diffusion.networks.timesteps import timestep_embedding
from keras_diffusion.sampling import noise
from keras_diffusion.sampling.samplers import build, rows_of_every

from ..golden import comparison, networks
from ..small import SMALL

# Importing openvino forks, which JAX warns about once it runs.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")
QUICK = {"prompt": "a cat", "num_steps": 5, "seed": 3, "verbose": 0, "output": "latents"}
GUIDANCE = 3.0


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return StableDiffusion(preset=SMALL)


@pytest.fixture(scope="module")
def draw(model):
    return partial(model.text_to_image, **QUICK)


def inputs(timestep, batch=2):
    shape = SMALL.diffusion_model
    return [
        ops.convert_to_tensor(x)
        for x in (
            networks.uniform(f"latent {timestep}", (batch, 8, 8, shape.in_channels)),
            timestep_embedding([timestep] * batch, shape.frequencies),
            networks.uniform("context", (batch, 77, shape.context)),
        )
    ]


def spliced(network, given, features=None):
    """The prediction and the features that meet the first feature map on the way up, or with others in their place."""
    first, met = [], []

    def call(layer):
        def called(*arguments):
            if isinstance(layer, ConcatenateSkip) and arguments[1] is first[0]:
                met.append(arguments[0] if features is None else features)
                arguments = met[0], first[0]
            result = layer(*arguments)
            if layer.name == "conv_in":
                first.append(result)
            return result

        return called

    prediction = network._run_through_graph(given, operation_fn=call)
    return prediction, met[0]


def difference(x, y):
    assert x.shape == y.shape
    return np.abs(ops.convert_to_numpy(x) - ops.convert_to_numpy(y)).max()


def compare_with_the_whole_network(branch):
    network = DiffusionModel(architecture=SMALL)
    network.deep = [layer for layer in network.layers if isinstance(layer, ConcatenateSkip)][branch].input[0]
    whole, shallow = deep_cache.deep_and_shallow(network)
    expected, features = spliced(network, inputs(500))
    prediction, kept = whole(inputs(500))
    assert difference(prediction, expected) < 1e-6
    assert difference(kept, features) < 1e-6

    later, _ = spliced(network, inputs(400), features)
    assert difference(shallow([*inputs(400), kept]), later) < 1e-6
    assert difference(later, network(inputs(400))) > 1e-2
    assert {id(v) for v in (*whole.variables, *shallow.variables)} == {id(v) for v in network.variables}
    assert len(shallow.variables) < len(network.variables) / 2


def test_the_networks_are_the_whole_one_and_its_end():
    compare_with_the_whole_network(branch=-1)


def test_another_branch_point_shows():
    with pytest.raises(AssertionError):
        compare_with_the_whole_network(branch=-2)


@pytest.mark.backend("dpmpp_2m")
@pytest.mark.parametrize(("sampler", "interval"), [("dpmpp_2m", (0, 1)), ("heun", (0, 1)), ("ddim", (0.4, 1))])
def test_a_generation_is_the_recurrence_with_features_of_earlier_steps(model, draw, sampler, interval):
    num_steps, n = 4, 2
    table = build(sampler, num_steps)
    contexts = np.concatenate([model.encode_text(text) for text in ("", QUICK["prompt"])])
    x, history, previous = np.float64(table.initial_scale) * noise.starting_noise([3], (8, 8, 4)), [], None
    for (t, p, q, a, _, *b), step in zip(table.rows, table.steps, strict=True):
        guided = step >= interval[0] * num_steps
        if guided != previous:  # features are of a batch with or without the negative prompt
            features, since, previous = None, step, guided
        context = contexts if guided else contexts[1:]
        embedding = timestep_embedding([t] * len(context), SMALL.diffusion_model.frequencies)
        given = np.repeat(x, len(context), axis=0).astype("float32"), embedding, context
        kept = None if (step - since) % n == 0 else features
        prediction, features = spliced(model.diffusion_model, [*map(ops.convert_to_tensor, given)], kept)
        *without, prediction = np.split(ops.convert_to_numpy(prediction), len(context))
        if guided:
            prediction = without[0] + GUIDANCE * (prediction - without[0])
        history.insert(0, p * x + q * prediction)
        x = a * x + sum(weight * h for weight, h in zip(b, history, strict=False))

    options = {"sampler": sampler, "guidance_interval": interval, "num_steps": num_steps}
    options["unconditional_guidance_scale"] = GUIDANCE
    latents = draw(deep_cache=n, **options)
    np.testing.assert_allclose(latents, x, rtol=1e-4, atol=1e-4)
    assert difference(latents, draw(**options)) > 1e-3


def test_one_step_is_no_cache(draw):
    np.testing.assert_array_equal(draw(deep_cache=1), draw())
    np.testing.assert_array_equal(draw(deep_cache=1, guidance_interval=(0, 0.5)), draw(guidance_interval=(0, 0.5)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"deep_cache": 2}, "dsdsd"),
        ({"deep_cache": 9}, "dssss"),
        ({"deep_cache": 2, "sampler": "heun"}, "ddssddssd"),
        ({"deep_cache": 3, "guidance_interval": (0.2, 1)}, "ddssd"),
        ({"deep_cache": 2, "image": np.zeros((16, 16, 3), "uint8"), "strength": 0.6}, "dsd"),
    ],
)
def test_which_rows_run_the_whole_network(model, draw, monkeypatch, options, expected):
    rows, run = [], model._engine.run
    names = {"whole_diffusion_model": "d", "shallow_diffusion_model": "s"}
    monkeypatch.setattr(
        model._engine, "run", lambda stage, net, *given: rows.append(names.get(net.name)) or run(stage, net, *given)
    )
    seen = []
    draw(callback=lambda step, *_: seen.append(step), **options)
    assert "".join(filter(None, rows)) == expected
    assert seen == [step for step, *_ in model.denoise(**{**QUICK, **options})]


def test_rows_are_counted_anew_where_a_column_changes():
    steps, columns = np.array([3, 3, 4, 4, 5, 6, 7, 8]), np.array([[1.0, 2.0]] * 5 + [[1.0, 0.0]] * 3)
    assert rows_of_every(steps, 1, columns).all()
    assert rows_of_every(steps, 2).tolist() == [True, True, False, False, True, False, True, False]
    assert rows_of_every(steps, 2, columns).tolist() == [True, True, False, False, True, True, False, True]


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="eager torch compiles nothing")
def test_nothing_is_compiled_twice(model, draw):
    for options in ({"deep_cache": 2}, {}):
        draw(**options)
    compiled = model._engine.compilations
    for options in ({"deep_cache": 3}, {"deep_cache": 2, "sampler": "heun"}, {}, {"deep_cache": 4, "eta": 1.0}):
        draw(**options)
    assert model._engine.compilations == compiled


def test_weights_that_change_take_effect(model, draw):
    before, bias = draw(deep_cache=2), model.diffusion_model.get_layer("conv_out").bias
    kept = ops.convert_to_numpy(bias).copy()
    bias.assign(kept + 1)
    after = draw(deep_cache=2)
    bias.assign(kept)
    assert difference(before, after) > 1e-3
    np.testing.assert_array_equal(draw(deep_cache=2), before)


def test_half_precision_costs_no_more_than_without(model, draw):
    half = copy(model)
    half._engine, half.diffusion_model = Engine(), DiffusionModel(architecture=SMALL, dtype="mixed_bfloat16")
    half.diffusion_model.set_weights(model.diffusion_model.get_weights())
    without, error = (np.std(half.text_to_image(**QUICK, deep_cache=n) - draw(deep_cache=n)) for n in (1, 2))
    assert 0 < error < 2 * without


def test_openvino_gives_the_same(model, draw):
    pytest.importorskip("openvino")
    other = copy(model)
    other._engine = Engine("openvino")
    for options in ({"deep_cache": 2}, {"deep_cache": 3, "guidance_interval": (0.2, 1)}):
        expected = draw(**options)
        tolerance = comparison.TOLERANCE * np.abs(expected).max()  # random weights make latents of order 10
        np.testing.assert_allclose(other.text_to_image(**QUICK, **options), expected, rtol=0, atol=tolerance)


# ---- With ControlNets


@pytest.fixture(scope="module")
def controlnet():
    network = ControlNet(architecture=SMALL, conditioning=(4, 6))
    for name in ("controlnet_down_blocks_0", "controlnet_down_blocks_2", "controlnet_mid_block"):
        layer = network.get_layer(name)
        layer.kernel.assign(networks.uniform(layer.name, layer.kernel.shape))
    return network


IMAGE = networks.uniform("image", (16, 16, 3), 0)


def test_residuals_are_kept_like_features(controlnet):
    network = DiffusionModel(architecture=SMALL)
    whole, shallow = deep_cache.deep_and_shallow(network, (controlnet,))
    control = [ops.ones((1, 1, SMALL.diffusion_model.residuals)), ops.convert_to_tensor(np.stack([IMAGE] * 2))]
    prediction, *kept = whole([*inputs(500), *control])
    assert difference(prediction, with_controlnets(network, (controlnet,))([*inputs(500), *control])) < 1e-5
    assert difference(shallow([*inputs(500), *kept]), prediction) < 1e-5
    _, without = deep_cache.deep_and_shallow(network)
    assert difference(without([*inputs(500), kept[0]]), prediction) > 1e-3


def test_controls_in_a_generation(draw, controlnet):
    def controlled(deep_cache, *options):
        return draw(deep_cache=deep_cache, control=(controlnet, IMAGE, *options))

    often, seldom, never = controlled(2, 1.0), controlled(5, 1.0), controlled(2, 0.0)
    assert difference(often, seldom) > 1e-3
    # A control that ends has features computed without it at once.
    assert difference(controlled(5, 1.0, 0.0, 0.4), seldom) > 1e-3
    plain = draw(deep_cache=2)
    assert difference(often, plain) > 1e-3
    assert difference(never, plain) < 1e-4


# ---- What is refused


def test_a_network_that_is_no_diffusion_model_is_refused(model, draw, monkeypatch):
    network = model.diffusion_model
    monkeypatch.setattr(model, "diffusion_model", keras.Model(network.inputs, network.outputs))
    with pytest.raises(ValueError, match=r"needs a DiffusionModel.* Received: deep_cache=2 and a Functional"):
        draw(deep_cache=2)


@pytest.mark.parametrize("take_apart", [deep_cache.deep_and_shallow, with_controlnets], ids=["deep_cache", "control"])
def test_a_call_of_its_own_is_not_left_out(take_apart):
    class Own(DiffusionModel):
        def call(self, inputs):
            return -super().call(inputs)

    with pytest.raises(TypeError, match=r"`call` of its own.*Received: Own"):
        take_apart(Own(architecture=SMALL, initialize=False), (ControlNet(architecture=SMALL, conditioning=(4, 6)),))
