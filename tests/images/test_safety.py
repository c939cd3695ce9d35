import numpy as np
import pytest

from keras_diffusion import FlaggedImagesError, StableDiffusion
from keras_diffusion.architectures import TINY

QUICK = {"num_steps": 1, "batch_size": 3, "seed": 1, "verbose": 0}


@pytest.fixture(scope="module")
def shared():
    return StableDiffusion(preset=TINY)


@pytest.fixture
def model(shared):
    yield shared
    shared.safety = None


def test_is_off_at_first(model):
    assert model.safety is None


def test_sees_every_image_and_cannot_change_it(model):
    expected, seen = model.text_to_image("a cat", **QUICK), []

    def safety(images):
        seen.append(images.copy())
        images[:] = 0
        return np.zeros(len(images), bool)

    model.safety = safety
    np.testing.assert_array_equal(model.text_to_image("a cat", **QUICK), expected)
    np.testing.assert_array_equal(seen, [expected])


@pytest.mark.parametrize("output", ["array", "pil"])
def test_flagged_images_come_with_the_error(model, output):
    expected = model.text_to_image("a cat", **QUICK)
    model.safety = lambda images: [False, True, False]
    with pytest.raises(FlaggedImagesError, match=r"flagged 1 of 3 images: \[1\]") as caught:
        model.text_to_image("a cat", output=output, **QUICK)
    np.testing.assert_array_equal(caught.value.images, expected)
    np.testing.assert_array_equal(caught.value.flags, [False, True, False])


def test_checks_every_task(model):
    model.safety = lambda images: [True] * len(images)
    image = np.zeros((64, 64, 3), "uint8")
    for draw in (
        lambda: model.image_to_image(image, "a cat", 1.0, **QUICK),
        lambda: model.inpaint(image, image[..., 0] + 255, "a cat", **QUICK),
        lambda: model.generate_image(model.encode_text("a cat"), **QUICK),
    ):
        with pytest.raises(FlaggedImagesError):
            draw()


def test_latents_are_not_checked(model):
    model.safety = lambda images: [True] * len(images)
    assert model.text_to_image("a cat", output="latents", **QUICK).shape == (3, 8, 8, 4)


def test_must_be_a_function_before_anything_is_computed(model, monkeypatch):
    monkeypatch.setattr(model._engine, "run", None)
    model.safety = "strict"
    with pytest.raises(TypeError, match="`safety` must be a function, or None"):
        model.text_to_image("a cat", **QUICK)


@pytest.mark.parametrize("flags", [None, True, [False], [0.1, 0.2, 0.9], [[False]] * 3])
def test_flags_must_be_one_bool_for_each_image(model, flags):
    model.safety = lambda images: flags
    with pytest.raises(ValueError, match=r"`safety` must return 3 bools, one for each image\. Received: "):
        model.text_to_image("a cat", **QUICK)
