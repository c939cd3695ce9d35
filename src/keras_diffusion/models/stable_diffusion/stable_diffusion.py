"""KerasCV's module of the model: the facade, with the attributes that KerasCV's users reach for."""

import keras
import numpy as np
from keras import ops

from keras_diffusion import stable_diffusion
from keras_diffusion.networks.timesteps import timestep_embedding
from keras_diffusion.sampling import noise

MAX_PROMPT_LENGTH = 77


def _alias(name):
    """A property that is another attribute, to read and to assign."""
    return property(
        lambda model: getattr(model, name), lambda model, value: setattr(model, name, value), doc=f"The {name}."
    )


class StableDiffusion(stable_diffusion.StableDiffusion):
    """`keras_diffusion.StableDiffusion`, with KerasCV's attributes that are not public."""

    _text_encoder = _alias("text_encoder")
    _diffusion_model = _alias("diffusion_model")
    _decoder = _alias("decoder")
    _image_encoder = _alias("image_encoder")
    _tokenizer = _alias("tokenizer")

    @property
    def jit_compile(self):
        """The constructor's argument."""
        return self._engine.jit_compile

    def _expand_tensor(self, text_embedding, batch_size):
        """Repeats a context (n, d) or (1, n, d) for a batch."""
        context = ops.squeeze(text_embedding)
        return ops.repeat(context[None], batch_size, axis=0) if len(context.shape) == 2 else context

    def _get_unconditional_context(self):
        return ops.convert_to_tensor(self.encode_text(""))

    def _get_timestep_embedding(self, timestep, batch_size, dim=320, max_period=10000):
        if max_period != 10000:
            raise ValueError(f"`max_period` must be 10000, as Stable Diffusion has it. Received: {max_period}")
        embedding = timestep_embedding(np.atleast_1d(ops.convert_to_numpy(timestep)), dim)
        return ops.convert_to_tensor(np.repeat(embedding, batch_size, axis=0))

    def _get_initial_diffusion_noise(self, batch_size, seed):
        autoencoder = self.architecture.autoencoder
        shape = (*autoencoder.latent_size(self.img_height, self.img_width), autoencoder.latent_channels)
        return ops.convert_to_tensor(noise.starting_noise(noise.seeds(seed, batch_size), shape))

    @staticmethod
    def _get_pos_ids():
        return keras.ops.convert_to_tensor([list(range(MAX_PROMPT_LENGTH))], "int32")


class StableDiffusionV2(StableDiffusion):
    """The same with the weights of Stable Diffusion 2.1 as KerasCV has them, for 512 × 512 pixels."""

    def __init__(self, *given, preset="sd21_base", **options):
        super().__init__(*given, preset=preset, **options)
