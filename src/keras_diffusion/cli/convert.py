"""Writes a model in another form."""

from pathlib import Path

from keras_diffusion.architectures import PREDICTION_TYPES
from keras_diffusion.cli.model import PRESETS, load
from keras_diffusion.terminal import show

STORED = ("float32", "float16", "bfloat16")  # how weights can be written
OTHER_FILES = (".bin", ".ckpt", ".h5", ".keras", ".pt", ".pth")  # which cannot be


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


def add_arguments(command):
    add = command.add_argument
    add("preset", metavar="IN", help=PRESETS)
    add("output", type=Path, metavar="OUT", help="a new folder, or a new .safetensors file in the original layout")
    add("--dtype", choices=STORED, default=STORED[0], help=f"how weights are stored (default: {STORED[0]})")
    add("--prediction-type", choices=PREDICTION_TYPES, help="what the model predicts (default: what IN says)")
    add("--ema", action="store_true", help="take the moving averages that a single file may hold beside its weights")
