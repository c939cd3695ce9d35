"""Reads one part of a model, such as a VAE, from files of its own or of another model."""

import os
from functools import cached_property
from pathlib import Path

from keras_diffusion.checkpoints.formats import tensor_index
from keras_diffusion.checkpoints.layouts import diffusers_folder, ldm
from keras_diffusion.checkpoints.layouts.diffusers_configs import from_diffusers, to_diffusers
from keras_diffusion.checkpoints.layouts.files import WEIGHTS, read_json, weights
from keras_diffusion.checkpoints.mapping.loading import Part, load, targets, warn_of_unused
from keras_diffusion.checkpoints.mapping.names import LDM_PREFIXES, NETWORKS, rows
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError

PARTS = {"vae": "vae", "text_encoder": "text_encoder", "diffusion_model": "unet"}  # that can be given on their own


def read_scheduler(scheduler, prediction_type):
    """Reads a scheduler that is given on its own.

    Args:
        scheduler: The contents of a scheduler_config.json, a dict; or the path of one, of its folder, or of that of a
            whole model.
        prediction_type: What the diffusion model predicts, unless the file says so.

    Returns:
        A dict.

    Raises:
        TypeError: If it is anything else.
        CorruptCheckpointError: If there is no such file, or it is damaged.
    """
    if isinstance(scheduler, dict):
        return {"prediction_type": prediction_type, **scheduler}
    if not isinstance(scheduler, str | os.PathLike):
        raise TypeError(
            "`scheduler` must be the contents of a scheduler_config.json or where it is; samplers are named in calls. "
            f"Received: scheduler={scheduler!r:.200}"
        )
    folder, name = Path(scheduler), "scheduler_config.json"
    path = next((path for path in (folder / "scheduler" / name, folder / name, folder) if path.is_file()), None)
    if path is None:
        raise CorruptCheckpointError(f"There is no {name}. Received: scheduler={str(scheduler)!r:.200}")
    return {"prediction_type": prediction_type, **read_json(path)}


class PartFiles:
    """A part of a model.

    Args:
        name: One of `PARTS`.
        path: A folder as `save_pretrained` of diffusers writes it, of the part or of a whole model; or a file,
            safetensors, GGUF or a pickle, with the names of diffusers or of the original (LDM) layout, of the part or
            of a whole model.

    Raises:
        TypeError: If `path` is neither a str nor a path.
        CorruptCheckpointError: If there is nothing, or config.json is damaged.
    """

    def __init__(self, name, path):
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"`{name}` must be a folder or a file. Received: {name}={path!r:.200}")
        if not os.path.exists(path):
            raise CorruptCheckpointError(f"There is no such folder or file. Received: {name}={str(path)!r:.200}")
        self.name, self.part, self.path = name, PARTS[name], Path(path)
        if (self.path / self.part / "config.json").is_file():
            self.path = self.path / self.part
        config = self.path / "config.json"
        self._config = read_json(config) if config.is_file() else None

    def architecture(self, architecture):
        """Returns an `Architecture` with this part in place of its own; without a config.json, the same one.

        Raises:
            CheckpointMismatchError: If the part does not fit to the rest.
        """
        if self._config is None:
            return architecture
        if self._config.get("_class_name") == "AutoencoderTiny":
            raise CheckpointMismatchError(
                f"A tiny autoencoder (TAESD) is loaded beside the model's own, by load_tiny_vae. "
                f"Received: {self.name}={str(self.path)!r:.200}"
            )
        changed = from_diffusers(to_diffusers(architecture) | {self.part: self._config})
        given, needed = changed.autoencoder.latent_channels, changed.diffusion_model.out_channels
        if given != needed:
            problem = f"latent channels: {given}, not {needed}"
            raise CheckpointMismatchError(
                f"`{self.name}` does not fit the rest of the model: {problem}. Give one that was made for it. "
                f"Received: {self.name}={str(self.path)!r:.200}",
                mismatched=[problem],
            )
        return changed

    def load(self, **networks):
        """Fills networks of this part: all of them or, on an error, none.

        Raises:
            CheckpointMismatchError: If anything does not fit: every tensor is named.
            CorruptCheckpointError: If a file is missing or damaged.
            UnsafeCheckpointError: If a file is a pickle that asks for more than values.
        """
        architecture = next(iter(networks.values())).architecture
        table = [row for name, (part, _) in NETWORKS.items() if part == self.part for row in rows(name, architecture)]
        diffusers, original = {row.diffusers for row in table}, {row.ldm for row in table}
        as_ldm = len(self._original.keys() & original) > len(self._diffusers.keys() & diffusers)
        tensors, names = (self._original, original) if as_ldm else (self._diffusers, diffusers)
        inside = ldm.INSIDE if as_ldm else diffusers_folder.INSIDE[self.part]
        known = names | set(filter(ldm.LEFTOVERS.fullmatch, tensors)) | diffusers_folder.LEFTOVERS
        known |= warn_of_unused(self.path, tensors, inside, known)
        wanted = [x for name, network in networks.items() for x in targets(network, rows(name, architecture), as_ldm)]
        load([Part(self.part, tensors, wanted, known)])

    @cached_property
    def _tensors(self):
        paths = weights(self.path, WEIGHTS[self.part]) if self.path.is_dir() else [self.path]
        return {name: tensor for path in paths for name, tensor in tensor_index.index(path).items()}

    @cached_property
    def _diffusers(self):
        """The tensors by their names in diffusers, if they have such."""
        return {diffusers_folder.canonical(name): tensor for name, tensor in self._tensors.items()}

    @cached_property
    def _original(self):
        """The tensors by their names in the original layout, if they have such; of a whole model, those of the part."""
        prefix = LDM_PREFIXES[self.part]
        whole = {name: tensor for name, tensor in self._tensors.items() if name.startswith(prefix)}
        return ldm.canonical(whole or {prefix + name: tensor for name, tensor in self._tensors.items()})
