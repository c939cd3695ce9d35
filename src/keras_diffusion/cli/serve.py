"""Serves images to programs and to a web page."""

import logging
import os
from pathlib import Path

from keras_diffusion.architectures import DTYPES
from keras_diffusion.cli.model import PRESETS

TOKEN = "KERAS_DIFFUSION_TOKEN"
ANY = ("0.0.0.0", "::")  # all addresses of the computer, and the name of none


def serve(options):
    """Serve images over HTTP: a web page, jobs, and the APIs of A1111 and of OpenAI."""
    try:
        from keras_diffusion.serving import server
    except ImportError as error:
        raise ImportError(
            f"The server needs packages that are not installed ({error.name}); install them with: "
            "pip install starlette uvicorn python-multipart"
        ) from error
    from keras_diffusion import arguments
    from keras_diffusion.checkpoints import presets
    from keras_diffusion.serving.adapters import Adapters
    from keras_diffusion.serving.calls import Limits
    from keras_diffusion.serving.models import Models
    from keras_diffusion.serving.security import LOCAL, Rules, host_name
    from keras_diffusion.serving.store import Store

    token = read_token(options)
    if host_name(options.host) not in LOCAL and not token:
        options.refuse(
            f"another --host than this computer needs a token: set {TOKEN} or give --token-file. "
            f"Received: --host {options.host}"
        )
    given = options.preset or ["emoji"]
    paths = {name_of(preset): presets.find(preset).resolve() for preset in given}
    if len(paths) < len(given):
        raise ValueError(f"Each --preset must have a name of its own. Received: {', '.join(map(name_of, given))}")
    folders = options.loras, options.embeddings, options.controlnets
    folders = [folder and folder.resolve() for folder in folders]
    if options.tiny_vae and not options.tiny_vae.exists():
        raise ValueError(f"There is no such file or folder. Received: --tiny-vae {str(options.tiny_vae)!r:.200}")
    for folder in filter(None, folders):
        if not folder.is_dir():
            raise ValueError(f"There is no such folder. Received: {str(folder)!r:.200}")
    jobs = (options.jobs or default_folder()).resolve()
    given = {name: getattr(options, name) for name in LIMITS if getattr(options, name) is not None}
    for name, value in {**given, "keep": options.keep}.items():
        arguments.whole_number(f"--{name.replace('_', '-')}", value, 1, 2**31)
    name = None if options.host in ANY else host_name(options.host)
    hosts = LOCAL | {host_name(host) for host in (name, *options.allow_host) if host}
    rules = Rules(frozenset(hosts), frozenset(options.allow_origin), token)
    adapters = Adapters(*folders)
    store = Store(jobs, options.keep)
    listener = server.bind(options.host, options.port)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=[server.log_handler()])
    print(f"http://{name or 'localhost'}:{listener.getsockname()[1]}", flush=True)
    tiny_vae = options.tiny_vae and options.tiny_vae.resolve()
    models = Models(paths, adapters, options.dtype, options.jit_compile, tiny_vae)
    secret = [jobs, *folders, tiny_vae, *paths.values()]
    server.serve(listener, store, models, adapters, Limits(**given), rules, next(iter(paths)), secret)


LIMITS = ("max_pixels", "max_steps", "max_batch", "max_queue")


def name_of(preset):
    """Returns what clients call a preset: its name, or that of its file or folder."""
    return Path(preset).stem if preset.endswith((".safetensors", ".ckpt")) else preset.rstrip("/").rpartition("/")[2]


def default_folder():
    """Returns the folder of the jobs where none is named."""
    from keras_diffusion.checkpoints.download.fetch import home

    return home() / "jobs"


def read_token(options):
    """Returns the token, or None."""
    if options.token_file:
        token = options.token_file.read_text(encoding="utf-8").strip()
    else:
        token = os.environ.get(TOKEN, "").strip()
    if (token or options.token_file) and not (token.isascii() and token.isprintable() and len(token) >= 16):
        options.refuse("the token must have at least 16 letters, digits or signs of ASCII")
    return token or None


def add_arguments(command):
    add = command.add_argument
    add("--preset", action="append", help=f"{PRESETS}; may be repeated, the first is the default (default: emoji)")
    add("--port", type=int, default=7860, help="(default: 7860; 0 takes a free one)")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: 127.0.0.1, this computer)")
    add("--token-file", type=Path, metavar="FILE", help="the token that clients must show (or KERAS_DIFFUSION_TOKEN)")
    add("--allow-host", action="append", default=[], metavar="NAME", help="another name that the server is known by")
    add("--allow-origin", action="append", default=[], metavar="ORIGIN", help="a web page that may use the server")
    add("--jobs", type=Path, metavar="FOLDER", help="where to keep jobs and images (default: in the user's cache)")
    add("--keep", type=int, default=10_000, metavar="N", help="how many finished jobs to keep (default: 10000)")
    add("--loras", type=Path, metavar="FOLDER", help="the LoRAs that clients may name")
    add("--embeddings", type=Path, metavar="FOLDER", help="the textual inversions that prompts may name")
    add("--controlnets", type=Path, metavar="FOLDER", help="the ControlNets that clients may name")
    add("--tiny-vae", type=Path, metavar="FILE", help="a tiny autoencoder (TAESD) that draws previews")
    for limit in LIMITS:
        add(f"--{limit.replace('_', '-')}", type=int, metavar="N", help="a limit, see docs/serving.md")
    add("--dtype", choices=DTYPES, metavar="DTYPE", help=f"{', '.join(DTYPES)} (default: float32)")
    add("--jit-compile", action="store_const", const=True, default="auto", help="compile for longer, to run faster")
