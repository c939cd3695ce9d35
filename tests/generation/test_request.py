"""What a call asks for: pictures to start from, masks, strengths and samplers; results in each form."""

import os
import signal
from dataclasses import replace
from functools import partial

import keras
import numpy as np
import pytest
from PIL import Image

from keras_diffusion import ControlNet, StableDiffusion
from keras_diffusion.generation.request import make_request
from keras_diffusion.sampling.registry import SAMPLERS

from ..small import SMALL_OF_EIGHT as ARCHITECTURE

QUICK = {"num_steps": 4, "seed": 5, "verbose": 0}
PICTURE = np.random.default_rng(1).integers(0, 256, (48, 64, 3), "uint8")
MASK = np.zeros((48, 64), bool)
MASK[17:30, 9:41] = True  # not along the borders of latents


@pytest.fixture(scope="module")
def model():
    return make_model()


def make_model(architecture=ARCHITECTURE):
    """A model whose images have the size of `PICTURE`, so that fewer sizes are compiled."""
    keras.utils.set_random_seed(0)
    return StableDiffusion(48, 64, preset=architecture)


@pytest.mark.backend
def test_an_image_starts_from_a_picture_and_has_its_size(model):
    images = model.image_to_image(PICTURE, "a cat", strength=0.5, **QUICK)

    assert images.shape == (1, 48, 64, 3)
    assert not np.array_equal(images, model.text_to_image("a cat", **QUICK))
    for same in (Image.fromarray(PICTURE), [PICTURE], PICTURE[None]):
        np.testing.assert_array_equal(model.image_to_image(same, "a cat", strength=0.5, **QUICK), images)


@pytest.mark.parametrize(("strength", "steps"), [(0.25, [1]), (0.5, [1, 2]), (0.99, [1, 2, 3]), (1, [1, 2, 3, 4])])
def test_strength_is_the_share_of_steps_that_are_taken(model, strength, steps):
    taken = list(model.denoise("a cat", image=PICTURE, strength=strength, **QUICK))

    assert [step for step, *_ in taken] == [step + 4 - len(steps) for step in steps]


def test_every_picture_of_a_list_has_its_image(model):
    pictures = np.stack([PICTURE, 255 - PICTURE])
    both = model.image_to_image(pictures, "a cat", strength=0.5, **{**QUICK, "seed": [5, 5]})
    alone = model.image_to_image(pictures[1], "a cat", strength=0.5, **QUICK)
    variations = model.image_to_image(PICTURE, "a cat", strength=0.5, batch_size=2, **QUICK)

    assert np.abs(both[1].astype(int) - alone[0]).max() <= 1
    assert variations.shape == (2, 48, 64, 3)
    assert not np.array_equal(*variations)


@pytest.mark.backend
def test_latents_may_take_the_place_of_a_picture(model):
    latents = model._engine.encode_image(model.image_encoder, PICTURE[None] / 127.5 - 1)
    expected = model.image_to_image(PICTURE, "a cat", strength=0.5, **QUICK)

    assert np.abs(model.image_to_image(latents, "a cat", strength=0.5, **QUICK).astype(int) - expected).max() <= 1
    assert model.image_to_image(latents[:, :5], "a cat", **QUICK).shape == (1, 40, 64, 3)
    with pytest.raises(ValueError, match="needs an `image` of pixels"):
        model.inpaint(latents, MASK, "a cat", **QUICK)
    with pytest.raises(ValueError, match="cannot be scaled"):
        model.image_to_image(latents, "a cat", img_height=96, **QUICK)


def test_latents_of_three_channels_are_not_taken_for_pictures():
    """Numbers that can be pixels are pixels; latents leave [0, 1]."""
    autoencoder = replace(ARCHITECTURE.autoencoder, latent_channels=3)
    unet = replace(ARCHITECTURE.diffusion_model, in_channels=3, out_channels=3)
    model = make_model(replace(ARCHITECTURE, autoencoder=autoencoder, diffusion_model=unet))
    latents = np.random.default_rng(0).standard_normal((1, 6, 8, 3), "float32")

    given = ("prompt", "a cat", None, 1, 4, 7.5, 0)
    for image, field in ((PICTURE[None], "pixels"), (PICTURE[None] / 255, "pixels"), (latents, "latents")):
        assert getattr(make_request(model, *given, image=image), field) is not None


