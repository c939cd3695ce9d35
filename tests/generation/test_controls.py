"""ControlNets in a generation: against diffusers' pipeline, what costs nothing, and arguments that help."""

import json
from dataclasses import replace
from functools import partial

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image
from safetensors.numpy import save_file

from keras_diffusion import Control, StableDiffusion
from keras_diffusion.architectures import EMOJI, TINY, Level
from keras_diffusion.checkpoints.mapping.loading import stored, targets
from keras_diffusion.checkpoints.mapping.names import controlnet
from keras_diffusion.generation.controls import controls, scales
from keras_diffusion.networks.controlnet import ControlNet
from keras_diffusion.sampling.samplers import build

from ..golden import controlnets, networks
from ..small import SMALL

pytestmark = pytest.mark.filterwarnings("ignore")
ARCHITECTURE = replace(
    SMALL, diffusion_model=replace(TINY.diffusion_model, levels=(Level(16, 2, 1),)), name="custom"
)  # with one level alone, as diffusers can have it
CASE = controlnets.Case(networks.Case("diffusion_model", "small", ARCHITECTURE, ()), (4, 6), "rgb", 4)
IMAGES = {name: networks.uniform(f"pixels.{name}", (16, 16, 3), 0) for name in controlnets.SCALES}
LATENTS = np.random.default_rng(0).standard_normal((2, 8, 8, 4), "float32")
QUICK = {"num_steps": 2, "verbose": 0, "seed": 3}


