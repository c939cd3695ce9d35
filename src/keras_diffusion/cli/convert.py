"""Writes a model in another form."""

from keras_diffusion.cli.model import load
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
