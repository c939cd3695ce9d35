"""Reads what noise the images of a call start from."""

from keras_diffusion import arguments
from keras_diffusion.sampling import variation


def read_noise(model, seed, given, count, size, variation_seed, strength, resize_from):
    """The seeds of `count` images, and the unit noise to start from: the seeds' own, varied, or what was given."""
    strength = arguments.number("variation_strength", strength, 0, 1)
    if variation_seed is not None and not strength:
        raise ValueError(
            "`variation_seed` needs a `variation_strength`, how far to go from the noise of `seed` to its own; more "
            f"than 0, at most 1. Received: variation_seed={variation_seed!r:.200}, variation_strength=0"
        )
    if given is not None and (strength or resize_from is not None):
        raise ValueError("`diffusion_noise` cannot be varied or resized. Received: it, and options that vary a seed's")
    if seed is not None and given is not None:
        raise ValueError(f"Give `seed` or `diffusion_noise`, not both. Received: both, with {seed=!r:.200}")
    seeds, others = variation.image_seeds(seed, variation_seed, strength, count)
    autoencoder = model.architecture.autoencoder
    shape = (*autoencoder.latent_size(*size), autoencoder.latent_channels)
    drawn = resize_from is not None and _latent_size("seed_resize_from", resize_from, autoencoder.factor)
    unit_noise = variation.varied_noise(seeds, others, strength, shape, drawn or None) if given is None else given
    return seeds, arguments.array("diffusion_noise", unit_noise, (count, *shape))


def _latent_size(name, value, factor):
    """The latent rows and columns of (height, width) in pixels, rounded down."""
    if not (isinstance(value, tuple | list) and len(value) == 2):
        raise TypeError(f"`{name}` must be (height, width). Received: {value!r:.200}")
    return tuple(arguments.whole_number(name, side, factor, arguments.LARGEST_SIDE) // factor for side in value)
