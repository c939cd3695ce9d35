"""A model smaller than TINY, whose graphs are made in half the time: for tests of what goes on around the networks."""

from dataclasses import replace

from keras_diffusion.architectures import TINY, Level

SMALL = replace(
    TINY,
    diffusion_model=replace(TINY.diffusion_model, levels=(Level(16, 2, 1, (0, 1)), Level(32, 2, 0)), middle=()),
    autoencoder=replace(TINY.autoencoder, channels=(8, 16)),
    image_size=16,
)
