"""Draws images of a prompt, and writes them with their settings."""

import sys
from pathlib import Path

from keras_diffusion import __version__
from keras_diffusion.cli.model import load
from keras_diffusion.images import metadata
from keras_diffusion.images.metadata import FORMATS
from keras_diffusion.system.paths import absolute, new_file, temporary_file
from keras_diffusion.terminal import show

SETTINGS = {  # argument of a call, as `metadata.call_arguments` names it → option, and its default
    "prompt": ("prompt", None),
    "negative_prompt": ("negative_prompt", None),
    "num_steps": ("steps", None),
    "unconditional_guidance_scale": ("guidance", None),
    "seed": ("seed", None),
    "sampler": ("sampler", None),
    "spacing": ("spacing", None),
    "img_width": ("width", None),
    "img_height": ("height", None),
    "prompt_weighting": ("prompt_weighting", False),
    "long_prompts": ("long_prompts", "error"),
    "clip_skip": ("clip_skip", 0),
}


def generate(options):
    """Draw images of a prompt, write them, and print their paths."""
    try:
        fill(options)
        seed = check(options)
    except ValueError as error:
        options.refuse(error)
    if options.seed is None:
        print(f"seed {seed} (--seed {seed} makes the same again)", file=sys.stderr)
    show(f"loading {options.preset}")
    model = load(options.height, options.width, options.jit_compile, options.dtype, options.preset)
    model.lora_folder = options.lora_folder
    steps, guidance = model.defaults
    steps = steps if options.steps is None else options.steps
    call = {
        "prompt": options.prompt,
        "negative_prompt": options.negative_prompt,
        "num_steps": steps,
        "unconditional_guidance_scale": guidance if options.guidance is None else options.guidance,
        "sampler": options.sampler,
        "spacing": options.spacing,
        "prompt_weighting": options.prompt_weighting,
        "long_prompts": options.long_prompts,
        "clip_skip": options.clip_skip,
    }
    seeds = range(seed, seed + options.batch_size)
    recipes = [None if options.no_metadata else recipe(options, model, call, seed) for seed in seeds]
    images = model.text_to_image(
        **call,
        batch_size=options.batch_size,
        seed=seeds[0],
        callback=lambda step, *_: show(f"[{'#' * (30 * step // steps):30}] {step}/{steps}"),
        verbose=0,
    )
    show("")
    for i, (image, settings) in enumerate(zip(images, recipes, strict=True), start=1):
        stem = options.output.stem if len(images) == 1 else f"{options.output.stem}-{i}"
        save(image, options.output.with_stem(stem), settings)
        print(options.output.with_stem(stem), flush=True)


def fill(options):
    """Gives the options that were not given their values: those of the image of `--like`, or else the defaults."""
    settings = metadata.read(options.like) if options.like else {}
    found = metadata.call_arguments(settings) if settings else {}
    if options.like and not settings:
        raise ValueError(
            f"`--like` must be an image that says how it was made. Received: --like={str(options.like)!r:.200}"
        )
    if others := metadata.not_followed(settings):
        print(f"not followed: {', '.join(others)}", file=sys.stderr)
    for argument, (option, default) in SETTINGS.items():
        if getattr(options, option) is None:
            setattr(options, option, found.get(argument, default))
    if options.prompt is None:
        raise ValueError("the prompt is missing")


def recipe(options, model, call, seed):
    """Makes the settings for the file of a seed's image; what the file cannot hold is an error."""
    from keras_diffusion.checkpoints import presets
    from keras_diffusion.sampling import names

    call = call | {"seed": seed, "sampler": names.label(options.sampler or model.sampler, options.spacing)}
    about_model = {
        "Model": Path(options.preset).name,
        "Model hash": presets.model_hash(options.preset),
        "Prediction type": model.architecture.prediction_type,
        "Precision": options.dtype or "float32",
    }
    settings = metadata.settings(model.img_width, model.img_height, __version__, **call)
    settings |= {name: value for name, value in about_model.items() if value}
    settings |= {} if options.sampler or options.spacing else metadata.MODELS_OWN
    metadata.to_text(settings)
    return settings


def check(options):
    """Refuses at once what would fail after Keras is imported, and returns the seed."""
    from keras_diffusion import arguments
    from keras_diffusion.architectures import SD21
    from keras_diffusion.checkpoints import presets
    from keras_diffusion.checkpoints.adapters import lora_folder
    from keras_diffusion.prompts import reading as prompts
    from keras_diffusion.prompts import tags, tokenizer
    from keras_diffusion.sampling import names, noise

    presets.find(options.preset)
    arguments.batch_size("--batch-size", options.batch_size, 1)
    if options.steps is not None:
        arguments.whole_number("--steps", options.steps, 1, 1000)
    if options.guidance is not None:
        arguments.numbers("--guidance", options.guidance, 1)
    if options.sampler is not None:
        names.resolve(options.sampler)
    names.resolve_spacing(options.spacing)
    arguments.whole_number("--clip-skip", options.clip_skip, 0, SD21.text_encoder.layers - 1)
    arguments.choice("--long-prompts", options.long_prompts, prompts.LONG_PROMPTS)
    if options.long_prompts != "truncate":  # which warns, and once is enough
        prompt, loras = tags.take_loras("prompt", options.prompt) if options.prompt_weighting else (options.prompt, {})
        for name in loras:
            lora_folder.find(options.lora_folder, name)
        texts, how = [prompt, options.negative_prompt or ""], (options.prompt_weighting, options.long_prompts)
        prompts.read("prompts", texts, tokenizer.SimpleTokenizer(), SD21.text_encoder, *how)
    arguments.choice("suffix of --output", options.output.suffix.lower(), FORMATS)
    try:
        if options.output.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        with temporary_file(absolute(options.output, "--output")):
            pass
    except OSError as error:
        message = f"`--output` cannot be written: {error.strerror}. Received: --output={str(options.output)!r:.200}"
        raise ValueError(message) from error
    return noise.seeds(options.seed, options.batch_size)[0]


def save(image, path, settings):
    """Writes an image: at any moment, the file is the old one or the complete new one; a link stays a link."""
    with new_file(path, overwrite=True) as temporary:
        metadata.write(temporary, image, settings, FORMATS[path.suffix.lower()])
