"""Finds LoRAs, embeddings and ControlNets by name, each kind in its folder. A name never becomes a path."""

import re
from difflib import get_close_matches
from pathlib import Path

from keras_diffusion.checkpoints.adapters.lora_folder import SUFFIXES

CONTROLNETS = (".safetensors", ".pth", *SUFFIXES[1:])  # their suffixes, in the order of preference
CONFIG = "config.json"  # in the folder of a ControlNet of diffusers


class Adapters:
    """The files of three folders. They are listed anew each time, so that new files are found.

    Args:
        loras: The folder of the LoRAs, or None.
        embeddings: The folder of the embeddings (textual inversions), or None.
        controlnets: The folder of the ControlNets, which are files or folders of diffusers, or None.
    """

    def __init__(self, loras=None, embeddings=None, controlnets=None):
        self._loras, self._embeddings, self._controlnets = loras, embeddings, controlnets

    def loras(self):
        """Returns the paths of the LoRAs by name."""
        return _files(self._loras)

    def embeddings(self):
        """Returns the paths of the embeddings by name."""
        return _files(self._embeddings)

    def controlnets(self):
        """Returns the paths of the ControlNets by name."""
        configs = sorted(Path(self._controlnets).rglob(CONFIG)) if self._controlnets else ()
        folders = {path.parent.name: path.parent for path in configs}
        files = _files(self._controlnets, CONTROLNETS)
        return {name: path for name, path in files.items() if path.parent not in folders.values()} | folders

    def require(self, names, kind="LoRA"):
        """Raises a ValueError if there is no LoRA, or no ControlNet, of one of these names."""
        known = self.loras() if kind == "LoRA" else self.controlnets()
        for name in names:
            if name not in known:
                near = get_close_matches(name, known) or [*known][:10]
                raise ValueError(
                    f"There is no such {kind}; there are {', '.join(near) or 'none'}. Received: {name!r:.200}"
                )

    def embeddings_in(self, *prompts):
        """Returns the paths of the embeddings whose names are words of prompts, by name."""
        text = " ".join(prompts)
        return {
            name: path
            for name, path in self.embeddings().items()
            if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE)
        }


def _files(folder, suffixes=SUFFIXES):
    """Paths by name; among files of one name and folder the safest format, none where two folders have the name."""
    found = {}
    for path in sorted(Path(folder).rglob("*")) if folder else ():
        if path.suffix.lower() in suffixes and path.is_file():
            found.setdefault(path.stem, []).append(path)
    return {
        name: min(paths, key=lambda path: suffixes.index(path.suffix.lower()))
        for name, paths in found.items()
        if len({path.parent for path in paths}) == 1
    }
