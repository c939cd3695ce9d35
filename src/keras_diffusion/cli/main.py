"""The command line: `keras-diffusion generate`, `upscale`, `batch`, `serve`, `train`, `convert`, `export` and `info`.

Keras takes seconds to import, so it waits until the command makes sense.
"""

import argparse
import sys

from keras_diffusion import __version__
from keras_diffusion.cli import batch, convert, export, generate, generate_arguments, info, serve, train, upscale
from keras_diffusion.errors import NumericalError
from keras_diffusion.terminal import show

COMMANDS = (  # the module that adds the arguments, the function that runs, and what it does
    (generate_arguments, generate.generate, "draw images of a prompt"),
    (upscale, upscale.upscale, "enlarge images"),
    (batch, batch.batch, "draw many jobs, and go on after a stop"),
    (serve, serve.serve, "serve images over HTTP"),
    (train, train.train, "teach a model your images"),
    (convert, convert.convert, "write a model in another form"),
    (export, export.export, "write a model for another runtime"),
    (info, info.info, "describe the installation, a model or an image"),
)
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
    for module, run, summary in COMMANDS:
        command = commands.add_parser(run.__name__, help=summary, description=run.__doc__)
        command.set_defaults(run=run, refuse=command.error)
        module.add_arguments(command)
    return root