def test_a_request_holds_pixels_or_latents(model):
    given = ("prompt", "a cat", None, 2, 4, 7.5, 0)
    for image, field in ((PICTURE, "pixels"), (np.ones((1, 6, 8, 4)), "latents"), (None, None)):
        request = make_request(model, *given, image=image)
        held = {name for name in ("pixels", "latents") if getattr(request, name) is not None}
        assert held == ({field} if field else set())
        assert not held or len(getattr(request, field)) == 2


def test_a_request_knows_which_rows_are_guided_deep_and_controlled(model):
    control = (ControlNet(architecture=ARCHITECTURE), PICTURE, 0.5, 0, 0.75)
    request = make_request(
        model,
        "prompt",
        "a cat",
        *(None, None, 4, 7.5, 0),
        image=PICTURE,
        control=control,
        guidance_interval=(0.25, 1),
        deep_cache=2,
    )
    assert request.guided.tolist() == [False, True, True, True]
    assert request.scales.tolist() == [[0.5], [0.5], [0.5], [0.0]]
    assert request.deep.tolist() == [True, True, False, True]


def test_a_picture_is_scaled_on_request(model):
    assert model.image_to_image(PICTURE[:45], "a cat", img_height=40, **QUICK).shape == (1, 40, 64, 3)


def test_a_mask_is_scaled_with_its_picture(model):
    whole = make_request(model, "prompt", "a cat", *(None, None, 2, 7.5, 0), image=PICTURE, mask=MASK, img_height=24)
    np.testing.assert_array_equal(whole.mask[0], MASK[1::2])
    with pytest.raises(ValueError, match="48×64"):
        make_request(model, "prompt", "a cat", *(None, None, 2, 7.5, 0), image=PICTURE, mask=MASK[:40], img_height=24)


@pytest.mark.backend
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_what_is_not_repainted_stays_bit_by_bit(model, strength):
    image = model.inpaint(PICTURE, MASK, "a cat", strength, **QUICK)[0]

    np.testing.assert_array_equal(image[~MASK], PICTURE[~MASK])
    assert not np.array_equal(image[MASK], PICTURE[MASK])
    kept = model.inpaint(PICTURE, ~MASK, "a cat", strength, mask_white="keep", **QUICK)[0]
    np.testing.assert_array_equal(kept, image)


def test_known_latents_stay_known(model):
    """Far from the mask, the last latents are those of the picture."""
    latents = model.inpaint(PICTURE, MASK, "a cat", output="latents", **QUICK)
    known = model._engine.encode_image(model.image_encoder, PICTURE[None] / 127.5 - 1)
    cells = MASK.reshape(6, 8, 8, 8).any(axis=(1, 3))

    np.testing.assert_allclose(latents[0][~cells], known[0][~cells], rtol=0, atol=1e-6)
    assert np.abs(latents[0][cells] - known[0][cells]).min() > 0


