"""Finds a model by its name or path. Names are looked up in a table and never become part of a path."""

import json
import os
from pathlib import Path

from keras_diffusion.checkpoints.files import CONFIGS, WEIGHTS
from keras_diffusion.errors import OfflineError

FOLDER = Path(__file__).parents[1] / "weights"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))  # name → where it comes from
BUNDLED = [name for name, entry in MANIFEST.items() if not entry]
EXPECTED = [names[0] for names in CONFIGS.values()] + [f"{part}/{stem}.safetensors" for part, stem in WEIGHTS.items()]


def read(name_or_path, prediction_type=None):
    """Reads all of a model but its weights. Whether a file is safetensors or a pickle, its content decides.

    Args:
        name_or_path: A bundled name ("emoji"), a built-in name ("sd14"), a folder in diffusers layout, or a single file
            in the original (LDM) layout.
        prediction_type: What the diffusion model predicts, "epsilon", "v_prediction" or "sample"; None takes the
            checkpoint's word.

    Returns:
        A `DiffusersFolder` or a `SingleFile`: both have `path`, `architecture`, `scheduler_config`, `tensors(part)` and
        `load(**networks)`.

    Raises:
        CheckpointError: If it is damaged, hostile or of another family.
        TypeError, ValueError, OfflineError: If there is no such model, see `find`.
    """
    from keras_diffusion.checkpoints.folder import DiffusersFolder  # these two import Keras
    from keras_diffusion.checkpoints.single_file import SingleFile

    path = find(name_or_path)
    return (DiffusersFolder if path.is_dir() else SingleFile)(path, prediction_type)


def find(name_or_path):
    """Finds a model, without looking into it.

    Args:
        name_or_path: See `read`.

    Returns:
        The folder or the file, a `Path`.

    Raises:
        TypeError: If it is neither a `str` nor a path.
        ValueError: If there is no such name, no such folder and no such file.
        OfflineError: If the name is known but the model is not at hand; the message says how to get it.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise TypeError(f"A preset is a name or a path. Received: preset={name_or_path!r:.200}")
    if name_or_path in MANIFEST:
        return _known(name_or_path)
    if os.path.isfile(os.path.join(name_or_path, "model_index.json")) or os.path.isfile(name_or_path):
        return Path(name_or_path)
    found = "a folder without model_index.json" if os.path.isdir(name_or_path) else "neither a name nor a path"
    raise ValueError(
        f"There is no such model, this is {found}. Give a bundled name ({', '.join(BUNDLED)}), a single file in the "
        f"original (LDM) layout, or a folder in diffusers layout, which holds {', '.join(EXPECTED)}. "
        f"Received: preset={str(name_or_path)!r:.200}"
    )


def _known(name):
    path = FOLDER / name
    if path.is_dir():
        return path
    if name in BUNDLED:
        raise OfflineError(f"This installation lacks its bundled model; install it again. Received: preset={name!r}")
    repository, licence = MANIFEST[name]["repository"], MANIFEST[name]["licence"]
    folder = repository.partition("/")[2]
    raise OfflineError(
        f"The weights of {name!r} are not at hand, and nothing is downloaded unasked. Get them (licence: {licence}) by"
        f"\n  hf download {repository} --local-dir {folder} --include {' '.join(EXPECTED)}"
        f"\nand give that folder: preset={folder!r}. Bundled models: {', '.join(BUNDLED)}. Received: preset={name!r}"
    )
