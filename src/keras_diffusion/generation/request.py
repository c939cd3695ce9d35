"""Checks all arguments of a call before anything is computed."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from keras_diffusion import arguments
from keras_diffusion.generation.controls import controls, read_guess_mode, scales
from keras_diffusion.generation.guidance import read_guidance, require_no_other_guidance
from keras_diffusion.generation.image_prompts import read_image_prompts
from keras_diffusion.generation.noise import read_noise
from keras_diffusion.generation.options import Options, SizeOptions, refuse_unknown
from keras_diffusion.generation.size_ids import read_size_ids
from keras_diffusion.generation.texts import read
from keras_diffusion.generation.upscaling import read_upscale
from keras_diffusion.images import reading as images
from keras_diffusion.images import resizing
from keras_diffusion.images.resizing import HOW
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.sampling.defaults import warn_of_what_ruins
from keras_diffusion.sampling.names import resolve
from keras_diffusion.sampling.registry import SAMPLERS
from keras_diffusion.sampling.samplers import Table, build, rows_between, rows_of_every

SIZE_OPTIONS = tuple(SizeOptions.__annotations__)
OUTPUTS = ("array", "pil", "latents")

ALWAYS = ("negative_prompt", "batch_size", "num_steps", "unconditional_guidance_scale", "seed")


class Request(NamedTuple):
    """Everything that a call for b images asks for, checked.

    Args:
        prompt: 1 or b prompts that have been read, see `texts.read`.
        negative: The same for the negative prompts.
        table: The sampler's.
        seeds: b ints.
        noise: Unit noise to start from, float32 (b, h/f, w/f, c).
        guidance: float32 (b,), how far to go from the negative prompts to the prompts.
        embedded_guidance: float32 (b,), the guidance that the network itself takes, or None for most networks.
        rescale: float32 (b,).
        guided: bool (rows,), which rows of the table are guided.
        deep: bool (rows,), which rows run the whole diffusion model; the others reuse its deep features.
        pixels: The image to start from, float32 (b, h, w, 3) in [0, 255], or None.
        latents: The same as latents, float32 (b, h/f, w/f, c), or None. `pixels` or `latents` is None.
        mask: Which pixels are repainted, bool (b, h, w), or None.
        controls: A list of n `controls.Control`.
        guess_mode: Whether the controls guess what their images show.
        scales: float32 (rows, n), the scale of every control in every row.
        callback: A function, or None.
        safety: Likewise, the model's.
        verbose: 0, 1 or 2.
        output: One of `OUTPUTS`.
        tiny_vae: Whether the tiny autoencoder decodes and encodes.
        upscale: Function of images that returns them enlarged, or None.
        size_ids: float32 (2, k), see `size_ids`.
        image_prompts: A list of `image_prompts.Read`.
        first: How many rows of the table another model has run before.
    """

    prompt: list
    negative: list
    table: Table
    seeds: list
    noise: np.ndarray
    guidance: np.ndarray
    embedded_guidance: np.ndarray | None
    rescale: np.ndarray
    guided: np.ndarray
    deep: np.ndarray
    pixels: np.ndarray | None
    latents: np.ndarray | None
    mask: np.ndarray | None
    controls: list
    guess_mode: bool
    scales: np.ndarray
    callback: Callable | None
    safety: Callable | None
    verbose: int
    output: str
    tiny_vae: bool
    upscale: Callable | None
    size_ids: np.ndarray
    image_prompts: list
    first: int = 0


def make_request(
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
    resize=None,
    outpaint=None,
    variation_seed=None,
    variation_strength=0.0,
    seed_resize_from=None,
    sampler=None,
    spacing=None,
    karras=False,
    eta=None,
    timesteps=None,
    guidance_rescale=0.0,
    guidance_interval=(0, 1),
    deep_cache=1,
    control=None,
    guess_mode=False,
    image_prompt=None,
    callback=None,
    verbose=1,
    output="array",
    tiny_vae=False,
    upscale=None,
    prompt_weighting=False,
    long_prompts="error",
    clip_skip=0,
    passed=0,
    **others,
):
    """Checks a call; the arguments are those of `StableDiffusion.generate_image`.

    Args:
        model: The `StableDiffusion`, of which nothing is changed.
        name: What to call the prompt in errors.
        prompt: Prompts or contexts.
        passed: How many evaluations of the network a first pass took, of which this is the second.

    Returns:
        A `Request`.

    Raises:
        TypeError, ValueError: As `StableDiffusion.generate_image`.
    """
    sizes = {key: others.pop(key) for key in SIZE_OPTIONS if key in others}
    if others:
        refuse_unknown(others, [name, *ALWAYS, *Options.__annotations__])
    arguments.choice("output", output, OUTPUTS)
    num_steps = model.defaults.num_steps if num_steps is None else num_steps
    guidance = model.defaults.guidance if unconditional_guidance_scale is None else unconditional_guidance_scale
    reading = {"prompt_weighting": prompt_weighting, "long_prompts": long_prompts, "clip_skip": clip_skip}
    spread = {"spacing": spacing, "karras": arguments.boolean("karras", karras) or None, "eta": eta}
    table = _table(model, sampler, num_steps, strength, {**spread, "timesteps": timesteps})
    reading["passed"] = passed
    reading["evaluations"] = count_evaluations(sampler or model.sampler, table)
    prompt = read(model, name, prompt, **reading)
    image, mask = _extended(image, mask, outpaint)
    start = _start(model, image, strength, mask, img_height, img_width, resize)
    if batch_size is None and start and len(prompt) == 1:
        batch_size = len(start.image)
    count = arguments.batch_size("batch_size", batch_size, len(prompt))
    size = start.size if start else (model.side("img_height", img_height), model.side("img_width", img_width))
    varied = variation_seed, variation_strength, seed_resize_from
    seeds, unit_noise = read_noise(model, seed, diffusion_noise, count, size, *varied)
    negative = read(model, "negative_prompt", negative_prompt, **reading)
    arguments.repeated("negative_prompt", list(negative), count)
    asked = controls("control", control, count, size, control is not None and model.diffusion_model, resize or HOW[0])
    guidance, embedded = read_guidance(model, guidance, count)
    warn_of_what_ruins(model.defaults, table.steps[-1] + 1, guidance)
    rescale = arguments.numbers("guidance_rescale", guidance_rescale, count, largest=1)
    interval = arguments.interval("guidance_interval", guidance_interval)
    if embedded is not None:
        require_no_other_guidance(prompt, negative_prompt, rescale, interval)
    guided = rows_between(table.steps, *interval)
    return Request(
        prompt=prompt,
        negative=negative,
        table=table,
        seeds=seeds,
        noise=unit_noise,
        guidance=guidance,
        embedded_guidance=embedded,
        rescale=rescale,
        guided=guided,
        deep=rows_of_every(table.steps, _deep_cache(model, deep_cache), guided, scales(asked, table.steps)),
        **_for_each_image(start, mask, mask_white, count, resize or HOW[0]),
        controls=asked,
        guess_mode=read_guess_mode(guess_mode, asked),
        scales=scales(asked, table.steps),
        callback=arguments.function("callback", callback),
        safety=arguments.function("safety", model.safety),
        verbose=arguments.whole_number("verbose", int(verbose) if isinstance(verbose, bool) else verbose, 0, 2),
        output=output,
        tiny_vae=_tiny_vae(model, tiny_vae),
        upscale=_upscale(upscale, output),
        size_ids=read_size_ids(model.architecture, size, sizes),
        image_prompts=read_image_prompts("image_prompt", image_prompt, model, count, size),
    )


def _table(model, sampler, num_steps, strength, spread):
    """The table of the model's own sampler, or of another one on its noise schedule."""
    schedule, spread = model.schedule, {name: value for name, value in spread.items() if value is not None}
    if sampler is not None:
        schedule = {key: schedule[key] for key in ("prediction_type", "alphas_cumprod") if key in schedule}
    sampler, schedule = model.sampler if sampler is None else sampler, {**schedule, **spread}
    num_steps = None if "timesteps" in spread else num_steps
    table = build(sampler, num_steps, **schedule)
    if strength is None:
        return table
    return build(
        sampler, num_steps, start=arguments.skipped_steps("strength", strength, table.steps[-1] + 1), **schedule
    )


