"""Fetches models, once they are asked for: built-in ones, verified, and those on huggingface.co.

A file has its final name only when it is complete, verified and on the disk. No lock is needed for that: every process
writes a file of its own, and whichever is ready last renames the same content over the same content.
"""

import hashlib
import logging
import os
import re
import shutil
import sys
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from keras_diffusion.checkpoints.download import https, hub
from keras_diffusion.checkpoints.download.sources import MANIFEST, source
from keras_diffusion.errors import DownloadError, IntegrityError, NoSpaceError, OfflineError
from keras_diffusion.system.paths import beside, is_full, sweep

SERVER = "https://huggingface.co"
ENDPOINT = "HF_ENDPOINT"
HOME = "KERAS_DIFFUSION_HOME"
OFFLINE = ("KERAS_DIFFUSION_OFFLINE", "HF_HUB_OFFLINE")
OFF = {"", "0", "false", "no", "off"}
CACHES = {"win32": ("LOCALAPPDATA", "~/AppData/Local"), "darwin": ("", "~/Library/Caches")}  # else XDG's
SLACK = 64 << 20  # bytes to leave free

log = logging.getLogger(__name__)


def fetch(name, offline=None, read=None):
    """Fetches a model, unless it is at hand.

    Built-in models come from a pinned revision and are compared with the hashes of weights/manifest.json; they are
    kept in KERAS_DIFFUSION_HOME or else in the user's cache folder. Other models on huggingface.co need the package
    huggingface_hub, which keeps them in its own cache.

    Args:
        name: A built-in name ("sd15"), or "hf://owner/repository", optionally followed by "@revision".
        offline: Whether to do without the network; None looks for KERAS_DIFFUSION_OFFLINE and HF_HUB_OFFLINE.
        read: What brings a file of a built-in model, see `read_file`; None takes huggingface_hub where it is installed.

    Returns:
        A `Path`: the folder of the model, or its file if it is a single one.

    Raises:
        ValueError: If `name` is neither of the two.
        ImportError: If huggingface_hub is needed and absent.
        OfflineError: If the model is not at hand and the network may not be used, or none of its hashes is known.
        NoSpaceError: If there is no room for it.
        IntegrityError: If what came is not what it should be.
        DownloadError: If it is gone, gated or private, the connection fails, or the cache cannot be written.
    """
    model = source(name)
    if model is None:
        raise ValueError(f"A model to fetch is a built-in name or hf://owner/repository. Received: {name!r:.200}")
    if offline is None:
        offline = any(os.environ.get(variable, "").lower() not in OFF for variable in OFFLINE)
    if model.files:
        return built_in(model, offline, read)
    if name in MANIFEST:
        raise OfflineError(
            f"{name!r} has no verified files yet, so nothing is fetched by that name. Ask for its repository "
            f"({model.licence}): StableDiffusion.from_preset('hf://{model.repository}@{model.revision}')"
        )
    if not offline:
        notice(model.name, model.licence, model.page)
    return hub.snapshot(model, offline)


def built_in(model, offline, read):
    """The files of a built-in model, fetched where they are missing."""
    folder = home() / model.name / model.revision
    wanted = {file: entry for file, entry in model.files.items() if not at_hand(folder / file, entry)}
    size = sum(entry["bytes"] for entry in wanted.values())
    if wanted and offline:
        raise OfflineError(
            f"The weights of {model.name!r} are not at hand, and nothing is downloaded unasked or where "
            f"{' or '.join(OFFLINE)} is set. StableDiffusion.from_preset({model.name!r}) downloads {size / 1e9:.2f} GB "
            f"(licence: {model.licence}); or copy {', '.join(wanted)} from {model.page} to {folder}"
        )
    notice(model.name, model.licence, model.page)
    if wanted:
        log.warning("Downloading %.2f GB of %r to %s", size / 1e9, model.name, folder)
    with explained(folder):
        for file, entry in wanted.items():
            fetch_file(model, file, entry, folder / file, read or (hub.read_file if hub.installed() else read_file))
    return folder if len(model.files) > 1 else folder / next(iter(model.files))


