"""Trains a LoRA on a folder of images."""

from keras_diffusion.cli.model import load
from keras_diffusion.terminal import show


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
