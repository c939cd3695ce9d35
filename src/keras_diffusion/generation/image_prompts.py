"""Reads the option `image_prompt`, and encodes its images for cross-attention: IP-Adapters."""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from keras_diffusion import arguments
from keras_diffusion.images.reading import read_images, read_white
from keras_diffusion.images.resizing import bicubic, fit, nearest
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.ip_adapter import KINDS, ImagePrompts
from keras_diffusion.networks.vision_encoder import EMBEDDING

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP
LARGEST = 100
MIDDLE = "mid"  # the block that is also a way


class ImagePrompt(NamedTuple):
    """An image that says what to draw; a plain tuple, cut short where the rest is as usual, does as well.

    Args:
        image: A path, a PIL image, or an array of uint8 or of floats in [0, 1], (h, w, 3); or a list with one for each
            image drawn, or an array (batch_size, h, w, 3). The middle of its shorter side's square is read.
        scale: How much to follow it, -100 to 100; 1 is as in training, 0 not at all. Or a dict by blocks as in
            diffusers, such as {"down": {"block_2": [0, 1]}, "mid": 0, "up": 0.5}, with 0 for those left out.
        mask: Where it acts, white; an image or an array of any size, which is stretched to that of the result. None is
            everywhere.
        adapter: The name of its IP-Adapter; None takes the only one that is loaded.
    """

    image: Any
    scale: float | dict[str, Any] = 1.0
    mask: Any = None
    adapter: str | None = None


class Read(NamedTuple):
    """An image prompt that has been checked.

    Args:
        adapter: The `Adapter`.
        pixels: float32 (1 or b, side, side, 3), as the image encoder reads them.
        scales: A list with a number for each cross-attention layer.
        mask: float32 (1 or b, h, w).
    """

    adapter: Any
    pixels: np.ndarray
    scales: list[float]
    mask: np.ndarray


def read_image_prompts(name, value, model, count, size):
    """Checks an `ImagePrompt`, a list of them, or None.

    Args:
        name: What to call it in errors.
        value: What to check.
        model: The `StableDiffusion`.
        count: Number of images that are drawn.
        size: Their (height, width).

    Returns:
        A list of `Read`.

    Raises:
        TypeError: If anything is of the wrong type.
        ValueError: If the model or an engine cannot follow images, no adapter of a name is loaded, or an image, a
            scale or a mask is out of place.
    """
    entries = [] if value is None else [value] if isinstance(value, tuple) else value
    if not isinstance(entries, list):
        raise TypeError(f"`{name}` must be (image, scale) or a list of those. Received: {value!r:.200}")
    if entries and not isinstance(model.diffusion_model, DiffusionModel):
        raise ValueError(f"`{name}` needs a DiffusionModel. Received: a {type(model.diffusion_model).__name__}")
    if entries:
        model._engine.require_backend(name)
    return [_read(f"{name}[{i}]", entry, model, count, size) for i, entry in enumerate(entries)]


def _read(name, entry, model, count, size):
    if not (isinstance(entry, tuple) and 1 <= len(entry) <= len(ImagePrompt._fields)):
        fields = ", ".join(ImagePrompt._fields)
        raise TypeError(f"`{name}` must be a tuple ({fields}). Received: {name}={entry!r:.200}")
    image, scale, mask, adapter = ImagePrompt(*entry)
    adapter = _adapter(f"{name}.adapter", adapter, model._ip_adapters)
    side = adapter.encoder.inputs[0].shape[1]
    images = image if isinstance(image, list) else [image]
    pixels = [x for each in images for x in read_images(f"{name}.image", each)]
    arguments.repeated(f"{name}.image", pixels, count)
    covered = np.ones((1, 1, 1), "float32") if mask is None else _covered(f"{name}.mask", mask, size)
    arguments.repeated(f"{name}.mask", list(covered), count)
    crossings = model.diffusion_model.architecture.diffusion_model.crossings
    scales = read_scales(f"{name}.scale", scale, crossings)
    return Read(adapter, np.stack([normalise(x, side) for x in pixels]), scales, covered)


def _adapter(name, value, loaded):
    if not loaded:
        raise ValueError(f"`{name}`: no IP-Adapter is loaded; load one with `load_ip_adapter`. Received: {value!r:.99}")
    if value is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    return loaded[arguments.choice(name, value, [*loaded])]


def _covered(name, value, size):
    """Reads a mask: float32 (1 or b, height, width), 1 where it is at least half white."""
    return np.concatenate([fit(mask, size, scale=nearest) for mask in read_white(name, value)]).astype("float32")