def tensors(name):
    """The contents of a ControlNet's file of weights, loud enough to show in a picture."""
    loud = ("controlnet_down_blocks", "controlnet_mid_block")
    for tensor, array in controlnets.tensors(CASE, name).items():
        yield tensor, np.ascontiguousarray(50 * array if tensor.startswith(loud) else array)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model and two ControlNets."""
    root = tmp_path_factory.mktemp("control")
    keras.utils.set_random_seed(0)
    model = StableDiffusion(preset=ARCHITECTURE)
    for network in (model.diffusion_model, model.decoder):
        kernel = network.get_layer("conv_out").kernel  # keeps latents and pixels in their range
        kernel.assign(0.2 * kernel)
    model.save_to_preset(root / "model")
    for name in controlnets.SCALES:
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(controlnets.config(CASE)))
        save_file(dict(tensors(name)), root / name / "diffusion_pytorch_model.safetensors")
    return root


@pytest.fixture(scope="module")
def model(folders):
    return StableDiffusion.from_preset(folders / "model")


@pytest.fixture(scope="module")
def nets(folders, model):
    return {name: model.load_controlnet(folders / name) for name in controlnets.SCALES}


@pytest.fixture(scope="module")
def draw(model):
    return partial(model.text_to_image, "a cat", **QUICK)


def decibel(images, expected):
    return 10 * np.log10(255**2 / max(np.square(images.astype("float64") - expected).mean(), 1e-9))


GUIDED = [
    {"first": (0.7, 0.0, 1.0)},
    {"first": (1.0, 0.3, 0.8)},
    {"first": (0.8, 0.0, 1.0), "second": (-0.5, 0.0, 1.0)},
    {"first": (1.2, 0.0, 0.5), "second": (0.6, 0.4, 1.0)},
]


@pytest.mark.backend("control4", "control6")
@pytest.mark.parametrize(
    ("control", "guidance", "guess"),
    [
        *((GUIDED[0], 1.0, guess) for guess in (False, True)),
        *((control, 3.0, False) for control in GUIDED),
        (GUIDED[2], 3.0, True),
    ],
)
def test_draws_what_diffusers_draws(folders, model, nets, control, guidance, guess):
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    theirs = [diffusers.ControlNetModel.from_pretrained(folders / name) for name in control]
    pipeline = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
        folders / "model", controlnet=theirs if len(theirs) > 1 else theirs[0], safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)

    def listed(values):
        values = list(values)
        return values if len(values) > 1 else values[0]

    expected = pipeline(
        ["a cat", "a dog"],
        image=listed(torch.tensor(np.stack([IMAGES[name]] * 2).transpose(0, 3, 1, 2)) for name in control),
        negative_prompt=["blue", "red"],
        num_inference_steps=10,
        guidance_scale=guidance,
        latents=torch.tensor(LATENTS.transpose(0, 3, 1, 2)),
        controlnet_conditioning_scale=listed(scale for scale, _, _ in control.values()),
        control_guidance_start=listed(start for _, start, _ in control.values()),
        control_guidance_end=listed(end for _, _, end in control.values()),
        guess_mode=guess,
        output_type="np",
    ).images
    draw = partial(
        model.generate_image,
        model.encode_text(["a cat", "a dog"]),
        negative_prompt=["blue", "red"],
        num_steps=10,
        unconditional_guidance_scale=guidance,
        diffusion_noise=LATENTS,
        verbose=0,
    )
    expected = (expected * 255).round()
    assert np.isin(expected, (0, 255)).mean() < 0.5
    given = [(nets[name], IMAGES[name], *rest) for name, rest in control.items()]
    assert decibel(draw(control=given, guess_mode=guess), expected) >= 60
    assert decibel(draw(), expected) < 55


# ---- What costs nothing and what is the same


def test_a_scale_of_zero_is_no_control(draw, nets):
    image = IMAGES["first"]
    assert np.abs(draw(control=(nets["first"], image, 0.0)).astype(int) - draw()).max() <= 1
    assert not np.array_equal(draw(control=(nets["first"], image)), draw())


def test_an_image_may_be_anything_that_shows_it(draw, nets, tmp_path):
    pixels = (IMAGES["first"] * 255).round().astype("uint8")
    Image.fromarray(pixels).save(tmp_path / "edges.png")
    expected = draw(control=(nets["first"], pixels))
    for image in (tmp_path / "edges.png", str(tmp_path / "edges.png"), Image.fromarray(pixels), pixels / 255):
        assert np.abs(draw(control=Control(nets["first"], image)).astype(int) - expected).max() <= 1


@pytest.mark.backend
def test_every_image_of_a_batch_follows_its_own(model, nets):
    network = nets["first"]
    both = model.text_to_image("a cat", batch_size=2, control=(network, np.stack(list(IMAGES.values()))), **QUICK)
    for i, image in enumerate(IMAGES.values()):
        alone = model.text_to_image("a cat", control=(network, image), **{**QUICK, "seed": QUICK["seed"] + i})
        assert np.abs(both[i].astype(int) - alone[0]).max() <= 1


@pytest.mark.backend
@pytest.mark.skipif(keras.backend.backend() == "torch", reason="eager torch compiles nothing")
def test_nothing_is_compiled_twice(model, draw, nets):
    network, other = nets["first"], (nets["first"], IMAGES["second"], 0.1, 0.5)
    alternate = nets["second"], IMAGES["first"]
    for control in (None, (network, IMAGES["first"]), alternate):
        draw(control=control)
    compiled = model._engine.compilations
    for control in (other, None, alternate, (network, IMAGES["first"], -1), alternate, None):
        draw(control=control)
    assert model._engine.compilations == compiled


@pytest.mark.backend
def test_weights_that_change_take_effect(draw, nets):
    control = (nets["first"], IMAGES["first"])
    before, bias = draw(control=control), nets["first"].get_layer("controlnet_mid_block").bias
    kept = ops.convert_to_numpy(bias).copy()
    bias.assign(kept + 3)
    after = draw(control=control)
    bias.assign(kept)
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(draw(control=control), before)


def test_the_weights_of_a_network_are_loaded_exactly(nets):
    expected = dict(tensors("second"))
    for target in targets(nets["second"], controlnet(ARCHITECTURE, CASE.conditioning)):
        values = stored(ops.convert_to_numpy(target.variable), target.layout)
        np.testing.assert_array_equal(values, expected[target.name])


@pytest.mark.backend
def test_a_controlnet_has_the_models_dtype(folders):
    model = StableDiffusion.from_preset(folders / "model", dtype="mixed_bfloat16")
    network = model.load_controlnet(folders / "first")
    assert network.get_config()["dtype"] == "mixed_bfloat16"
    latents = model.text_to_image("a cat", control=(network, IMAGES["first"]), output="latents", **QUICK)
    assert latents.std() > 0.1


def test_one_network_may_follow_two_images(draw, nets):
    one = (nets["first"], IMAGES["first"], 0.5)
    twice, other = draw(control=[one, one]).astype(int), draw(control=[one, (one[0], IMAGES["second"], 0.5)])
    assert np.abs(twice - other).max() > 1
    assert np.abs(twice - draw(control=(*one[:2], 1.0))).max() <= 1


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_start_and_end_are_fractions_of_the_steps(sampler):
    steps = build(sampler, 10).steps
    controls = [Control(None, None, 2.0, 0.2, 0.5), Control(None, None, 1.0)]
    first, second = scales(controls, steps).T
    assert {int(step) for step in np.asarray(steps)[first == 2.0]} == {2, 3, 4}
    assert set(first) == {0.0, 2.0}
    assert set(second) == {1.0}
    np.testing.assert_array_equal(scales(controls, np.asarray(steps) + 5), scales(controls, steps))  # a later start


# ---- What is refused

IMAGE = IMAGES["first"]
BAD = [
    (7, TypeError),
    ({"image": IMAGE}, TypeError),
    (["canny"], TypeError),
    ([[]], TypeError),
    (lambda net: (net,), TypeError),
    (lambda net: (net, IMAGE, 1.0, 0.0, 1.0, "more"), TypeError),
    (lambda net: [net, IMAGE], TypeError),
    (lambda net: (IMAGE, net), TypeError),
    (("canny", IMAGE), TypeError),
    (lambda net: (net, None), TypeError),
    (lambda net: (net, "no such file.png"), ValueError),
    (lambda net: (net, np.stack([IMAGE] * 3)), ValueError),
    (lambda net: (net, IMAGE[..., :1]), ValueError),
    (lambda net: (net, 2 * IMAGE), ValueError),
    (lambda net: (net, IMAGE * np.nan), ValueError),
    (lambda net: (net, IMAGE, "1"), TypeError),
    (lambda net: (net, IMAGE, True), TypeError),
    (lambda net: (net, IMAGE, None), TypeError),
    (lambda net: (net, IMAGE, np.nan), ValueError),
    (lambda net: (net, IMAGE, np.inf), ValueError),
    (lambda net: (net, IMAGE, 101), ValueError),
    (lambda net: (net, IMAGE, 1, -0.1), ValueError),
    (lambda net: (net, IMAGE, 1, 0.5, 0.5), ValueError),
    (lambda net: (net, IMAGE, 1, 0.5, 0.2), ValueError),
    (lambda net: (net, IMAGE, 1, 0, 1.1), ValueError),
    (lambda net: (net, IMAGE, 1, "0"), TypeError),
]


@pytest.mark.parametrize(("control", "error"), BAD)
def test_refuses_what_is_no_control(draw, nets, control, error):
    with pytest.raises(error, match=r"(?s)`control.*Received: "):
        draw(control=control(nets["first"]) if callable(control) else control)


def test_images_are_scaled_and_minus_one_stays(model, nets):
    """Minus one marks where a ControlNet for inpainting draws."""
    half = np.full((32, 32, 3), 0.25, "float32")
    half[:8] = -1
    (control,) = controls("control", (nets["first"], half), 2, (64, 64), model.diffusion_model)
    assert control.image.shape == (2, 64, 64, 3)
    assert (control.image[:, :16] == -1).all()
    assert (control.image[:, 16:] >= 0).all()
    np.testing.assert_allclose(control.image[:, 32:], 0.25, atol=1e-3)


def test_refuses_a_controlnet_of_another_model(draw):
    with pytest.raises(ValueError, match="must be a ControlNet for this model"):
        draw(control=(ControlNet(architecture=EMOJI, conditioning=(2, 3, 4), initialize=False), IMAGE))


def test_nothing_is_a_control_of_nothing(draw):
    np.testing.assert_array_equal(draw(control=[]), draw(control=None))
