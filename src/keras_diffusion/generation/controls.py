"""Reads the option `control`: ControlNets, their images, scales and intervals."""

from typing import Any, NamedTuple

import numpy as np

from keras_diffusion.arguments import interval, number, shorten
from keras_diffusion.images.reading import read_images
from keras_diffusion.networks.controlnet import ControlNet
from keras_diffusion.sampling.samplers import rows_between


class Control(NamedTuple):
    """A ControlNet with what it follows; a plain tuple, cut short where the rest is as usual, does as well.

    Args:
        network: What `StableDiffusion.load_controlnet` returns.
        image: The picture to follow, of the size of the images drawn: a path, a PIL image, or an array of uint8 or of
            floats in [0, 1], (height, width, 3), or (batch_size, height, width, 3) or a list with one for each image.
        scale: How much to follow it, -100 to 100; 1 is as in training, 0 not at all.
        start: Where in the generation it begins to have a say, as a fraction of the steps.
        end: Where it ends to.
    """

    network: ControlNet
    image: Any
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


def controls(name, value, batch_size, size, diffusion_model):
    """Checks a `Control`, a list of them, or None.

    Args:
        name: What to call it in errors.
        value: What to check.
        batch_size: Number of images.
        size: Their (height, width).
        diffusion_model: The `DiffusionModel` to steer.

    Returns:
        A list of `Control`, each `image` a float32 array (batch_size, height, width, 3) in [0, 1].

    Raises:
        TypeError: If anything is of the wrong type.
        ValueError: If a ControlNet is for another model, or an image or a number is out of place.
    """
    entries = [] if value is None else [value] if isinstance(value, tuple) else value
    if not isinstance(entries, list):
        raise TypeError(f"`{name}` must be (network, image, scale) or a list of those. Received: {shorten(value)}")
    return [_control(f"{name}[{i}]", entry, batch_size, size, diffusion_model) for i, entry in enumerate(entries)]


def scales(controls, steps):
    """The scale of every control at every row of a sampler's table.

    Args:
        controls: A list of `Control`.
        steps: (rows,) the step that each row belongs to, see `samplers.Table`.

    Returns:
        A float32 array (rows, number of controls).
    """
    columns = [scale * rows_between(steps, start, end) for _, _, scale, start, end in controls]
    return np.reshape(columns, (len(controls), len(steps))).T.astype("float32")


def _control(name, entry, batch_size, size, diffusion_model):
    if not (isinstance(entry, tuple) and 2 <= len(entry) <= len(Control._fields)):
        raise TypeError(f"`{name}` must be a tuple ({', '.join(Control._fields)}). Received: {name}={shorten(entry)}")
    network, image, scale, start, end = Control(*entry)
    require_fitting(f"{name}.network", network, diffusion_model)
    image = read_images(f"{name}.image", image)
    if image.shape[1:3] != tuple(size) or len(image) not in (1, batch_size):
        count = f"1 or {batch_size}" if batch_size > 1 else "1"
        raise ValueError(
            f"`{name}.image` must hold {count} of the size of the images drawn, {size[0]}×{size[1]} (height × width). "
            f"Received: {len(image)} of {image.shape[1]}×{image.shape[2]}"
        )
    start, end = interval(name, (start, end))
    image = np.broadcast_to(image / np.float32(255), (batch_size, *image.shape[1:]))
    return Control(network, image, number(f"{name}.scale", scale, -100, 100), start, end)


def require_fitting(name, network, diffusion_model):
    """Raises an error unless a network is a `ControlNet` for a diffusion model."""
    if not isinstance(network, ControlNet):
        raise TypeError(f"`{name}` must be a ControlNet; load one with `load_controlnet`. Received: {shorten(network)}")
    ours, theirs = _fitting(diffusion_model), _fitting(network)
    if ours != theirs:
        raise ValueError(f"`{name}` must be a ControlNet for this model, with {ours}. Received: one with {theirs}")


def _fitting(network):
    """Returns the values that must be equal in a ControlNet and its diffusion model."""
    shape = network.architecture.diffusion_model
    return {
        "channels": [level.channels for level in shape.levels],
        "blocks": shape.blocks,
        "context": shape.context,
        "factor": network.architecture.autoencoder.factor,
    }
