"""Finds where models come from: built-in names in weights/manifest.json, and `hf://owner/repository[@revision]`."""

import json
import re
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[2]
# A wheel has the weights in the package; a checkout, which an editable install imports, at its root.
FOLDERS = (PACKAGE / "weights", PACKAGE.parents[1] / "weights")
FOLDER = next(folder for folder in FOLDERS if (folder / "manifest.json").is_file())
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))  # name → where it comes from
BUNDLED = [name for name, entry in MANIFEST.items() if not entry]
HUB = "hf://"
WORD = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
REVISION = rf"{WORD}(?:/{WORD}){{0,4}}"  # a commit, a tag, a branch or refs/pr/1
URI = re.compile(rf"{HUB}(?P<repository>{WORD}/{WORD})(?:@(?P<revision>{REVISION}))?")


class Source(NamedTuple):
    """Describes where a model is published.

    Attributes:
        name: What people call it: a built-in name or a URI.
        repository: "owner/name" on huggingface.co.
        revision: A commit, a tag or a branch.
        licence: The name of its licence, "" where it is unknown.
        files: For built-in models a dict, file → {"sha256": …, "bytes": …}. It is empty where the hashes are not known.
    """

    name: str
    repository: str
    revision: str
    licence: str
    files: dict

    @property
    def page(self):
        return f"https://huggingface.co/{self.repository}"


def source(name):
    """Finds where a model comes from.

    Args:
        name: Anything.

    Returns:
        A `Source`, or None if `name` is neither a built-in name nor begins with "hf://".

    Raises:
        ValueError: If it begins with "hf://" and goes on as no name does.
    """
    if not isinstance(name, str):
        return None
    if MANIFEST.get(name):
        return Source(name, **MANIFEST[name])
    if not name.startswith(HUB):
        return None
    match = URI.fullmatch(name)
    if not match or ".." in name or "--" in match["repository"]:
        raise ValueError(
            "A model on huggingface.co is written hf://owner/repository or hf://owner/repository@revision, in letters, "
            f"digits, '-', '_' and '.'. Received: preset={name!r:.200}"
        )
    return Source(name, match["repository"], match["revision"] or "main", "", {})
