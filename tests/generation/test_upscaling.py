"""Enlarging images by networks, alone, after drawing, and between two passes."""

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

from keras_diffusion import StableDiffusion, Upscaler
from keras_diffusion.architectures import TINY
from keras_diffusion.errors import GenerationCancelled, NumericalError
from keras_diffusion.images.resizing import resize
from keras_diffusion.networks.upscalers import CompactArchitecture, CompactNet, RRDBArchitecture, RRDBNet

QUICK = {"num_steps": 2, "verbose": 0, "seed": 3}
PHOTO = np.random.default_rng(1).integers(0, 256, (150, 141, 3), "uint8")


@pytest.fixture(scope="module")
def compact():
    network = CompactNet(CompactArchitecture(convs=2, channels=8, scale=2), initialize=False)
    network.set_weights([np.random.default_rng(0).normal(0, 0.1, weight.shape) for weight in network.get_weights()])
    return Upscaler(network, "compact")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return StableDiffusion(preset=TINY, img_height=32, img_width=32)


def whole(upscaler, images):
    """What the network makes of images without tiles."""
    larger = ops.convert_to_numpy(upscaler.network(np.float32(images) / 255))
    return (255 * larger.clip(0, 1)).round().astype("uint8")


@pytest.mark.backend
def test_tiles_leave_no_seam(compact, monkeypatch):
    monkeypatch.setattr(compact, "tile", 128)
    seen = []
    with pytest.raises(GenerationCancelled, match="after tile 2 of 4"):
        compact.upscale(PHOTO, callback=lambda *tile: seen.append(tile) or len(seen) < 2)
    assert np.abs(compact.upscale(PHOTO).astype(int) - whole(compact, PHOTO[None])).max() <= 1
    assert compact.upscale([PHOTO[:20], PHOTO[20:40]]).shape == (2, 40, 282, 3)


def test_a_network_that_halves_first_takes_any_size():
    upscaler = Upscaler(RRDBNet(RRDBArchitecture(blocks=1, channels=8, growth=4, unshuffle=2)))
    part = PHOTO[:31, :25]
    even = np.pad(part, ((0, 1), (0, 1), (0, 0)), mode="symmetric")
    expected = whole(upscaler, even[None])[:, :62, :50]
    assert np.abs(upscaler.upscale(part).astype(int) - expected).max() <= 1


def test_any_scale(compact, tmp_path):
    photo = PHOTO[:20, :30]
    Image.fromarray(photo).save(tmp_path / "photo.png")
    once = compact.upscale(photo)
    np.testing.assert_array_equal(compact.upscale(tmp_path / "photo.png", 2), once)
    smaller = compact.upscale(Image.fromarray(photo), 1.5)
    assert smaller.shape == (1, 30, 45, 3)
    assert np.abs(smaller - resize(once, (30, 45)).clip(0, 255)).max() < 2
    assert np.abs(compact.upscale(photo, 4) - np.float32(compact.upscale(once))).max() <= 3  # not rounded in between
    still = Upscaler(CompactNet(CompactArchitecture(convs=0, channels=8, scale=1)))
    assert still.upscale(photo, 3).shape == (1, 60, 90, 3)
    for wrong, error in ({"scale": 0.5}, ValueError), ({"scale": "2"}, TypeError), ({"images": 3}, TypeError):
        with pytest.raises(error, match="Received: "):
            compact.upscale(**{"images": photo, **wrong})


def test_a_damaged_network_is_an_error():
    network = CompactNet(CompactArchitecture(convs=0, channels=8, scale=1))
    network.layers[1].set_weights([np.full(weight.shape, np.nan) for weight in network.layers[1].get_weights()])
    with pytest.raises(NumericalError, match="Upscaling gave values that are not finite"):
        Upscaler(network).upscale(PHOTO[:8, :8])


def test_what_is_drawn_is_enlarged(model, compact):
    drawn = model.text_to_image("a cat", **QUICK)
    larger = model.text_to_image("a cat", upscale=compact, **QUICK)
    np.testing.assert_array_equal(larger, compact.upscale(drawn))
    (pil,) = model.text_to_image("a cat", upscale=(compact, 1.5), output="pil", **QUICK)
    np.testing.assert_array_equal(np.asarray(pil), compact.upscale(drawn, 1.5)[0])
    for wrong in ({"upscale": "R-ESRGAN"}, {"upscale": (compact, 99)}, {"upscale": compact, "output": "latents"}):
        with pytest.raises((TypeError, ValueError), match="Received: "):
            model.text_to_image("a cat", **wrong, **QUICK)


def test_the_second_pass_starts_from_what_the_network_enlarged(model, compact):
    quick = QUICK | {"num_steps": 4}
    twice = model.text_to_image("a cat", hires=1.5, hires_upscaler=compact, upscale=compact, **quick)
    first = compact.upscale(model.text_to_image("a cat", **quick), 1.5)
    second = model.image_to_image(first, "a cat", 0.5, **quick)
    assert twice.shape == (1, 96, 96, 3)
    assert np.abs(twice.astype(int) - compact.upscale(second)).max() <= 1
    with pytest.raises(ValueError, match="needs `hires`"):
        model.text_to_image("a cat", hires_upscaler=compact, **quick)
    with pytest.raises(TypeError, match="`hires_upscaler` must be an Upscaler"):
        model.text_to_image("a cat", hires=2, hires_upscaler="Lanczos", **quick)
