"""Reads the images of a training and encodes them and their captions, once."""

import logging
from typing import NamedTuple

import keras
import numpy as np

from keras_diffusion.generation.size_ids import read_size_ids
from keras_diffusion.generation.texts import EncodedText
from keras_diffusion.images import reading, resizing
from keras_diffusion.training import buckets as bucketing
from keras_diffusion.training.folder import Record

LARGEST_LOG_VARIANCE, SMALLEST_LOG_VARIANCE = 20.0, -30.0  # `DiagonalGaussianDistribution` in CompVis/latent-diffusion

logger = logging.getLogger(__name__)


class Source(NamedTuple):
    """Holds what examples are drawn from: n images of one size in v variants, plain and mirrored.

    Args:
        means: float32 (n, v, h, w, c), the mean of each image's latents.
        deviations: float32 (n, v, h, w, c), their standard deviation.
        texts: For each image, the rows of its captions among the texts, a list of ints.
        ids: float32 (n, k), the size ids of each image, none but for SDXL.
        conditions: float32 (n, v, height, width, 3) in [0, 1], what a ControlNet sees, or None.
    """

    means: np.ndarray
    deviations: np.ndarray
    texts: list
    ids: np.ndarray
    conditions: np.ndarray | None = None


def sources(model, images, conditions, captions, size, buckets, flip, damaged):
    """Reads and encodes images: a list with a `Source` for each size."""
    groups = {}  # size → the images of it, each with its texts' rows and what a ControlNet sees, a list or empty
    for i, own in enumerate(_sizes(model, images, size, buckets)):
        try:
            image, sizes = _cut(_read(images[i]), own)
            shown = [] if conditions is None else [_variants(_cut(conditions[i], own)[0] / 255, flip)]
        except ValueError as error:
            if damaged == "error":
                raise
            logger.warning("%s", error)
            continue
        rows = [captions.index(caption) for caption in images[i].captions]
        known = {name: sizes[name] for name in model.architecture.size_ids if name in sizes}
        ids = read_size_ids(model.architecture, own, known)[1]
        groups.setdefault(own, []).append((_latents(model, _variants(image, flip)), rows, ids, *shown))
    if not groups:
        raise ValueError("None of the images can be read; the log names each.")
    result = []
    for own in sorted(groups):
        latents, rows, *others = zip(*groups[own], strict=True)
        result.append(Source(*map(np.stack, zip(*latents, strict=True)), list(rows), *map(np.stack, others)))
    return result


def _sizes(model, images, size, buckets):
    """Chooses the size of each image."""
    if buckets == 1:
        return [size] * len(images)
    shapes = []
    for record in images:
        try:
            shapes.append(reading.read_images("image", _read(record)).shape[1:3])
        except ValueError:
            shapes.append(size)  # it is named when it is read again
    step = model.architecture.autoencoder.factor << len(model.architecture.diffusion_model.levels) - 1
    return bucketing.choose(shapes, size, step, buckets)


def _read(record):
    return record.path if isinstance(record, Record) else record


def _cut(image, size):
    """Scales an image until it covers `size`, and cuts around its middle.

    Returns:
        float32 (height, width, 3) in [0, 255], and its size ids.
    """
    pixels = reading.read_images("image", image)
    original = pixels.shape[1:3]
    factor = max(side / own for side, own in zip(size, original, strict=True))
    scaled = [max(side, round(own * factor)) for side, own in zip(size, original, strict=True)]
    if tuple(scaled) != original:
        pixels = resizing.resize(pixels, scaled).clip(0, 255)
    top, left = ((own - side) // 2 for side, own in zip(size, scaled, strict=True))
    ids = {"original_size": original, "crop": (top, left), "target_size": size}
    return pixels[0, top : top + size[0], left : left + size[1]], ids


def _variants(image, flip):
    return np.stack([image, image[:, ::-1]]) if flip else image[None]


def _latents(model, pixels):
    """Encodes images (v, height, width, 3) in [0, 255]: the mean and the deviation of their latents."""
    encoder = model.image_encoder
    moments = model._engine.make_once(_moments, encoder)
    mean, log_variance = np.split(model._engine.encode_image(moments, pixels / 127.5 - 1), 2, axis=-1)
    scale = np.float32(encoder.architecture.autoencoder.scaling_factor)
    deviation = np.exp(log_variance.clip(SMALLEST_LOG_VARIANCE, LARGEST_LOG_VARIANCE) / 2)
    return scale * mean, scale * deviation


def _moments(encoder):
    """The network up to the mean and the log-variance of the latents."""
    return keras.Model(encoder.inputs, encoder.get_layer("quant_conv").output, name="moments")


def encode_texts(model, captions, text, tokenizer):
    """Turns captions into what the trainer takes, and for SDXL into pooled vectors too."""
    if text == "context":
        encoded = [model.encode_text(caption) for caption in captions]
        if not isinstance(encoded[0], EncodedText):
            return np.concatenate(encoded), None
        return tuple(map(np.concatenate, zip(*encoded, strict=True)))
    shape = model.architecture.text_encoder
    return (tokenizer or model.tokenizer).tokenize(captions, pad_token=shape.pad_token, length=shape.length), None
