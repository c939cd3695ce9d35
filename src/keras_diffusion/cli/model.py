"""Builds the model of a command."""

from keras_diffusion.startup import paused_gc
from keras_diffusion.terminal import quiet

PRESETS = "emoji, a folder of diffusers or of KerasCV's .h5 files, a single file, or a model downloaded before"


def load(*arguments, **options):
    """Builds the `StableDiffusion` of these arguments."""
    with paused_gc():
        with quiet():
            from keras_diffusion import StableDiffusion
        return StableDiffusion(*arguments, **options)


def load_upscaler(path, dtype=None):
    """Loads the `Upscaler` of a file."""
    with paused_gc():
        with quiet():
            from keras_diffusion import Upscaler
        return Upscaler.from_file(path, dtype)
