"""The command line: `keras-diffusion generate`, `train`, `convert` and `info`.

Keras takes seconds to import, so it waits until the command makes sense.
"""

import argparse
import hashlib
import sys
from functools import cache
from pathlib import Path

from keras_diffusion import __version__
from keras_diffusion.architectures import DTYPES, PREDICTION_TYPES
from keras_diffusion.errors import CheckpointError, NumericalError
from keras_diffusion.images import metadata
from keras_diffusion.images.metadata import FORMATS
from keras_diffusion.startup import paused_gc
from keras_diffusion.system.paths import absolute, new_file, temporary_file
from keras_diffusion.terminal import quiet, show

PRESETS = "emoji, a folder of diffusers or of KerasCV's .h5 files, a single file, or a model downloaded before"
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
STORED = ("float32", "float16", "bfloat16")  # how weights can be written
LARGE = 860e6, 64 * 64  # parameters, and positions of latents, of Stable Diffusion
OTHER_FILES = (".bin", ".ckpt", ".h5", ".keras", ".pt", ".pth")  # which cannot be
FAILURES = (ValueError, OSError, ImportError, MemoryError, NumericalError)  # any other exception is a defect


def main(argv=None):
    """Runs a command.

    Args:
        argv: The words of the command, a list of str; None takes those the program was started with.

    Returns:
        The exit code: 0 if all went well, 1 if something failed, 130 if it was interrupted.

    Raises:
        SystemExit: With code 2 if the command makes no sense, with 0 after --help and --version.
    """
    options = parser().parse_args(argv)
    try:
        options.run(options)
        return 0
    except FAILURES as error:
        code, message = 1, f"error: {error}"
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    show("")
    print(f"keras-diffusion: {message}", file=sys.stderr)
    return code


def parser():
    root = argparse.ArgumentParser("keras-diffusion", description="Stable Diffusion in Keras 3.")
    root.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = root.add_subparsers(title="commands", metavar="command", required=True)

    command = commands.add_parser("generate", help="draw images of a prompt", description=generate.__doc__)
    command.usage = "%(prog)s prompt --output FILE [options]"
    command.set_defaults(run=generate, refuse=command.error)
    add = command.add_argument
    add("prompt", nargs="?", help="what to draw; with --like, by default that of the image")
    add("--output", type=Path, metavar="FILE", required=True, help=".png, .jpg or .webp; several are NAME-1, NAME-2")
    add("--like", type=Path, metavar="IMAGE", help="an image whose settings to use, unless other options say otherwise")
    add("--preset", default="emoji", help=f"{PRESETS} (default: emoji)")
    add("--seed", type=int, help="where the noise comes from; image i takes seed + i - 1 (default: always another)")
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
    add("--jit-compile", action="store_const", const=True, default="auto", help="compile for longer, to run faster")

    command = commands.add_parser("info", help="describe installation, model or picture", description=info.__doc__)
    command.set_defaults(run=info)
    command.add_argument("subject", nargs="?", help=f"{PRESETS}; or a picture")

    command = commands.add_parser("convert", help="write a model in another form", description=convert.__doc__)
    command.set_defaults(run=convert, refuse=command.error)
    add = command.add_argument
    add("preset", metavar="IN", help=PRESETS)
    add("output", type=Path, metavar="OUT", help="a new folder, or a new .safetensors file in the original layout")
    add("--dtype", choices=STORED, default=STORED[0], help=f"how weights are stored (default: {STORED[0]})")
    add("--prediction-type", choices=PREDICTION_TYPES, help="what the model predicts (default: what IN says)")
    add("--ema", action="store_true", help="take the moving averages that a single file may hold beside its weights")

    command = commands.add_parser("train", help="teach a model your images", description=train.__doc__)
    command.usage = "%(prog)s lora FOLDER --output FILE [options]"
    command.set_defaults(run=train, refuse=command.error)
    add = command.add_argument
    add("kind", choices=("lora",), help="what to train")
    add("folder", type=Path, metavar="FOLDER", help="images, each with a caption in a .txt file of its name beside it")
    add("--output", type=Path, metavar="FILE", required=True, help="a new .safetensors file")
    add("--caption", help="the caption of images that have none of their own")
    add("--preset", default="emoji", help=f"{PRESETS} (default: emoji)")
    add("--steps", type=int, default=800, help="number of steps (default: 800)")
    add("--rank", type=int, default=8, help="rank of the LoRA (default: 8)")
    add("--batch-size", type=int, default=1, metavar="N", help="images in a step (default: 1)")
    add("--learning-rate", type=float, default=1e-4, metavar="RATE", help="(default: 1e-4)")
    add("--text-encoder", action="store_true", help="train the text encoder too")
    add("--flip", action="store_true", help="mirror half of the images")
    add("--seed", type=int, default=0, help="where all random numbers come from (default: 0)")
    add("--format", choices=("kohya", "diffusers"), default="kohya", help="how FILE names layers (default: kohya)")
    add("--dtype", choices=DTYPES, metavar="DTYPE", help=f"{', '.join(DTYPES)} (default: float32)")
    return root


