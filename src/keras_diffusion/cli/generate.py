"""Draws images of a prompt, and writes them with their settings."""

import sys
from functools import partial
from pathlib import Path

from keras_diffusion import __version__
from keras_diffusion.cli.model import load
from keras_diffusion.engines.ways import JIT_COMPILE
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
    "hires": ("hires", None),
    "hires_strength": ("hires_strength", None),
}
SIZES = ("prompt", "seed", "img_width", "img_height")  # that the model or a call for one prompt has


STRENGTHS = {False: 0.8, True: 1.0}  # as `image_to_image` and `inpaint` have them


def generate(options):
    """Draw images of prompts, write them, and print their paths."""
    try:
        fill(options)
        seed = check(options)
    except ValueError as error:
        options.refuse(error)
    if options.seed is None:
        print(f"seed {seed} (--seed {seed} makes the same again)", file=sys.stderr)
    show(f"loading {options.preset}")
    parts = {"vae": options.vae} if options.vae else {}
    compiled = JIT_COMPILE[options.jit_compile]
    model = load(options.height, options.width, compiled, options.dtype, options.preset, **parts)
    call = arguments_of(options, model)
    jobs = [
        call | {"prompt": prompt, "seed": seed + i * options.batch_size} for i, prompt in enumerate(options.prompts)
    ]
    seeds = [(job, job["seed"] + i) for job in jobs for i in range(options.batch_size)]
    recipes = [None if options.no_metadata else recipe(options, model, *each) for each in seeds]
    count, steps = len(recipes), call["num_steps"]
    for job in jobs:
        images = model.text_to_image(
            **job,
            batch_size=options.batch_size,
            callback=lambda step, *_: show(f"[{'#' * (30 * step // steps):30}] {step}/{steps}"),
            verbose=0,
        )
        show("")
        for image in images:
            number = count - len(recipes) + 1
            stem = options.output.stem if count == 1 else f"{options.output.stem}-{number}"
            settings = recipes.pop(0)
            if options.image and settings:
                settings["Size"] = f"{image.shape[1]}x{image.shape[0]}"
            save(image, options.output.with_stem(stem), settings)
            print(options.output.with_stem(stem), flush=True)


def arguments_of(options, model):
    """Loads what is added to the model, and returns the arguments that all calls have."""
    model.lora_folder = options.lora_folder
    for path, scale in options.lora:
        model.load_lora(path, scale)
    for path in options.embedding:
        model.load_textual_inversion(path)
    steps, guidance = model.defaults
    call = {argument: getattr(options, option) for argument, (option, _) in SETTINGS.items() if argument not in SIZES}
    call["num_steps"] = steps if call["num_steps"] is None else call["num_steps"]
    if call["unconditional_guidance_scale"] is None:
        call["unconditional_guidance_scale"] = guidance
    given = {name: getattr(options, name) for name in ("image", "mask", "resize", "outpaint", "strength")}
    given |= {name: call.pop(name) for name in ("hires", "hires_strength")}
    if options.image and options.strength is None:
        given["strength"] = STRENGTHS[bool(options.mask or options.outpaint)]
    if options.control:
        given["control"] = [(model.load_controlnet(path), image, scale) for path, image, scale in options.control]
    return call | {name: value for name, value in given.items() if value is not None}


def with_scale(text):
    """Reads "FILE" or "FILE=0.8"."""
    path, equals, scale = text.rpartition("=")
    return (Path(path), float(scale)) if equals else (Path(text), 1.0)


def control(text):
    """Reads "FILE=IMAGE" or "FILE=IMAGE=0.8"."""
    path, image, scale = [*text.split("="), "1"][:3]
    return Path(path), Path(image), float(scale)


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
    lines = options.prompts.read_text("utf-8").splitlines() if options.prompts else [options.prompt]
    options.prompts = [line for line in lines if line or not options.prompts]
    if options.prompts in ([], [None]):
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
    if options.image:
        settings["Denoising strength"] = str(call["strength"])
    if options.lora:
        settings["Lora files"] = ", ".join(f"{path.stem}: {scale:g}" for path, scale in options.lora)
    metadata.to_text(settings)
    return settings


def check(options):
    """Refuses at once what would fail after Keras is imported, and returns the seed."""
    from keras_diffusion import arguments
    from keras_diffusion.architectures import SD21
    from keras_diffusion.checkpoints import presets
    from keras_diffusion.checkpoints.adapters import lora_folder
    from keras_diffusion.prompts import composing, tags, tokenizer
    from keras_diffusion.prompts.reading import LONG_PROMPTS
    from keras_diffusion.sampling import names, noise
    from keras_diffusion.sampling.defaults import USUAL

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
    arguments.choice("--long-prompts", options.long_prompts, LONG_PROMPTS)
    if options.long_prompts != "truncate":  # which warns, and once is enough
        texts = []
        for prompt in options.prompts:
            text, loras = tags.take_loras("prompt", prompt) if options.prompt_weighting else (prompt, {})
            texts.append(text)
            for name in loras:
                lora_folder.find(options.lora_folder, name)
        how = {"prompt_weighting": options.prompt_weighting, "long_prompts": options.long_prompts}
        read = partial(composing.read, evaluations=options.steps or USUAL.num_steps, **how)
        for name, given in (("prompt", texts), ("negative_prompt", options.negative_prompt or "")):
            read(name, given, tokenizer.SimpleTokenizer(), SD21.text_encoder)
    if not options.image and (options.mask or options.outpaint or options.strength is not None):
        raise ValueError("--mask, --outpaint and --strength need an --image")
    controls = [path for given in options.control for path in given[:2]]
    for path in filter(None, [options.image, options.mask, *controls, *(path for path, _ in options.lora)]):
        if not path.exists():
            raise ValueError(f"There is no such file. Received: {str(path)!r:.200}")
    arguments.choice("suffix of --output", options.output.suffix.lower(), FORMATS)
    try:
        if options.output.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        with temporary_file(absolute(options.output, "--output")):
            pass
    except OSError as error:
        message = f"`--output` cannot be written: {error.strerror}. Received: --output={str(options.output)!r:.200}"
        raise ValueError(message) from error
    return noise.seeds(options.seed, options.batch_size * len(options.prompts))[0]


def save(image, path, settings):
    """Writes an image: at any moment, the file is the old one or the complete new one; a link stays a link."""
    with new_file(path, overwrite=True) as temporary:
        metadata.write(temporary, image, settings, FORMATS[path.suffix.lower()])
