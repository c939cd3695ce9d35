"""Finds a model by its name or path. Names are looked up in a table and never become part of a path."""

import hashlib
import os
from functools import cache
from pathlib import Path

from keras_diffusion.checkpoints.download import fetch
from keras_diffusion.checkpoints.download.sources import BUNDLED, FOLDER, source
from keras_diffusion.checkpoints.layouts.files import CONFIGS, KERAS_CV, WEIGHTS, is_keras_cv, naming, parts, weights
from keras_diffusion.errors import CheckpointError, CheckpointMismatchError, OfflineError

INDEX = CONFIGS["model_index"][0]
H5_FILES = [names[-1] for names in KERAS_CV.values()]
PARTS = parts({})
EXPECTED = [CONFIGS[part][0] for part in PARTS] + [
    f"{part}/{stem}.safetensors" for part, stem in WEIGHTS.items() if part in PARTS
]


def read(name_or_path, prediction_type=None, ema=False, optional=()):
    """Reads all of a model but its weights. What it is, its content decides, and not how it is called.

    Args:
        name_or_path: A bundled name ("emoji"), a built-in name ("sd14"), "hf://owner/repository[@revision]", a folder
            in diffusers layout or of KerasCV's .h5 files, or a single file in the original (LDM) layout.
        prediction_type: What the diffusion model predicts, "epsilon", "v_prediction" or "sample"; None takes the
            checkpoint's word.
        ema: Whether to take moving averages in place of weights; only single files hold them, see `SingleFile`.
        optional: Parts that may be missing, because they are given otherwise: "vae", "text_encoder" or "scheduler".

    Returns:
        A `DiffusersFolder`, a `KerasCVFolder` or a `SingleFile`: all have `path`, `architecture`, `scheduler_config`,
        `tensors(part)` and `load(**networks)`.

    Raises:
        CheckpointError: If it is damaged, hostile or of another family, or has no moving averages and `ema` is set.
        TypeError, ValueError, DownloadError: If there is no such model, see `find`.
    """
    from keras_diffusion.checkpoints.layouts.diffusers_folder import DiffusersFolder  # these three import Keras
    from keras_diffusion.checkpoints.layouts.keras_files import KerasCVFolder
    from keras_diffusion.checkpoints.layouts.single_file import SingleFile

    path = find(name_or_path)
    if path.is_file():
        with naming(path):
            return SingleFile(path, prediction_type, ema, optional)
    if ema:
        raise CheckpointMismatchError(
            f"Only single files hold moving averages (EMA) beside their weights. Load the folder with ema=False. "
            f"Received: ema={ema!r:.200}, preset={str(name_or_path)!r:.200}"
        )
    with naming(path):
        if (path / INDEX).is_file():
            return DiffusersFolder(path, prediction_type, optional)
        return KerasCVFolder(path, prediction_type)


def find(name_or_path, may_download=False):
    """Finds a model, without looking into it.

    Args:
        name_or_path: See `read`.
        may_download: Whether a model that is not at hand may be downloaded.

    Returns:
        The folder or the file, a `Path`.

    Raises:
        TypeError: If it is neither a `str` nor a path.
        ValueError: If there is no such name, no such folder and no such file.
        OfflineError: If the name is known but the model is not at hand; the message says how to get it.
        DownloadError: If it cannot be downloaded, see `download.fetch`.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise TypeError(f"A preset is a name or a path. Received: preset={name_or_path!r:.200}")
    if name_or_path in BUNDLED:
        return _bundled(name_or_path)
    if source(name_or_path):
        return fetch.fetch(name_or_path, offline=None if may_download else True)
    path = Path(name_or_path)
    if os.path.exists(path) and (path.is_file() or (path / INDEX).is_file() or is_keras_cv(path)):
        return path
    found = f"a folder without {INDEX}" if os.path.isdir(path) else "neither a name nor a path"
    raise ValueError(
        f"There is no such model, this is {found}. Give a bundled name ({', '.join(BUNDLED)}), a single file in the "
        f"original (LDM) layout, a folder of KerasCV's .h5 files ({', '.join(H5_FILES)}), or one in diffusers layout, "
        f"which holds {', '.join(EXPECTED)}. "
        f"Received: preset={str(name_or_path)!r:.200}"
    )


@cache
def model_hash(name_or_path):
    """Returns the first ten digits of the SHA-256 of the diffusion model's file, None where it has none of its own."""
    digest = hashlib.sha256()
    try:
        for path in weights(find(name_or_path) / "unet", WEIGHTS["unet"]):
            with open(path, "rb") as file:
                hashlib.file_digest(file, lambda: digest)
    except CheckpointError:
        return None
    return digest.hexdigest()[:10]


def _bundled(name):
    path = FOLDER / name
    if not path.is_dir():
        raise OfflineError(f"This installation lacks its bundled model; install it again. Received: preset={name!r}")
    return path
