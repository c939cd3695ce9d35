"""Models smaller than TINY, whose graphs are made in less time: for tests of what goes on around the networks."""

from dataclasses import replace

from keras_diffusion.architectures import TINY

# Two pixels a side for each latent, where TINY has eight.
AUTOENCODER = replace(TINY.autoencoder, channels=(8, 16))
# Nothing between the way down and the way up; eight pixels a side for each latent, or two.
SMALL_OF_EIGHT = replace(TINY, name="custom", diffusion_model=replace(TINY.diffusion_model, middle=()))
SMALL = replace(SMALL_OF_EIGHT, autoencoder=AUTOENCODER, image_size=16)
