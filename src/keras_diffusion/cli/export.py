"""Writes a model in the format of another runtime."""

import os
import sys
from pathlib import Path

from keras_diffusion.cli.model import PRESETS, load
from keras_diffusion.exporting.formats import DTYPES, FORMATS
from keras_diffusion.terminal import show


def export(options):
    """Write a model for another runtime, which needs neither this library nor Keras."""
    from keras_diffusion.checkpoints import presets
    from keras_diffusion.system.paths import require_vacant

    presets.find(options.preset)
    require_vacant(options.folder, folder=True)
    backend = FORMATS[options.format].backend
    if backend and "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = backend
    show(f"loading {options.preset}")
    model = load(options.height, options.width, dtype="float32", preset=options.preset)
    show(f"writing {options.folder}")
    model.export(options.folder, options.format, options.dtype)
    show("")
    print(options.folder)


def add_arguments(command):
    add = command.add_argument
    add("preset", metavar="IN", help=PRESETS)
    add("folder", type=Path, metavar="OUT", help="a new folder")
    add("--format", choices=FORMATS, default=next(iter(FORMATS)), help=f"default: {next(iter(FORMATS))}")
    add("--dtype", choices=DTYPES, default=DTYPES[0], help=f"how weights are stored (default: {DTYPES[0]})")
    add("--height", type=int, help="of images in pixels, for formats of one size (default: the model's)")
    add("--width", type=int, help="likewise, the width")
