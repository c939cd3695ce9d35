"""Fetches from huggingface.co with the package huggingface_hub, which is imported only then."""

import logging
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from keras_diffusion.checkpoints.download.https import REFUSALS
from keras_diffusion.checkpoints.layouts import files
from keras_diffusion.errors import DownloadError, NoSpaceError, OfflineError, UnsafeCheckpointError
from keras_diffusion.system.paths import FULL

INDEX = "model_index.json"
PATIENCE = 10  # seconds for the first answer
H5 = re.compile(r"\w[\w.-]*\.h5", re.ASCII)
SHARD = re.compile(r"\w[\w.-]*\.(safetensors|bin)", re.ASCII)
STEMS = (  # what the weights of a part are called, in the order of preference; {} is the variant
    (files.WEIGHTS, ("{}.safetensors", ".safetensors.index{}.json")),
    (files.WEIGHTS | dict.fromkeys(files.TOKENIZERS, "pytorch_model"), ("{}.bin", ".bin.index{}.json")),
)

log = logging.getLogger(__name__)


def installed():
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        return False
    return True


def read_file(model, file, size, path):
    """Brings one file of a model to a new file, as `download.read_file` does."""
    from huggingface_hub import HfApi, hf_hub_download

    with explained(model):  # without a server this fails at once, where a download tries again for 23 seconds
        HfApi().model_info(model.repository, revision=model.revision, timeout=PATIENCE)
    folder = tempfile.mkdtemp(prefix=f"{path.name}.", dir=path.parent)
    try:
        with explained(model):
            brought = hf_hub_download(model.repository, file, revision=model.revision, local_dir=folder)
        os.replace(brought, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def snapshot(model, offline):
    """Brings what is needed of a repository into the cache of huggingface_hub.

    Args:
        model: A `Source`.
        offline: Whether to take only what is there.

    Returns:
        The folder, a `Path`.

    Raises:
        ImportError: If huggingface_hub is not installed.
        OfflineError: If there is nothing and `offline` is set or huggingface.co cannot be reached.
        UnsafeCheckpointError: If an index of weights lists anything but names of files beside it.
        DownloadError: If the repository is gone, gated, private or holds no such model, or the connection fails.
    """
    if not installed():
        raise ImportError(
            "Models on huggingface.co need huggingface_hub: pip install 'keras-diffusion[hub]'. "
            f"Received: preset={model.name!r}"
        )
    from huggingface_hub import HfApi, snapshot_download

    def bring(wanted, revision, offline=False):
        options = {"revision": revision, "allow_patterns": sorted(wanted), "local_files_only": offline}
        return Path(snapshot_download(model.repository, **options))

    with explained(model):
        try:
            info = None if offline else HfApi().model_info(model.repository, revision=model.revision, timeout=PATIENCE)
        except Exception as error:
            if status(error):
                raise
            log.warning("huggingface.co cannot be reached (%s); looking for what is at hand", type(error).__name__)
            info = None
        if info is None:
            return bring([INDEX], model.revision, offline=True)
        listed = {file.rfilename for file in info.siblings}
        wanted = needed(listed)
        if not wanted:
            raise DownloadError(
                "The repository holds no Stable Diffusion model in diffusers layout or as KerasCV's .h5 files, see "
                f"{model.page}. A single file can be fetched from there and given by its path. "
                f"Received: preset={model.name!r}"
            )
        folder = bring(wanted, model.revision)  # by this name it is found again without a network
        shards = {f"{name.partition('/')[0]}/{shard}" for name in wanted for shard in listed_shards(folder, name)}
        return bring(wanted | shards, info.sha) if shards else folder


def needed(listed):
    """The files of a repository that hold its model: one precision, safetensors before pickles, and never code."""
    if INDEX not in listed:
        return {name for name in listed if H5.fullmatch(name)}
    wanted = {name for names in files.CONFIGS.values() for name in names if name in listed}
    for part in files.WEIGHTS:
        candidates = (
            f"{part}/{stems[part]}{ending.format(variant)}"
            for stems, endings in STEMS
            for variant in files.VARIANTS
            for ending in endings
        )
        wanted.update(islice((name for name in candidates if name in listed), 1))
    return wanted


def listed_shards(folder, name):
    """The names that an index of weights lists, none for any other file."""
    if not re.search(r"\.index(\.\w+)?\.json$", name):
        return set()
    shards = files.read_json(folder / name).get("weight_map")
    shards = set(map(str, shards.values())) if isinstance(shards, dict) else set()
    if wrong := sorted(shard for shard in shards if not SHARD.fullmatch(shard)):
        raise UnsafeCheckpointError(f"{name} may only list names of files beside it. Received: {wrong[0]!r:.200}")
    return shards


def status(error):
    """The status that a server answered with, which may be the cause of the cause; None where no server answered."""
    while error and getattr(error, "response", None) is None:
        error = error.__cause__
    return error and getattr(error.response, "status_code", None)


@contextmanager
def explained(model):
    """Turns the errors of huggingface_hub, and of what it reads with, into ours."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        yield
    except (DownloadError, ValueError, TypeError):
        raise
    except Exception as error:
        if isinstance(error, LocalEntryNotFoundError) and not status(error):
            raise OfflineError(
                f"{model.name!r} is not at hand, and huggingface.co is not or cannot be reached. It is at {model.page}"
            ) from error
        if getattr(error, "errno", None) in FULL:
            raise NoSpaceError("There is no room for the files; make some, or set HF_HOME to another disk.") from error
        problem = f"the connection failed ({type(error).__name__}); try again"
        if code := status(error):
            problem = REFUSALS.get(code, "the server answers {status}; try again").format(page=model.page, status=code)
        raise DownloadError(f"{model.name!r} cannot be fetched: {problem}.") from error
