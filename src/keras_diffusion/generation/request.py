"""What a call asks for: all of its arguments, checked before anything is computed."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from keras_diffusion import arguments
from keras_diffusion.generation.controls import controls
from keras_diffusion.images import reading as images
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.prompts import reading as prompts
from keras_diffusion.sampling import noise
from keras_diffusion.sampling.samplers import Table, build

OUTPUTS = ("array", "pil", "latents")


class Plan(NamedTuple):
    """A call for b images, checked.

    Args:
        prompt: 1 or b prompts that have been read, see `prompts.reading.read`, or contexts.
        negative: The same for the negative prompts.
        table: The sampler's.
        seeds: b ints.
        noise: Unit noise to start from, float32 (b, h/f, w/f, c).
        guidance: float32 (b,).
        rescale: float32 (b,).
        interval: The fractions of the steps between which there is guidance.
        deep_cache: For how many steps deep features serve.
        image: Pixels to start from, float32 (b, h, w, 3) in [0, 255], or latents, float32 (b, h/f, w/f, c), or None.
        mask: Which of them are repainted, bool (b, h, w), or None.
        controls: A list of `controls.Control`.
        callback: A function, or None.
        safety: Likewise, the model's.
        verbose: 0, 1 or 2.
        output: One of `OUTPUTS`.
    """

    prompt: list | np.ndarray
    negative: list | np.ndarray
    table: Table
    seeds: list
    noise: np.ndarray
    guidance: np.ndarray
    rescale: np.ndarray
    interval: tuple
    deep_cache: int
    image: np.ndarray | None
    mask: np.ndarray | None
    controls: list
    callback: Callable | None
    safety: Callable | None
    verbose: int
    output: str


def plan(
    model,
    name,
    prompt,
    negative_prompt,
    batch_size,
    num_steps,
    unconditional_guidance_scale,
    seed,
    *,
    diffusion_noise=None,
    image=None,
    strength=None,
    mask=None,
    mask_white="repaint",
    img_height=None,
    img_width=None,
    sampler=None,
    spacing=None,
    karras=False,
    eta=None,
    timesteps=None,
    guidance_rescale=0.0,
    guidance_interval=(0, 1),
    deep_cache=1,
    control=None,
    callback=None,
    verbose=1,
    output="array",
    prompt_weighting=False,
    long_prompts="error",
    clip_skip=0,
    **unknown,
):
    """Checks a call; the arguments are those of `StableDiffusion.generate_image`.

    Args:
        model: The `StableDiffusion`, of which nothing is changed.
        name: What to call the prompt in errors.
        prompt: Prompts or contexts.

    Returns:
        A `Plan`.

    Raises:
        TypeError, ValueError: As `StableDiffusion.generate_image`.
    """
    if unknown:
        known = [*inspect.signature(plan).parameters][3:-1]
        raise TypeError(f"The arguments are {name}, {', '.join(known)}. Received: {', '.join(unknown)}")
    arguments.choice("output", output, OUTPUTS)
    reading = {"prompt_weighting": prompt_weighting, "long_prompts": long_prompts, "clip_skip": clip_skip}
    prompt = read(model, name, prompt, **reading)
    if image is not None:
        image, (img_height, img_width) = _start(model, image, img_height, img_width)
        if batch_size is None and len(prompt) == 1:
            batch_size = len(image)
    elif mask is not None or strength is not None:
        raise ValueError("`mask` and `strength` need an `image`. Received: no image")
    count = arguments.batch_size("batch_size", batch_size, len(prompt))
    size = model.side("img_height", img_height), model.side("img_width", img_width)
    if image is not None:
        image = np.stack(arguments.repeated("image", list(image), count))
    if mask is not None:
        if image.shape[-1] != 3:
            raise ValueError(f"`mask` needs an `image` of pixels. Received: latents of shape {image.shape}")
        white = arguments.choice("mask_white", mask_white, images.MASK_WHITE)
        mask = np.stack(arguments.repeated("mask", list(images.mask("mask", mask, size, white)), count))
    if seed is not None and diffusion_noise is not None:
        raise ValueError(f"Give `seed` or `diffusion_noise`, not both. Received: both, with {seed=!r:.200}")
    seeds, autoencoder = noise.seeds(seed, count), model.architecture.autoencoder
    latent_shape = (*autoencoder.latent_size(*size), autoencoder.latent_channels)
    if diffusion_noise is None:
        diffusion_noise = noise.starting_noise(seeds, latent_shape)
    karras = arguments.boolean("karras", karras) or None
    spread = {"spacing": spacing, "karras": karras, "eta": eta, "timesteps": timesteps}
    negative = read(model, "negative_prompt", "" if negative_prompt is None else negative_prompt, **reading)
    arguments.repeated("negative_prompt", list(negative), count)
    return Plan(
        prompt=prompt,
        negative=negative,
        table=_table(model, sampler, num_steps, strength, {k: v for k, v in spread.items() if v is not None}),
        seeds=seeds,
        noise=arguments.array("diffusion_noise", diffusion_noise, (count, *latent_shape)),
        guidance=arguments.numbers("unconditional_guidance_scale", unconditional_guidance_scale, count),
        rescale=arguments.numbers("guidance_rescale", guidance_rescale, count, largest=1),
        interval=arguments.interval("guidance_interval", guidance_interval),
        deep_cache=_deep_cache(model, deep_cache),
        image=image,
        mask=mask,
        controls=controls("control", control, count, size, model.diffusion_model),
        callback=arguments.function("callback", callback),
        safety=arguments.function("safety", model.safety),
        verbose=arguments.whole_number("verbose", int(verbose) if isinstance(verbose, bool) else verbose, 0, 2),
        output=output,
    )


def read(model, name, value, **reading):
    """Prompts that have been read, or contexts, 1 or more of them."""
    shape = model.architecture.text_encoder
    if name == "encoded_text" or (name == "negative_prompt" and hasattr(value, "shape")):
        return arguments.context(name, value, (shape.length, shape.width))
    return prompts.read(name, value, model.tokenizer, shape, **reading)


def _table(model, sampler, num_steps, strength, spread):
    """The table of the model's own sampler, or of another one on its noise schedule."""
    schedule = model.schedule
    if sampler is not None:
        schedule = {key: schedule[key] for key in ("prediction_type", "alphas_cumprod") if key in schedule}
    sampler, schedule = model.sampler if sampler is None else sampler, {**schedule, **spread}
    num_steps = None if "timesteps" in spread else num_steps
    table = build(sampler, num_steps, **schedule)
    if strength is None:
        return table
    return build(sampler, num_steps, start=arguments.left_out("strength", strength, table.steps[-1] + 1), **schedule)


