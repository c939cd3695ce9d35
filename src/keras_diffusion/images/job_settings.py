"""Writes into an image how a job made it, and reads it back."""

import io
import json

import numpy as np
from PIL import Image

from keras_diffusion.images import metadata
from keras_diffusion.sampling import names
from keras_diffusion.sampling.variation import seeds_alone

# Arguments that A1111's text has no place for, or writes in another way: argument → the name of its setting.
OTHERS = {
    "strength": "Denoising strength",
    "mask_white": "Mask white",
    "karras": "Karras",
    "eta": "Eta",
    "guidance_rescale": "Guidance rescale",
    "guidance_interval": "Guidance interval",
    "deep_cache": "Deep cache",
    "original_size": "Original size",
    "crop": "Crop",
    "target_size": "Target size",
    "aesthetic_score": "Aesthetic score",
    "loras": "LoRAs",
    "controls": "ControlNets",
    "resize": "Resize",
    "outpaint": "Outpaint",
    "timesteps": "Timesteps",
    "negative_original_size": "Negative original size",
    "negative_crop": "Negative crop",
    "negative_target_size": "Negative target size",
    "negative_aesthetic_score": "Negative aesthetic score",
}


def settings(arguments, model, shape, about, version):
    """Returns the settings of each image of a call, dicts of str.

    Args:
        arguments: Those of the call, a dict, with a seed; files that it starts from are not among them.
        model: The `StableDiffusion`.
        shape: That of the images, (b, h, w, 3).
        about: Settings that say which model it is, a dict of str.
        version: That of this package.
    """
    count, height, width, _ = shape
    call = {"unconditional_guidance_scale": float(model.defaults.guidance), **arguments}
    sampler, spacing = call.pop("sampler", None), call.pop("spacing", None)
    call["sampler"] = names.label(sampler or model.sampler, spacing)
    others = {OTHERS[name]: json.dumps(call.pop(name)) for name in OTHERS if name in call}
    about = about | {"Prediction type": model.architecture.prediction_type}
    about |= {} if sampler or spacing else metadata.MODELS_OWN
    seeds = [seeds_alone(call, i) for i in range(count)]
    for name in ("batch_size", "img_width", "img_height"):
        call.pop(name, None)
    return [metadata.settings(width, height, version, **(call | each)) | about | others for each in seeds]


def png(image, settings):
    """Returns the bytes of a PNG with settings inside, or without where they are None."""
    content = io.BytesIO()
    metadata.write(content, image, settings, "PNG")
    return content.getvalue()


def convert(content, format, quality):
    """Returns an image's file as a JPEG or WebP, with the settings that are in it.

    Args:
        content: The bytes of a PNG.
        format: "JPEG" or "WEBP".
        quality: 0 to 100.
    """
    converted = io.BytesIO()
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        metadata.write(converted, np.asarray(image), metadata.read(content) or None, format, quality)
    return converted.getvalue()


def read_text(content):
    """Returns the text in an image's file that says how it was made; "" if it does not say."""
    found = metadata.read(content)
    return metadata.describe(found) if found else ""


def read(content):
    """Reads how an image was made.

    Args:
        content: The bytes of a PNG, JPEG or WebP file.

    Returns:
        The arguments of a job, a dict, and the text in the file; ({}, "") if it does not say.

    Raises:
        ValueError: If it is no such file, or a setting cannot be followed.
    """
    found = metadata.read(content)
    if not found:
        return {}, ""
    call = metadata.call_arguments(found)
    for argument, name in OTHERS.items():
        if name in found:
            try:
                call[argument] = json.loads(found[name])
            except ValueError as error:
                raise ValueError(f"The setting {name!r} cannot be followed. Received: {found[name]!r:.200}") from error
    return call, metadata.describe(found)