def count_evaluations(sampler, table):
    """Counts how many times a sampler runs the network in all of its steps, as A1111 does."""
    return (table.steps[-1] + 1) * SAMPLERS[resolve(sampler)[0]].evaluations


def _deep_cache(model, value):
    """For how many steps deep features serve, which only our own network can give."""
    value = arguments.whole_number("deep_cache", value, 1, 1000)
    if value > 1 and not isinstance(model.diffusion_model, DiffusionModel):
        raise ValueError(
            f"`deep_cache` needs a DiffusionModel; it must be 1 for another network. "
            f"Received: deep_cache={value} and a {type(model.diffusion_model).__name__}"
        )
    return value


def _tiny_vae(model, value):
    if arguments.boolean("tiny_vae", value) and model.tiny_decoder is None:
        raise ValueError("`tiny_vae` needs a tiny decoder; call load_tiny_vae(path) first. Received: tiny_vae=True")
    return value


def _upscale(value, output):
    if value is not None and output == "latents":
        raise ValueError("`upscale` enlarges images. Received: output='latents' and upscale")
    return read_upscale(value)


class Start(NamedTuple):
    """The image or images that a call starts from.

    Args:
        image: Pixels or latents, float32 (k, ...).
        size: (height, width) in pixels.
        given_size: The size before pixels were scaled.
        in_pixels: Which of the two.
    """

    image: np.ndarray
    size: tuple
    given_size: tuple
    in_pixels: bool


