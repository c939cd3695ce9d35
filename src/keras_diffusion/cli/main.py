"""The command line: `keras-diffusion generate`, `train`, `convert` and `info`.

Keras takes seconds to import, so it waits until the command makes sense.
"""

import argparse
import sys
from pathlib import Path

from keras_diffusion import __version__
from keras_diffusion.architectures import DTYPES, PREDICTION_TYPES
from keras_diffusion.cli.convert import STORED, convert
from keras_diffusion.cli.generate import generate
from keras_diffusion.cli.info import info
from keras_diffusion.cli.train import add_kinds, train
from keras_diffusion.errors import NumericalError
from keras_diffusion.terminal import show

PRESETS = "emoji, a folder of diffusers or of KerasCV's .h5 files, a single file, or a model downloaded before"
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
    add_kinds(command, PRESETS)
    return root