def normalise(image, side):
    """Scales and cuts an image (h, w, 3) in [0, 255] as CLIP's preprocessing does, and normalises it."""
    new = [int(side * length / min(image.shape[:2])) for length in (image.shape[1], image.shape[0])]
    scaled = np.asarray(Image.fromarray(image.round().astype("uint8")).resize(new, Image.Resampling.BICUBIC))
    top, left = ((length - side) // 2 for length in scaled.shape[:2])
    square = scaled[top : top + side, left : left + side] / np.float32(255)
    return ((square - np.float32(MEAN)) / np.float32(DEVIATION)).astype("float32")


def read_scales(name, value, crossings):
    """Reads how much each cross-attention layer follows an image.

    Args:
        name: What to call it in errors.
        value: A number, or a dict as diffusers' `set_ip_adapter_scale` takes it.
        crossings: The `crossings` of the diffusion model's shape.

    Returns:
        A list of floats.

    Raises:
        TypeError, ValueError: If it is neither, or names a block that does not attend.
    """
    if not isinstance(value, dict):
        return [arguments.number(name, value, -LARGEST, LARGEST)] * len(crossings)
    places = {crossing.transformer: 0.0 for crossing in crossings}
    for way, given in value.items():
        blocks = given if isinstance(given, dict) else dict.fromkeys(_blocks(places, way), given)
        if not blocks:
            ways = ", ".join(dict.fromkeys(each for each, _ in map(_block, places)))
            raise ValueError(
                f"`{name}` must be a number, or a dict with keys of {ways}. Received: {name}={value!r:.200}"
            )
        for block, scale in blocks.items():
            label = f"{name}[{way!r}]" if way == MIDDLE else f"{name}[{way!r}][{block!r}]"
            chosen = [place for place in places if _block(place) == (way, block)]
            scales = scale if isinstance(scale, list) else [scale] * len(chosen)
            if not chosen or len(scales) != len(chosen):
                known = _blocks(places, way)
                raise ValueError(
                    f"`{label}` must be a number, or a list with one for each of its {len(chosen)} transformers; the "
                    f"blocks that attend are {', '.join(known)}. Received: {label}={scale!r:.200}"
                )
            places |= {
                place: arguments.number(label, x, -LARGEST, LARGEST) for place, x in zip(chosen, scales, strict=True)
            }
    return [places[crossing.transformer] for crossing in crossings]


def _blocks(places, way):
    """The blocks of a way that attend: ["block_1", "block_2"] for "down"."""
    return list(dict.fromkeys(block for each, block in map(_block, places) if each == way))


def _block(place):
    """The way and the block of a transformer: ("down", "block_1") for "down_blocks_1_attentions_0"."""
    way, _, number, *_ = place.split("_")
    return way, f"block_{number}" if way != MIDDLE else MIDDLE


# ---- Encoding


def encode_image_prompts(engine, prompts, shape, count, size, copies, guided):
    """Encodes images for the cross-attention of a diffusion model.

    Args:
        engine: The `Engine`.
        prompts: A list of `Read`.
        shape: The `DiffusionModelShape`.
        count: Number of images that are drawn.
        size: (rows, columns) of the latents.
        copies: How many contexts each image has.
        guided: Whether the first of these is the negative one.

    Returns:
        `ImagePrompts`, or None if there are no prompts.
    """
    if not prompts:
        return None
    pairs = []
    for adapter, pixels, _, _ in prompts:
        features = [_features(engine, adapter, image[None]) for image in pixels]
        positive = [engine.encode_image_prompt(adapter.network, x) for x in features]
        columns = [_repeated(positive, count)] * (copies - guided)
        if guided:
            nothing = _nothing(engine, adapter, features[0], pixels[:1])
            columns.insert(0, _repeated([engine.encode_image_prompt(adapter.network, nothing)], count))
        pairs.append(np.concatenate(columns))
    masks, scales = [], np.array([prompt.scales for prompt in prompts], "float32")
    for _ in shape.levels:
        planes = [bicubic(prompt.mask, size).reshape(len(prompt.mask), -1) for prompt in prompts]
        masks.append(np.stack([_repeated([plane], count) for plane in planes]))
        size = tuple(-(-side // 2) for side in size)
    return ImagePrompts(tuple(pairs), scales, tuple(masks))


def _features(engine, adapter, image):
    """Returns the features of an image (1, side, side, 3) that an adapter reads."""
    return engine.encode_image_prompt(adapter.encoder, image)[KINDS[adapter.network.architecture.kind].output]


def _nothing(engine, adapter, features, image):
    """Returns the features that go with the negative prompt: zeros, or those of an image of zeros."""
    if KINDS[adapter.network.architecture.kind].output == EMBEDDING:
        return np.zeros_like(features)
    return _features(engine, adapter, np.zeros_like(image))


def _repeated(arrays, count):
    """Joins arrays (1, …) or one of (count, …), and repeats the only one for all of `count` images."""
    joined = np.concatenate(arrays)
    return np.resize(joined, (count, *joined.shape[1:]))