def _extended(image, mask, outpaint):
    """The image with more pixels at its edges, and the mask of those, where `outpaint` asks for it."""
    if outpaint is None:
        return image, mask
    if image is None or mask is not None:
        raise ValueError("`outpaint` needs an `image`, and takes the place of a `mask`. Received: a mask or no image")
    if not (isinstance(outpaint, tuple | list) and len(outpaint) == 4):
        raise TypeError(f"`outpaint` must be (top, bottom, left, right). Received: {outpaint!r:.200}")
    sides = [arguments.whole_number("outpaint", side, 0, arguments.LARGEST_SIDE) for side in outpaint]
    pixels, mask = resizing.pad(images.read_images("image", image), *sides)
    return pixels.astype("float32") / 255, mask


def _start(model, image, strength, mask, height, width, how):
    """Reads what to start from, a `Start` or None; pixels are scaled to the sides that are given."""
    if how is not None:
        arguments.choice("resize", how, HOW)
    if image is None:
        if mask is not None or strength is not None:
            raise ValueError("`mask` and `strength` need an `image`. Received: no image")
        return None
    autoencoder = model.architecture.autoencoder
    if _are_latents(image, autoencoder.latent_channels):
        latents = arguments.array("image", image, np.shape(image))
        size = tuple(autoencoder.factor * side for side in latents.shape[1:3])
        if (height or size[0], width or size[1]) != size:
            raise ValueError(f"Latents cannot be scaled. Received: latents of {size}, {height=!r:.99}, {width=!r:.99}")
        if mask is not None:
            raise ValueError(f"`mask` needs an `image` of pixels. Received: latents of shape {latents.shape}")
        for name, side in zip(("img_height", "img_width"), size, strict=True):
            model.side(name, side)
        return Start(latents, size, size, in_pixels=False)
    pixels = images.read_images("image", image)
    size = pixels.shape[1:3]
    usual = size if how is None else (model.img_height, model.img_width)
    wanted = tuple(side if given is None else given for given, side in zip((height, width), usual, strict=True))
    for name, side in zip(("height of image", "width of image"), wanted, strict=True):
        model.side(name, side)
    return Start(resizing.fit(pixels, wanted, how or HOW[0]).clip(0, 255), wanted, size, in_pixels=True)


def _are_latents(image, channels):
    """Tells whether an image is given as latents: an array (b, h/f, w/f, channels) that cannot be pixels.

    Only latents of three channels have the shape of pixels; numbers outside [0, 1] then tell them apart.
    """
    if np.ndim(image) != 4 or np.shape(image)[-1] != channels:
        return False
    array = np.asarray(image)
    return channels != 3 or (array.dtype.kind == "f" and not ((array >= 0) & (array <= 1)).all())


def _for_each_image(start, mask, mask_white, count, how):
    """The pixels or the latents, and the mask, of each of `count` images: a dict of three fields of `Request`."""
    fields = {"pixels": None, "latents": None, "mask": None}
    if start:
        image = np.stack(arguments.repeated("image", list(start.image), count))
        fields["pixels" if start.in_pixels else "latents"] = image
    if mask is not None:
        white = arguments.choice("mask_white", mask_white, images.MASK_WHITE)
        read_mask = images.read_mask("mask", mask, start.size, white, start.given_size, how)
        fields["mask"] = np.stack(arguments.repeated("mask", list(read_mask), count))
    return fields
