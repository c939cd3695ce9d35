"""Builds the model of a command."""

from keras_diffusion.startup import paused_gc
from keras_diffusion.terminal import quiet


def load(*arguments, **options):
    """Builds the `StableDiffusion` of these arguments."""
    with paused_gc():
        with quiet():
            from keras_diffusion import StableDiffusion
        return StableDiffusion(*arguments, **options)
