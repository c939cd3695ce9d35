"""Trains on a folder of images: a LoRA, an embedding, a ControlNet or the whole model."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from keras_diffusion.architectures import DTYPES
from keras_diffusion.cli.model import PRESETS, load
from keras_diffusion.errors import NumericalError
from keras_diffusion.terminal import show

# Options of every kind.
COMMON = ("caption", "steps", "batch_size", "learning_rate", "flip", "buckets", "seed", "rematerialize")
OPTIONS = {  # option of a training → how the command line reads it
    "caption": {"help": "the caption of images that have none of their own"},
    "steps": {"type": int},
    "batch_size": {"type": int, "metavar": "N"},
    "learning_rate": {"type": float, "metavar": "RATE"},
    "flip": {"action": "store_true", "help": "mirror half of the images"},
    "buckets": {"type": int, "metavar": "N", "help": "number of sizes for images of different shapes (default: 1)"},
    "seed": {"type": int, "help": "where all random numbers come from (default: 0)"},
    "rematerialize": {"action": "store_true", "help": "keep less for the backward pass: less memory, more time"},
    "rank": {"type": int, "help": "rank of the LoRA (default: 8; of lcm: 64)"},
    "target_ema": {"type": float, "metavar": "MOMENTUM", "help": "momentum of the average that makes the targets, such "
                   "as 0.95"},
    "layers": {"help": "which layers learn: attention, linear or all (default: attention)"},
    "text_encoder": {"action": "store_true", "help": "train the text encoder too"},
    "word": {"required": True, "help": "the new word, such as '<cat-toy>'"},
    "initial_word": {"required": True, "metavar": "WORD", "help": "a word that says roughly the same, such as toy"},
    "vectors": {"type": int, "help": "number of vectors of the word (default: 1)"},
    "condition_folder": {"type": Path, "required": True, "metavar": "FOLDER", "help": "what the ControlNet sees: "
                         "an image of the same name for each image"},
    "ema": {"type": float, "help": "largest momentum of moving averages of the weights, such as 0.9999"},
    "class_caption": {"required": True, "metavar": "CAPTION", "help": "what class images show, such as 'a photo of a "
                      "dog'"},
    "class_folder": {"type": Path, "metavar": "FOLDER", "help": "where class images are (default: FOLDER-class)"},
    "class_images": {"type": int, "metavar": "N", "help": "draw class images until there are N (default: 100)"},
}  # fmt: skip


class Kind(NamedTuple):
    """Describes one kind of training.

    Args:
        method: Name of the method of the model.
        description: What the command does.
        output: What it writes: "file", "folder", or "either".
        defaults: What its steps, batch size and learning rate are unless they are given, for the help.
        options: Names of its options beside `COMMON`.
        save: Function of the model, the trainer, the path and the format.
        formats: The formats of files, the default one first.
    """

    method: str
    description: str
    output: str
    defaults: tuple
    options: tuple
    save: Callable
    formats: tuple = ()


def _save_lora(model, trainer, path, format):
    trainer.save_lora(path, format)


def _save_model(model, trainer, path, format):
    (model.export_checkpoint if path.suffix.lower() == ".safetensors" else model.save_to_preset)(path)


MODEL = ("text_encoder", "ema")
KINDS = {
    "lora": Kind(
        "train_lora",
        "Train a LoRA, and write it as a file that A1111, ComfyUI and diffusers load too.",
        "file",
        (800, 1, 1e-4),
        ("rank", "layers", "text_encoder"),
        _save_lora,
        ("kohya", "diffusers"),
    ),
    "lcm": Kind(
        "train_lcm_lora",
        "Distil the model into a LoRA with which it draws in 4 steps.",
        "file",
        (1000, 4, 1e-4),
        ("rank", "target_ema"),
        _save_lora,
        ("kohya", "diffusers"),
    ),
    "embedding": Kind(
        "train_textual_inversion",
        "Train what a new word means (textual inversion), and write it as a file that other tools load too.",
        "file",
        (3000, 1, 5e-4),
        ("word", "initial_word", "vectors"),
        lambda model, trainer, path, format: trainer.save_textual_inversion(path, format),
        ("diffusers", "webui"),
    ),
    "controlnet": Kind(
        "train_controlnet",
        "Train a ControlNet, and write it as a folder in diffusers layout.",
        "folder",
        (6000, 4, 1e-5),
        ("condition_folder",),
        lambda model, trainer, path, format: trainer.save_controlnet(path),
    ),
    "full": Kind(
        "train_diffusion_model",
        "Train every weight of the diffusion model, and write the model as `convert` does.",
        "either",
        (800, 1, 1e-5),
        MODEL,
        _save_model,
    ),
    "dreambooth": Kind(
        "train_diffusion_model",
        "Train every weight of the diffusion model on one thing, and images of its class that the model draws.",
        "either",
        (800, 1, 5e-6),
        (*MODEL, "class_caption", "class_folder", "class_images"),
        _save_model,
    ),
}


def add_arguments(command):
    """Adds a command for each kind to the command `train`."""
    commands = command.add_subparsers(title="kinds", metavar="kind", required=True)
    for name, kind in KINDS.items():
        command = commands.add_parser(name, help=kind.description, description=kind.description)
        command.set_defaults(run=train, kind=kind, refuse=command.error)
        add = command.add_argument
        place = {"file": "a new .safetensors file", "folder": "a new folder"}
        place = place.get(kind.output, "a new folder, or a new .safetensors file")
        add("folder", type=Path, metavar="FOLDER", help="images, each with a caption in a .txt file beside it")
        add("--output", type=Path, metavar="OUT", required=True, help=place)
        add("--preset", default="emoji", help=f"{PRESETS} (default: emoji)")
        add("--dtype", choices=DTYPES, metavar="DTYPE", help=f"{', '.join(DTYPES)} (default: float32)")
        if kind.formats:
            add("--format", choices=kind.formats, default=kind.formats[0], help=f"(default: {kind.formats[0]})")
        defaults = dict(zip(("steps", "batch_size", "learning_rate"), kind.defaults, strict=True))
        for option in (*COMMON, *kind.options):
            given = {"help": f"(default: {defaults.get(option)})", "default": None, **OPTIONS[option]}
            add(f"--{option.replace('_', '-')}", **given)


def train(options):
    """Train a model on a folder of images."""
    from keras_diffusion.checkpoints import presets
    from keras_diffusion.checkpoints.layouts import files

    kind, path = options.kind, options.output
    single = path.suffix.lower() == ".safetensors"
    if kind.output != "either" and single != (kind.output == "file"):
        must = "end in .safetensors" if kind.output == "file" else "be a folder"
        options.refuse(f"`--output` must {must}. Received: --output={str(path)!r:.200}")
    presets.find(options.preset)
    files.require_vacant(path, folder=not single)
    show(f"loading {options.preset}")
    model = load(dtype=options.dtype, preset=options.preset)
    show("")
    given = {name: getattr(options, name) for name in (*COMMON, *kind.options)}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        trainer, failure = getattr(model, kind.method)(options.folder, **given), None
    except NumericalError as error:
        trainer, failure = error.trainer, error
    if trainer:
        kind.save(model, trainer, path, getattr(options, "format", None))
        print(path)
    if failure:
        raise failure
