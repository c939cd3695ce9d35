"""Finds the files of LoRAs by name in a folder. A name is compared with those of files; it never becomes a path."""

from difflib import get_close_matches
from pathlib import Path

SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin")  # in the order of preference


def find(folder, name):
    """Finds the file of a LoRA.

    Args:
        folder: A folder, in whose folders it may lie as well, or None.
        name: What the file is called without its suffix.

    Returns:
        A `Path`.

    Raises:
        ValueError: If there is no folder, no such file, or more than one.
    """
    if folder is None or not Path(folder).is_dir():
        raise ValueError(
            "A prompt can name LoRAs that are loaded, and those in the folder `lora_folder` of the model; load it with "
            "`load_lora`, or set `model.lora_folder` (--lora-folder). "
            f"Received: name={name!r:.200}, lora_folder={folder!r:.200}"
        )
    files = [path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    named = sorted((path for path in files if path.stem == name), key=lambda path: SUFFIXES.index(path.suffix.lower()))
    if not named:
        nearest = get_close_matches(name, [path.stem for path in files]) or [path.stem for path in files][:10]
        raise ValueError(
            f"There is no such LoRA in {folder}; there are {', '.join(nearest) or 'none'}. Received: name={name!r:.200}"
        )
    if len({path.parent for path in named}) > 1:
        raise ValueError(f"Several LoRAs are called so: {', '.join(map(str, named))}. Received: name={name!r:.200}")
    return named[0]