def fetch_file(model, file, entry, path, read):
    """Brings one file to `path`: from one moment to the next, it is there and verified."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    if (free := shutil.disk_usage(path.parent).free) < entry["bytes"] + SLACK:
        raise NoSpaceError(
            f"{file} has {entry['bytes']:,} bytes, and {path.parent} has room for {free:,}. Make room, or set "
            f"{HOME} to a folder on another disk."
        )
    part, kept = beside(path), path.with_name(f".{path.name}.unfinished")
    if kept.is_file():
        with suppress(FileNotFoundError):  # another process was faster
            os.replace(kept, part)
    try:
        read(model, file, entry["bytes"], part)
        with open(part, "rb+") as content:
            verify(content, file, entry)
            os.fsync(content.fileno())
        os.replace(part, path)
    except PermissionError:
        if not at_hand(path, entry):  # on Windows, another process may have brought and opened it
            raise
    except IntegrityError:
        raise
    except (DownloadError, KeyboardInterrupt):
        if part.is_file() and 0 < part.stat().st_size < entry["bytes"]:
            os.replace(part, kept)
            log.warning("What came of %s is kept; the next download goes on from there", file)
        raise
    finally:
        part.unlink(missing_ok=True)


def read_file(model, file, size, path, **options):
    """Reads one file of a model, without further packages.

    Args:
        model: A `Source`.
        file: The name of the file in its repository.
        size: Its size in bytes.
        path: The file to write, or to go on with.
        **options: `request` and `sleep` of `https.read`.
    """
    url = f"{server()}/{model.repository}/resolve/{model.revision}/{file}"
    with open(path, "ab") as content, progress_bar(file, size) as progress:
        https.read(url, content, size, model.page, token=token(), progress=progress, **options)


def verify(content, file, entry):
    """Refuses a file that is not the one in the manifest."""
    size, sha256 = os.fstat(content.fileno()).st_size, hashlib.file_digest(content, "sha256").hexdigest()
    if (size, sha256) != (entry["bytes"], entry["sha256"]):
        raise IntegrityError(
            f"{file} is not what was published, and was thrown away: it should have {entry['bytes']:,} bytes and the "
            f"sha256 {entry['sha256']}. Try again. Received: {size:,} bytes, {sha256}"
        )


def at_hand(path, entry):
    return path.is_file() and path.stat().st_size == entry["bytes"]


def home():
    """The folder that models are kept in."""
    if chosen := os.environ.get(HOME):
        return Path(chosen).expanduser()
    variable, usual = CACHES.get(sys.platform, ("XDG_CACHE_HOME", "~/.cache"))
    return Path(os.environ.get(variable) or usual).expanduser() / "keras-diffusion"


def server():
    """The address of huggingface.co, or of the mirror that is named in HF_ENDPOINT."""
    value = os.environ.get(ENDPOINT) or SERVER
    if not value.startswith("https://"):
        raise ValueError(f"{ENDPOINT} must begin with https://. Received: {ENDPOINT}={value!r:.200}")
    return value.rstrip("/")


def token():
    """The user's token for huggingface.co, "" if there is none."""
    value = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch(r"[!-~]*", value):
        raise ValueError("HF_TOKEN holds characters that no token has; set it again. Its value is not shown.")
    return value


@cache
def notice(name, licence, page):
    """Says once per process under what licence a model is."""
    log.warning("The weights of %r are under %s, see %s", name, licence or "a licence of their own", page)


@contextmanager
def explained(folder):
    """Turns what the file system says into what to do."""
    try:
        yield
    except DownloadError:
        raise
    except OSError as error:
        if is_full(error):
            raise NoSpaceError(f"There is no room left in {folder}. Make room, or set {HOME}.") from error
        raise DownloadError(
            f"The cache cannot be written: {error.strerror or type(error).__name__}. Set {HOME} to a folder that can. "
            f"Received: {str(folder)!r:.200}"
        ) from error


@contextmanager
def progress_bar(name, size):
    """Gives what shows how much of a file is there: on a terminal a bar, else nothing."""
    if not sys.stderr.isatty():
        yield lambda received: None
        return

    def show(received):
        share = received / size
        sys.stderr.write(f"\r\x1b[K{name} [{'#' * int(30 * share):30}] {share:4.0%} of {size / 1e9:.2f} GB")
        sys.stderr.flush()

    try:
        yield show
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
