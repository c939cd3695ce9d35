"""Reads the option `control`: ControlNets and T2I-adapters, their images, scales and intervals."""

from typing import Any, NamedTuple

import numpy as np

from keras_diffusion.arguments import boolean, interval, number
from keras_diffusion.images.reading import read_images
from keras_diffusion.images.resizing import fit, nearest
from keras_diffusion.networks.controlnet import ControlNet
from keras_diffusion.networks.t2i_adapter import T2IAdapter, expected
from keras_diffusion.sampling.samplers import rows_between

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, in the grey of images (ITU-R BT.601)


class Control(NamedTuple):
    """A ControlNet or a T2I-adapter with what it follows; a plain tuple, cut short where the rest is usual, does too.

    Args:
        network: What `StableDiffusion.load_controlnet` or `load_t2i_adapter` returns.
        image: The image to follow: a path, a PIL image, or an array of uint8 or of floats in [0, 1], (h, w, 3), or
            (batch_size, h, w, 3) or a list with one for each image. It is scaled to the size of the images drawn. For
            a ControlNet that repaints, pixels of floats are -1 where it is to draw.
        scale: How much to follow it, -100 to 100; 1 is as in training, 0 not at all.
        start: Where in the generation it begins to have a say, as a fraction of the steps.
        end: Where it ends to.
    """

    network: ControlNet | T2IAdapter
    image: Any
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


def controls(name, value, batch_size, size, diffusion_model, how="stretch"):
    """Checks a `Control`, a list of them, or None.

    Args:
        name: What to call it in errors.
        value: What to check.
        batch_size: Number of images.
        size: Their (height, width).
        diffusion_model: The `DiffusionModel` to steer.
        how: How images get to that size, see `resizing.fit`.

    Returns:
        A list of `Control`, each `image` a float32 array (batch_size, height, width, 3) in [0, 1], or -1.

    Raises:
        TypeError: If anything is of the wrong type.
        ValueError: If a ControlNet is for another model, or an image or a number is out of place.
    """
    entries = [] if value is None else [value] if isinstance(value, tuple) else value
    if not isinstance(entries, list):
        raise TypeError(f"`{name}` must be (network, image, scale) or a list of those. Received: {value!r:.200}")
    return [_control(f"{name}[{i}]", entry, batch_size, size, diffusion_model, how) for i, entry in enumerate(entries)]


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


def read_guess_mode(value, controls):
    """Checks the option `guess_mode` of a call with some `Control`s."""
    if boolean("guess_mode", value) and not controls:
        raise ValueError("`guess_mode` needs a `control`. Received: guess_mode=True")
    if value and any(isinstance(control.network, T2IAdapter) for control in controls):
        raise ValueError("`guess_mode` is for ControlNets. Received: guess_mode=True with a T2I-adapter")
    return value


def residual_shares(shape, guess, negatives, rows):
    """The share that each residual of a ControlNet has, from the highest resolution down.

    Args:
        shape: The `DiffusionModelShape`.
        guess: Whether the ControlNet is to guess what its image shows, so that the prompt may be empty: then shallow
            layers follow it less, and negative prompts not at all (`guess_mode` of diffusers and of lllyasviel's code).
        negatives: How many rows of the batch are those of negative prompts, which come first.
        rows: How many rows it has.

    Returns:
        A float32 array (1, residuals) or (rows, residuals).
    """
    if not guess:
        return np.ones((1, shape.residuals), "float32")
    followed = np.arange(rows)[:, None] >= negatives
    return (followed * np.logspace(-1, 0, shape.residuals)).astype("float32")


def _control(name, entry, batch_size, size, diffusion_model, how):
    if not (isinstance(entry, tuple) and 2 <= len(entry) <= len(Control._fields)):
        raise TypeError(f"`{name}` must be a tuple ({', '.join(Control._fields)}). Received: {name}={entry!r:.200}")
    network, image, scale, start, end = Control(*entry)
    require_fitting(f"{name}.network", network, diffusion_model)
    if isinstance(network, T2IAdapter) and any(side % network.architecture.factor for side in size):
        raise ValueError(
            f"`{name}`: with this T2I-adapter, the sides of images must be multiples of {network.architecture.factor}. "
            f"Received: {size[0]}×{size[1]}"
        )
    image = _followed(f"{name}.image", image, size, how)
    if len(image) not in (1, batch_size):
        count = f"1 or {batch_size}" if batch_size > 1 else "1"
        raise ValueError(f"`{name}.image` must hold {count}. Received: {len(image)}")
    start, end = interval(name, (start, end))
    image = np.broadcast_to(image, (batch_size, *image.shape[1:]))
    return Control(network, image, number(f"{name}.scale", scale, -100, 100), start, end)


def _followed(name, value, size, how):
    """Reads what a ControlNet follows, float32 (b, height, width, 3) in [0, 1], or -1 where that was given."""
    array = value if hasattr(value, "shape") and np.asarray(value).dtype.kind == "f" else np.zeros(0)
    drawn = np.asarray(array) == -1  # what a ControlNet for inpainting is to draw (diffusers' `make_inpaint_condition`)
    image = read_images(name, np.where(drawn, 0, array) if drawn.any() else value, size, how) / np.float32(255)
    if drawn.any():
        image[fit(drawn.reshape(-1, *drawn.shape[-3:]), size, how, nearest)] = -1
    return image


def follow(engine, control):
    """Returns the arrays of a control that every step takes: its image, or what a T2I-adapter makes of it, once."""
    network, image, *_ = control
    if not isinstance(network, T2IAdapter):
        return [image]
    image = image if network.architecture.in_channels == len(LUMA) else image @ np.float32(LUMA)[:, None]
    return engine.encode_image_prompt(network, image)


def require_fitting(name, network, diffusion_model):
    """Raises an error unless a network is a `ControlNet` or a `T2IAdapter` for a diffusion model."""
    if isinstance(network, T2IAdapter):
        shape = network.architecture
        ours, theirs = expected(shape.kind, diffusion_model.architecture), (shape.factor, shape.outputs)
        if ours != theirs:
            raise ValueError(
                f"`{name}` must be a T2I-adapter for this model, with (factor, widths) {ours}. Received: {theirs}"
            )
        return
    if not isinstance(network, ControlNet):
        raise TypeError(
            f"`{name}` must be a ControlNet or a T2I-adapter; load one with `load_controlnet` or `load_t2i_adapter`. "
            f"Received: {network!r:.200}"
        )
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
