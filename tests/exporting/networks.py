"""What the networks of a model give, for tests of formats with diffusers' names and layouts."""

import keras
import numpy as np

from keras_diffusion import StableDiffusion
from keras_diffusion.networks.timesteps import timestep_embedding

from ..small import SMALL

PARTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


def make_model():
    """A model whose biases and scales are random too."""
    keras.utils.set_random_seed(0)
    model, rng = StableDiffusion(preset=SMALL), np.random.default_rng(0)
    for network in (model.text_encoder, model.diffusion_model, model.decoder, model.image_encoder):
        for variable in network.variables:
            noise = rng.normal(size=variable.shape).astype("float32")
            variable.assign(keras.ops.convert_to_numpy(variable) + 0.1 * noise)
    return model


def cases(model, timestep):
    """Yields the folder of each network, its inputs by name, and what the live network gives for them."""
    rng = np.random.default_rng(0)
    latents, image = (rng.normal(size=shape).astype("float32") for shape in ((2, 9, 7, 4), (2, 10, 6, 3)))
    tokens, factor = np.arange(2 * 77, dtype="int64").reshape(2, 77), SMALL.autoencoder.scaling_factor
    context = channels_first(model.text_encoder([tokens, np.arange(77)[None]]))
    embedding = timestep_embedding(timestep.reshape(1), SMALL.diffusion_model.frequencies)
    unet = {"sample": channels_first(latents), "timestep": timestep, "encoder_hidden_states": context}
    yield "text_encoder", {"input_ids": tokens}, context
    yield "unet", unet, channels_first(model.diffusion_model([latents, embedding, context]))
    yield "vae_decoder", {"latent_sample": channels_first(latents)}, channels_first(model.decoder(latents * factor))
    yield "vae_encoder", {"sample": channels_first(image)}, channels_first(model.image_encoder(image)) / factor


def channels_first(x):
    """Feature maps as diffusers has them, and tokens as they are."""
    x = keras.ops.convert_to_numpy(x)
    return x.transpose(0, 3, 1, 2) if x.ndim == 4 else x


def require_same(part, output, live):
    """Compares what another runtime gives; the image encoder also gives the log-variance, which has no live value."""
    assert output.shape[1] == live.shape[1] * (2 if part == "vae_encoder" else 1)
    assert live.std() > 0.1
    np.testing.assert_allclose(output[:, : live.shape[1]], live, rtol=1e-4, atol=1e-4)
