import keras
import numpy as np
import pytest

from keras_diffusion import StableDiffusion
from keras_diffusion.architectures import TINY
from keras_diffusion.images import previews
from keras_diffusion.sampling.noise import starting_noise


def test_an_affine_decoder_is_fitted_exactly():
    matrix, constant = 3 * starting_noise([1], (4, 3))[0], np.array([20.0, 120.0, 220.0])
    latents = starting_noise([2, 3], (5, 6, 4))

    def decode(latents):
        assert latents.dtype == np.float32
        return (latents @ matrix + constant).repeat(8, axis=1).repeat(8, axis=2)

    expected = decode(latents)[:, ::8, ::8].round().clip(0, 255).astype("uint8")
    np.testing.assert_array_equal(previews.preview(previews.fit(decode, 4), latents), expected)


def test_colours_end_at_black_and_white():
    fitted = np.array([[1000.0, -1000.0, 0.0], [10.0, 20.0, 30.0]])
    np.testing.assert_array_equal(previews.preview(fitted, np.ones((1, 1, 1, 1))), [[[[255, 0, 30]]]])


@pytest.mark.backend
def test_previews_are_near_what_is_decoded():
    model = StableDiffusion.from_preset("emoji")
    latents = model.text_to_image(
        "red apple", batch_size=2, seed=1, num_steps=4, unconditional_guidance_scale=7.5, output="latents", verbose=0
    )
    small = model.preview(latents)
    assert (small.shape, small.dtype) == ((2, 16, 16, 3), "uint8")
    decoded = model.decode(latents).reshape(2, 16, 4, 16, 4, 3).mean((2, 4))
    error = np.abs(small - decoded)
    assert error.mean() < 0.5 * np.abs(decoded - decoded.mean((0, 1, 2))).mean()


def test_another_decoder_and_other_weights_take_effect():
    model = StableDiffusion(preset=TINY)
    latents = starting_noise([0], (8, 8, 4))
    first = model.preview(latents)
    assert first.std() > 0
    model.decoder = keras.models.clone_model(model.decoder)
    cloned = model.preview(latents)
    assert (cloned != first).any()
    early = model.decoder.get_layer("conv_in")
    early.set_weights([2 * weight for weight in early.get_weights()])
    assert (model.preview(latents) != cloned).any()


def test_refuses_other_shapes():
    message = r"`latents` must be of shape \(b, h, w, 4\), each at least 1\. Received: \(8, 8, 4\)"
    with pytest.raises(ValueError, match=message):
        StableDiffusion(preset=TINY).preview(np.zeros((8, 8, 4)))
