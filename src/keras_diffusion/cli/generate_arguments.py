"""Reads the arguments of `generate`, and refuses at once what makes no sense."""

import sys
from functools import partial
from pathlib import Path

from keras_diffusion.architectures import DTYPES
from keras_diffusion.cli.model import PRESETS
from keras_diffusion.engines.names import COMPILED, EXPLAINED, JIT_COMPILE
from keras_diffusion.images import metadata
from keras_diffusion.images.metadata import FORMATS
from keras_diffusion.system.paths import absolute, temporary_file

SETTINGS = {  # argument of a call, as `metadata.call_arguments` names it → option, and its default
    "prompt": ("prompt", None),
    "negative_prompt": ("negative_prompt", None),
    "num_steps": ("steps", None),
    "unconditional_guidance_scale": ("guidance", None),
    "seed": ("seed", None),
    "variation_seed": ("variation_seed", None),
    "variation_strength": ("variation_strength", None),
    "seed_resize_from": ("seed_resize_from", None),
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


def add_arguments(command):
    command.usage = "%(prog)s prompt --output FILE [options]"
    add = command.add_argument
    add("prompt", nargs="?", help="what to draw; with --like, by default that of the image")
    add("--output", type=Path, metavar="FILE", required=True, help=".png, .jpg or .webp; several are NAME-1, NAME-2")
    add("--prompts", type=Path, metavar="FILE", help="a text file with a prompt in each line, instead of one prompt")
    add("--image", type=Path, help="an image to start from")
    add("--strength", type=float, help="how much to change it, 0 to 1 (default: 0.8; 1 with --mask or --outpaint)")
    add("--mask", type=Path, metavar="IMAGE", help="white where the image is to be repainted")
    add("--outpaint", type=int, nargs=4, metavar=("TOP", "BOTTOM", "LEFT", "RIGHT"), help="pixels to add to the image")
    add("--resize", metavar="HOW", help="bring the image to the size of the result: stretch, crop, pad")
    add("--hires", type=float, metavar="FACTOR", help="draw a second time from the image enlarged, such as by 2")
    add("--hires-strength", type=float, metavar="STRENGTH", help="how much that changes (default: 0.5)")
    add("--hires-upscaler", type=Path, metavar="FILE", help="an upscaler that enlarges it (default: Lanczos' filter)")
    add(
        "--upscale",
        type=partial(with_scale, default=None),
        metavar="FILE[=SCALE]",
        help="an upscaler that enlarges what is drawn",
    )
    add("--control", type=control, action="append", default=[], metavar="FILE=IMAGE[=SCALE]", help="a ControlNet")
    add("--guess-mode", action="store_true", help="let ControlNets guess what their images show, for an empty prompt")
    add("--t2i-adapter", type=control, action="append", default=[], metavar="FILE=IMAGE[=SCALE]", help="a T2I-adapter")
    add("--ip-adapter", type=ip_adapter, action="append", default=[], metavar="FILE[=ENCODER]", help="an IP-Adapter")
    metavar = "IMAGE[=SCALE[=MASK[=ADAPTER]]]"
    add("--image-prompt", type=image_prompt, action="append", default=[], metavar=metavar, help="an image to follow")
    add("--lora", type=with_scale, action="append", default=[], metavar="FILE[=SCALE]", help="a LoRA")
    add("--embedding", type=Path, action="append", default=[], metavar="FILE", help="a textual inversion")
    add("--vae", type=Path, metavar="FILE", help="another autoencoder, a file or a folder")
    add("--diffusion-model", type=Path, metavar="FILE", help="another UNet, a file such as one of GGUF, or a folder")
    add("--tiny-vae", type=Path, metavar="FILE", help="a tiny autoencoder (TAESD) to decode with, in less time")
    add("--like", type=Path, metavar="IMAGE", help="an image whose settings to use, unless other options say otherwise")
    add("--preset", default="emoji", help=f"{PRESETS} (default: emoji)")
    add("--seed", type=int, help="where the noise comes from; image i takes seed + i - 1 (default: always another)")
    add("--variation-seed", type=int, metavar="SEED", help="another seed, to go to with --variation-strength")
    add("--variation-strength", type=float, metavar="STRENGTH", help="how far, 0 to 1; images then share one --seed")
    add("--seed-resize-from", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="the size that the seed draws for")
    add("--steps", type=int, help="number of steps (default: the model's, such as 50)")
    add("--guidance", type=float, help="how much to follow the prompt (default: the model's, such as 7.5)")
    add("--negative-prompt", metavar="PROMPT", help="what to keep away from")
    add("--prompt-weighting", action="store_true", default=None, help="read (word:1.3), [word] and BREAK as A1111 does")
    add("--lora-folder", type=Path, metavar="FOLDER", help="where the LoRAs of <lora:name:0.8> are, with weighting")
    add("--long-prompts", metavar="HOW", help="beyond 77 tokens: error (default), truncate, chunk")
    add("--clip-skip", type=int, metavar="N", help="leave out the text encoder's last N blocks (default: 0)")
    add("--batch-size", type=int, default=1, metavar="N", help="number of images (default: 1)")
    add("--sampler", help="one that `keras-diffusion info` lists (default: the model's)")
    add("--spacing", metavar="NAME", help="where the steps lie, such as karras (default: the sampler's or the model's)")
    add("--width", type=int, help="in pixels (default: the model's)")
    add("--height", type=int, help="in pixels (default: the model's)")
    add("--no-metadata", action="store_true", help="do not write into the files how they were made")
    add("--dtype", choices=DTYPES, metavar="DTYPE", help=f"{', '.join(DTYPES)} (default: float32)")
    how = {"choices": JIT_COMPILE, "nargs": "?", "const": COMPILED, "default": "auto"}
    add("--jit-compile", **how, help=f"compile for longer, to run faster: {EXPLAINED}")


def with_scale(text, default=1.0):
    """Reads "FILE" or "FILE=0.8"."""
    path, equals, scale = text.rpartition("=")
    return (Path(path), float(scale)) if equals else (Path(text), default)


def control(text):
    """Reads "FILE=IMAGE" or "FILE=IMAGE=0.8"."""
    path, image, scale = [*text.split("="), ""][:3]
    return Path(path), Path(image), float(scale) if scale else None


def ip_adapter(text):
    """Reads "FILE" or "FILE=ENCODER"."""
    path, _, encoder = text.partition("=")
    return Path(path), Path(encoder) if encoder else None


def image_prompt(text):
    """Reads "IMAGE", "IMAGE=0.8", "IMAGE=0.8=MASK" or "IMAGE=0.8=MASK=ADAPTER"; the two in the middle may be empty."""
    image, scale, mask, adapter = [*text.split("="), "", "", ""][: max(4, text.count("=") + 1)]
    return Path(image), float(scale or 1), Path(mask) if mask else None, adapter or None


def fill(options):
    """Gives the options that were not given their values: those of the image of `--like`, or else the defaults."""
    settings = metadata.read(options.like) if options.like else {}
    found = metadata.call_arguments(settings) if settings else {}
    if options.like and not settings:
        raise ValueError(
            f"`--like` must be an image that says how it was made. Received: --like={str(options.like)!r:.200}"
        )
    others = follow_controls(options, settings, metadata.not_followed(settings))
    if others:
        print(f"not followed: {', '.join(others)}", file=sys.stderr)
    for argument, (option, default) in SETTINGS.items():
        if getattr(options, option) is None:
            setattr(options, option, found.get(argument, default))
    lines = options.prompts.read_text("utf-8").splitlines() if options.prompts else [options.prompt]
    options.prompts = [line for line in lines if line or not options.prompts]
    if options.prompts in ([], [None]):
        raise ValueError("the prompt is missing")


def follow_controls(options, settings, others):
    """Gives networks without a scale that of the image of `--like`; returns the other settings without those."""
    known = metadata.read_controls(settings)
    networks = {path.stem for path, _, _ in (*options.control, *options.t2i_adapter)}
    followed = {name for name, (network, _, _) in known.items() if network in networks}
    scales = {network: scale for network, scale, _ in known.values()}
    for option in "control", "t2i_adapter":
        given = getattr(options, option)
        given = [(path, image, scales.get(path.stem, 1.0) if scale is None else scale) for path, image, scale in given]
        setattr(options, option, given)
    options.guess_mode = options.guess_mode or any(known[name][2] for name in followed)
    return [name for name in others if name not in followed]


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
    if options.variation_strength is not None:
        arguments.number("--variation-strength", options.variation_strength, 0, 1)
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
    if options.variation_seed is not None and not options.variation_strength:
        raise ValueError("--variation-seed needs --variation-strength")
    if options.hires_upscaler and not options.hires:
        raise ValueError("--hires-upscaler needs --hires, the factor")
    if not options.image and (options.mask or options.outpaint or options.strength is not None):
        raise ValueError("--mask, --outpaint and --strength need an --image")
    if options.guess_mode and not options.control:
        raise ValueError("--guess-mode needs a --control")
    if options.image_prompt and not options.ip_adapter:
        raise ValueError("--image-prompt needs an --ip-adapter")
    files = [options.image, options.mask, options.tiny_vae, options.hires_upscaler, options.diffusion_model]
    files += [path for given in (*options.control, *options.t2i_adapter) for path in given[:2]]
    files += [path for path, _ in [*options.lora, *([options.upscale] if options.upscale else [])]]
    files += [path for given in options.ip_adapter for path in given]
    files += [path for image, _, mask, _ in options.image_prompt for path in (image, mask)]
    for path in filter(None, files):
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