@pytest.mark.backend
def test_a_model_for_inpainting_draws_with_and_without_a_picture():
    model = make_model(replace(ARCHITECTURE, diffusion_model=replace(ARCHITECTURE.diffusion_model, in_channels=9)))
    image = model.inpaint(PICTURE, MASK, "a cat", **QUICK)[0]

    np.testing.assert_array_equal(image[~MASK], PICTURE[~MASK])
    assert model.text_to_image("a cat", **QUICK).shape == (1, 48, 64, 3)
    latents = model.text_to_image("a cat", output="latents", **QUICK)
    assert model.image_to_image(latents, "a cat", **QUICK).shape == (1, 48, 64, 3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_of_a_batch_is_the_image_of_its_seed(model, sampler):
    call = {"sampler": sampler, "num_steps": 3, "verbose": 0, "output": "latents", "strength": 0.7}
    batch = model.image_to_image(PICTURE, "a cat", batch_size=2, seed=7, **call)
    alone = model.image_to_image(PICTURE, "a cat", seed=8, **call)

    np.testing.assert_allclose(batch[1], alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.backend
def test_images_are_varied_towards_another_seed(model):
    draw = partial(model.text_to_image, "a cat", output="latents", sampler="ddim", **QUICK)
    varied = draw(seed=5, batch_size=2, variation_seed=8, variation_strength=1.0)
    np.testing.assert_allclose(varied, draw(seed=[8, 9], batch_size=2), atol=1e-4)
    [near] = draw(seed=5, variation_seed=9, variation_strength=0.2)
    [alone] = draw(seed=5)
    assert 0 < np.abs(near - alone).mean() < np.abs(varied[1] - alone).mean()
    small = draw(seed=5, img_height=32, img_width=32, seed_resize_from=(64, 64))
    assert not np.array_equal(small, draw(seed=5, img_height=32, img_width=32))
    refused = [
        ({"variation_seed": 1}, "needs a `variation_strength`"),
        ({"variation_strength": 1.5}, "from 0 to 1"),
        ({"variation_strength": 0.5, "diffusion_noise": alone}, "cannot be varied"),
        ({"seed_resize_from": (4, 64)}, "from 8 to"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            draw(**options)


@pytest.mark.backend
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning", "ignore:.*fork:DeprecationWarning")
def test_a_forked_process_says_that_it_cannot_draw(model):
    """It would wait for threads of the backend that are not there."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        signal.alarm(20)  # ends it where it hangs
        try:
            model.image_to_image(PICTURE, "a cat", **QUICK)
        except RuntimeError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert f"process {child}, forked from {os.getpid()}" in pipe.read()
    os.waitpid(child, 0)


def test_results_have_three_forms(model):
    array = model.text_to_image("a cat", batch_size=2, **QUICK)
    pil = model.text_to_image("a cat", batch_size=2, output="pil", **QUICK)
    latents = model.text_to_image("a cat", batch_size=2, output="latents", **QUICK)

    assert [image.size for image in pil] == [(64, 48)] * 2
    np.testing.assert_array_equal(np.stack(pil), array)
    assert latents.shape == (2, 6, 8, 4)
    np.testing.assert_array_equal(model.decode(latents), array)


def test_steps_are_taken_as_the_caller_asks(model):
    *_, (step, timestep, latents) = model.denoise("a cat", **QUICK)
    assert (step, timestep) == (4, 1.0)
    np.testing.assert_array_equal(model.decode(latents), model.text_to_image("a cat", **QUICK))

    for step, *_ in model.denoise("a cat", **QUICK):
        if step == 2:
            break  # nothing is left behind
    np.testing.assert_array_equal(model.decode(latents), model.text_to_image("a cat", **QUICK))


def test_timesteps_can_be_chosen(model):
    timesteps = [timestep for _, timestep, _ in model.denoise("a cat", **QUICK)]
    chosen = model.text_to_image("a cat", timesteps=timesteps, **QUICK)
    np.testing.assert_array_equal(chosen, model.text_to_image("a cat", **QUICK))

    karras = model.text_to_image("a cat", sampler="euler", karras=True, **QUICK)
    np.testing.assert_array_equal(karras, model.text_to_image("a cat", sampler="Euler Karras", **QUICK))
    assert not np.array_equal(karras, model.text_to_image("a cat", sampler="euler", **QUICK))
    noisy = model.text_to_image("a cat", sampler="ddim", eta=1.0, **QUICK)
    assert not np.array_equal(noisy, model.text_to_image("a cat", sampler="ddim", **QUICK))


@pytest.mark.backend
def test_guidance_in_an_interval(model):
    calls = {"prompt": "a cat", "num_steps": 4, "seed": 1, "verbose": 0, "output": "latents"}
    everywhere = model.text_to_image(**calls)
    np.testing.assert_array_equal(model.text_to_image(guidance_interval=(0, 1), **calls), everywhere)
    nowhere = model.text_to_image(unconditional_guidance_scale=1.0, **calls)
    np.testing.assert_allclose(model.text_to_image(guidance_interval=(0.3, 0.4), **calls), nowhere, rtol=0, atol=1e-5)
    between = model.text_to_image(guidance_interval=(0.25, 0.75), **calls)
    assert min(np.abs(between - other).max() for other in (everywhere, nowhere)) > 1e-3


WRONG = [
    *(({"strength": value}, ValueError, "`strength` must be above 0") for value in (0, -1, 1.01, float("nan"))),
    *(({"strength": value}, TypeError, "`strength` must be a number") for value in ("0.5", True, [0.5])),
    ({"strength": 0.2}, ValueError, "at least one of 4 steps"),
    ({"image": None}, ValueError, "need an `image`"),
    ({"image": np.full((1, 6, 8, 4), np.nan)}, ValueError, "must be finite"),
    ({"image": PICTURE[:45]}, ValueError, "`height of image` must be a multiple of 8; the nearest are 40 and 48"),
    ({"image": PICTURE, "img_width": 60}, ValueError, "56 and 64"),
    ({"image": [PICTURE] * 2, "batch_size": 3}, ValueError, "`image` must hold 1 or 3"),
    ({"image": "no such file.png"}, ValueError, "no such file"),
    ({"mask": MASK[:40]}, ValueError, "size of the image"),
    ({"mask": MASK & False}, ValueError, "white somewhere"),
    ({"mask": MASK, "mask_white": "erase"}, ValueError, "repaint, keep"),
    ({"mask": np.stack([MASK] * 2), "batch_size": 3}, ValueError, "`mask` must hold 1 or 3"),
    ({"guidance_rescale": 1.1}, ValueError, "from 0 to 1"),
    ({"guidance_rescale": "high"}, TypeError, "from 0 to 1"),
    ({"guidance_interval": 0.5}, TypeError, r"`guidance_interval` must be \(start, end\)"),
    ({"guidance_interval": (0, 2)}, ValueError, "`guidance_interval.end` must be a number from 0 to 1"),
    ({"guidance_interval": (0.5, 0.5)}, ValueError, "start` must be before"),
    *(({"deep_cache": value}, ValueError, "`deep_cache` must be from 1 to 1000") for value in (0, -2, 1001)),
    *(({"deep_cache": value}, TypeError, "`deep_cache` must be an int") for value in (None, 2.0, True, "3", [2])),
    ({"callback": "print"}, TypeError, "`callback` must be a function, or None"),
    ({"output": "png"}, ValueError, "array, pil, latents"),
    ({"timesteps": [5, 9]}, ValueError, "decrease"),
    ({"spacing": "dense"}, ValueError, "`spacing` must be one of"),
    ({"eta": 2}, ValueError, "`eta` must be"),
    ({"num_steps": 0}, ValueError, "num_steps"),
    ({"verbose": 3}, ValueError, "`verbose` must be from 0 to 2"),
    ({"verbose": "auto"}, TypeError, "`verbose` must be an int"),
    ({"karras": "no"}, TypeError, "`karras` must be True or False"),
    ({"colour": "red"}, TypeError, "The arguments are prompt, .*num_steps, .*control, .*Received: colour$"),
    ({"guidance_scale": 3}, TypeError, "guidance_scale. Did you mean unconditional_guidance_scale\\?$"),
]


@pytest.mark.parametrize(("given", "error", "message"), WRONG)
def test_wrong_calls_are_refused_before_anything_is_computed(model, monkeypatch, given, error, message):
    monkeypatch.setattr(model._engine, "run", None)
    with pytest.raises(error, match=message):
        model.image_to_image(**{"image": PICTURE, "prompt": "a cat", **QUICK, **given})


@pytest.mark.parametrize(
    "latents", [np.zeros((8, 8, 4)), np.zeros((1, 8, 8, 3)), np.zeros((0, 8, 8, 4)), np.full((1, 8, 8, 4), np.nan)]
)
def test_wrong_latents(model, latents):
    with pytest.raises(ValueError, match="`latents` must be"):
        model.decode(latents)