def _deep_cache(model, value):
    """For how many steps deep features serve, which only our own network can give."""
    value = arguments.whole_number("deep_cache", value, 1, 1000)
    if value > 1 and not isinstance(model.diffusion_model, DiffusionModel):
        raise ValueError(
            f"`deep_cache` needs a DiffusionModel; it must be 1 for another network. "
            f"Received: deep_cache={value} and a {type(model.diffusion_model).__name__}"
        )
    return value


def _start(model, image, height, width):
    """What to start from, pixels or latents, and its size in pixels; pixels are scaled where a side is given."""
    autoencoder = model.architecture.autoencoder
    if np.shape(image)[-1:] == (autoencoder.latent_channels,) and np.ndim(image) == 4:
        latents = arguments.array("image", image, np.shape(image))
        size = tuple(autoencoder.factor * side for side in latents.shape[1:3])
        if (height or size[0], width or size[1]) != size:
            raise ValueError(f"Latents cannot be scaled. Received: latents of {size}, {height=!r:.99}, {width=!r:.99}")
        return latents, size
    pixels = images.pictures("image", image)
    size = pixels.shape[1:3]
    wanted = tuple(side if given is None else given for given, side in zip((height, width), size, strict=True))
    for name, side in zip(("height of image", "width of image"), wanted, strict=True):
        model.side(name, side)
    return (pixels if wanted == size else images.resize(pixels, wanted).clip(0, 255)), wanted
