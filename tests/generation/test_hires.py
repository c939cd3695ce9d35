"""A second pass over enlarged images, images of any size, and images that grow at their edges."""

import keras
import numpy as np
import pytest

from keras_diffusion import StableDiffusion, pad
from keras_diffusion.images.resizing import fit, nearest, resize

from ..small import SMALL

QUICK = {"num_steps": 4, "verbose": 0, "seed": 3}
PHOTO = np.random.default_rng(1).integers(0, 256, (40, 90, 3), "uint8")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return StableDiffusion(preset=SMALL, img_height=8, img_width=8)


@pytest.mark.backend
def test_a_second_pass_is_image_to_image(model):
    prompt, asked = ["a [cat:dog:1.5]", "a bird"], []
    twice = model.text_to_image(
        prompt, hires=1.5, hires_strength=0.5, prompt_weighting=True, callback=lambda *x: asked.append(x[0]), **QUICK
    )

    small = model.text_to_image(["a cat", "a bird"], prompt_weighting=True, **QUICK)
    first = resize(small, (12, 12)).clip(0, 255) / 255
    expected = model.image_to_image(first, ["a [cat:dog:.5]", "a bird"], 0.5, prompt_weighting=True, **QUICK)
    assert twice.shape == (2, 12, 12, 3)
    assert np.abs(twice.astype(int) - expected).max() <= 1
    assert asked == [1, 2, 3, 4, 3, 4]
    with pytest.raises(ValueError, match="from noise alone"):
        model.image_to_image(PHOTO, "a cat", hires=2, resize="crop", **QUICK)
    with pytest.raises(ValueError, match="`hires` must be"):
        model.text_to_image("a cat", hires=9, **QUICK)


@pytest.mark.parametrize("how", ["stretch", "crop", "pad"])
def test_a_photo_of_any_size_is_brought_to_that_of_the_model(model, how):
    mask = np.zeros(PHOTO.shape[:2], bool)
    mask[10:30, 30:60] = True
    repainted = model.inpaint(PHOTO, mask, "a cat", resize=how, **QUICK)[0]

    fitted = fit(np.float32(PHOTO)[None], (8, 8), how).clip(0, 255).round()[0]
    kept = ~fit(mask[None], (8, 8), how, nearest)[0]
    assert 0.4 < kept.mean() < 1
    np.testing.assert_array_equal(repainted[kept], fitted[kept])
    wide = model.image_to_image(PHOTO, "a cat", img_width=16, resize=how, output="latents", **QUICK)
    assert wide.shape == (1, 4, 8, 4)


def test_an_image_grows_at_its_edges(model):
    photo = PHOTO[:8, :8]
    grown = model.image_to_image(photo, "a cat", strength=1.0, outpaint=(0, 2, 4, 2), **QUICK)

    padded, mask = pad(photo, 0, 2, 4, 2)
    np.testing.assert_array_equal(grown, model.inpaint(padded, mask, "a cat", **QUICK))
    np.testing.assert_array_equal(grown[0, :8, 4:12], photo)
    for wrong in ({"outpaint": (0, 0)}, {"outpaint": (8, 0, 0, 0), "mask": mask}, {"resize": "shrink"}):
        with pytest.raises((TypeError, ValueError), match="Received: "):
            model.image_to_image(photo, "a cat", **wrong, **QUICK)


def test_fitting_keeps_proportions():
    image = np.arange(4 * 6, dtype="float32").reshape(1, 4, 6, 1)
    np.testing.assert_array_equal(fit(image, (4, 4), "crop"), image[:, :, 1:5])
    np.testing.assert_array_equal(fit(image, (6, 6), "pad"), image[:, [0, 0, 1, 2, 3, 3]])
    assert fit(image, (8, 9), "pad", nearest).shape == (1, 8, 9, 1)
    assert fit(image, (2, 9), "stretch").shape == (1, 2, 9, 1)
