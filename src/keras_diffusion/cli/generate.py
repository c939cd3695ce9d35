"""Draws images of a prompt, and writes them with their settings."""

import sys
from pathlib import Path

from keras_diffusion import __version__
from keras_diffusion.cli.generate_arguments import SETTINGS, check, fill
from keras_diffusion.cli.model import load, load_upscaler
from keras_diffusion.cli.upscale import enlarge, save
from keras_diffusion.engines.names import JIT_COMPILE
from keras_diffusion.images import metadata
from keras_diffusion.terminal import show

EXTRA = ("variation_seed", "variation_strength", "seed_resize_from")
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
    from keras_diffusion.sampling.noise import seeds
    from keras_diffusion.sampling.variation import seeds_alone

    show(f"loading {options.preset}")
    parts = {name: path for name in ("vae", "diffusion_model") if (path := getattr(options, name))}
    compiled = JIT_COMPILE[options.jit_compile]
    model = load(options.height, options.width, compiled, options.dtype, options.preset, **parts)
    call, upscaler = arguments_of(options, model), options.upscale and load_upscaler(options.upscale[0], options.dtype)
    call |= {"seed": seed}
    if options.variation_strength:
        call["variation_seed"] = seeds(options.variation_seed, options.batch_size * len(options.prompts))[0]
    jobs = [
        call | {"prompt": prompt} | seeds_alone(call, i * options.batch_size)
        for i, prompt in enumerate(options.prompts)
    ]
    alone = [job | seeds_alone(job, i) for job in jobs for i in range(options.batch_size)]
    recipes = [None if options.no_metadata else recipe(options, model, each) for each in alone]
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
            if upscaler:
                image, settings = enlarge(image, upscaler, options.upscale[1], settings)
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
    given |= {name: call.pop(name) for name in ("hires", "hires_strength", *EXTRA)}
    if options.image and options.strength is None:
        given["strength"] = STRENGTHS[bool(options.mask or options.outpaint)]
    if options.hires_upscaler:
        given["hires_upscaler"] = load_upscaler(options.hires_upscaler, options.dtype)
    if options.tiny_vae:
        model.load_tiny_vae(options.tiny_vae)
        given["tiny_vae"] = True
    if options.guess_mode:
        given["guess_mode"] = True
    followed = [(model.load_controlnet, *each) for each in options.control]
    followed += [(model.load_t2i_adapter, *each) for each in options.t2i_adapter]
    if followed:
        given["control"] = [(load(path), image, scale) for load, path, image, scale in followed]
    for paths in options.ip_adapter:
        model.load_ip_adapter(*paths)
    given["image_prompt"] = options.image_prompt or None
    return call | {name: value for name, value in given.items() if value is not None}


def recipe(options, model, call):
    """Makes the settings for the file of the image of a call; what the file cannot hold is an error."""
    from keras_diffusion.checkpoints import presets
    from keras_diffusion.sampling import names

    call = call | {"sampler": names.label(options.sampler or model.sampler, options.spacing)}
    about_model = {
        "Model": Path(options.diffusion_model or options.preset).name,
        "Model hash": None if options.diffusion_model else presets.model_hash(options.preset),
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
    followed = (*options.control, *options.t2i_adapter)
    units = [metadata.control(path.stem, scale, options.guess_mode) for path, _, scale in followed]
    for _, scale, _, adapter in options.image_prompt:
        units.append(metadata.image_prompt(adapter or options.ip_adapter[0][0].stem, scale))
    settings |= {f"ControlNet {i}": unit for i, unit in enumerate(units)}
    metadata.to_text(settings)
    return settings