def train(options):
    """Train a LoRA on a folder of images, and write it as a file that A1111, ComfyUI and diffusers load too."""
    from keras_diffusion.checkpoints import presets
    from keras_diffusion.checkpoints.layouts import files

    if options.output.suffix.lower() != ".safetensors":
        options.refuse(f"`--output` must end in .safetensors. Received: --output={str(options.output)!r:.200}")
    presets.find(options.preset)
    files.require_vacant(options.output)
    show(f"loading {options.preset}")
    model = load(dtype=options.dtype, preset=options.preset)
    show("")
    names = ("caption", "steps", "rank", "batch_size", "learning_rate", "text_encoder", "flip", "seed")
    trainer = model.train_lora(options.folder, **{name: getattr(options, name) for name in names})
    trainer.save_lora(options.output, options.format)
    print(options.output)


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
    from keras_diffusion.sampling import names

    call = call | {"seed": seed, "sampler": names.label(options.sampler or model.sampler, options.spacing)}
    about_model = {
        "Model": Path(options.preset).name,
        "Model hash": model_hash(options.preset),
        "Prediction type": model.architecture.prediction_type,
        "Precision": options.dtype or "float32",
    }
    settings = metadata.settings(model.img_width, model.img_height, __version__, **call)
    settings |= {name: value for name, value in about_model.items() if value}
    settings |= {} if options.sampler or options.spacing else metadata.MODELS_OWN
    metadata.to_text(settings)
    return settings


@cache
def model_hash(preset):
    """The first ten digits of the SHA-256 of the diffusion model's file, where it has a file of its own."""
    from keras_diffusion.checkpoints import presets
    from keras_diffusion.checkpoints.layouts import files

    digest = hashlib.sha256()
    try:
        for path in files.weights(presets.find(preset) / "unet", files.WEIGHTS["unet"]):
            with open(path, "rb") as file:
                hashlib.file_digest(file, lambda: digest)
    except CheckpointError:
        return None
    return digest.hexdigest()[:10]


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


def convert(options):
    """Write a model as a folder in diffusers layout, or as one .safetensors file in the original (LDM) layout."""
    from keras_diffusion.checkpoints import presets
    from keras_diffusion.checkpoints.layouts import files

    single = options.output.suffix.lower() == ".safetensors"
    if options.output.suffix.lower() in OTHER_FILES:
        options.refuse(f"`OUT` must be a folder or end in .safetensors. Received: {str(options.output)!r:.200}")
    presets.find(options.preset)
    files.require_vacant(options.output, folder=not single)
    show(f"loading {options.preset}")
    model = load(preset=options.preset, prediction_type=options.prediction_type, ema=options.ema)
    show(f"writing {options.output}")
    (model.export_checkpoint if single else model.save_to_preset)(options.output, options.dtype)
    show("")
    print(options.output)


def info(options):
    """Describe the installation, a model or a picture: no network is built and no weight is read."""
    if options.subject is None:
        rows = of_installation()
    elif Path(options.subject).suffix.lower() in FORMATS:
        rows = metadata.read(options.subject) or {"parameters": "none"}
    else:
        rows = of_model(options.subject)
    for name, value in rows.items():
        shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(value))
        print(f"{name:16} " + shown.replace("\n", "\n".ljust(18)))


def of_installation():
    with quiet():
        import keras
    from keras_diffusion.checkpoints.presets import BUNDLED
    from keras_diffusion.engines import choice
    from keras_diffusion.sampling.registry import SAMPLERS

    backend = keras.backend.backend()
    return {
        "keras-diffusion": __version__,
        "Python": sys.version.partition(" ")[0],
        "Keras": keras.__version__,
        "backend": f"{backend} {sys.modules[backend].__version__}",
        "device": str(keras.ops.zeros(()).device).rpartition("device:")[2].lower(),
        "runs by": f"{choice.choose_by_work(*LARGE)} at 512×512, {choice.choose_by_work(0, 0)} for small models",
        "presets": ", ".join(BUNDLED),
        "samplers": ", ".join(SAMPLERS),
    }


def of_model(preset):
    from keras_diffusion.checkpoints import presets

    presets.find(preset)
    with quiet():
        import keras  # noqa: F401
    from keras_diffusion.checkpoints.layouts.files import naming
    from keras_diffusion.checkpoints.mapping import names
    from keras_diffusion.sampling.scheduler_config import from_scheduler_config

    found = presets.read(preset)
    parts = names.folders(found.architecture)
    parameters = {part: sum(tensor.size for tensor in found.tensors(part).values()) for part in parts}
    with naming(found.path):
        sampler, _ = from_scheduler_config(found.scheduler_config)
    return {
        "folder" if found.path.is_dir() else "file": found.path,
        "architecture": found.architecture.name,
        **{part: f"{count:,} parameters" for part, count in parameters.items()},
        "image size": f"{found.architecture.image_size} × {found.architecture.image_size}",
        "prediction type": found.architecture.prediction_type,
        "sampler": sampler,
    }


def load(*arguments, **options):
    """Builds the `StableDiffusion` of these arguments."""
    with paused_gc():
        with quiet():
            from keras_diffusion import StableDiffusion
        return StableDiffusion(*arguments, **options)


def save(image, path, settings):
    """Writes an image: at any moment, the file is the old one or the complete new one; a link stays a link."""
    with new_file(path, overwrite=True) as temporary:
        metadata.write(temporary, image, settings, FORMATS[path.suffix.lower()])
