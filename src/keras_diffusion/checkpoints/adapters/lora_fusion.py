"""Fuses LoRAs into the weights of networks, and takes them out without a trace."""

import math
from pathlib import Path

import numpy as np
from keras import ops

from keras_diffusion import arguments
from keras_diffusion.checkpoints.adapters import lora_file
from keras_diffusion.checkpoints.mapping.loading import LIMITS
from keras_diffusion.errors import CheckpointMismatchError


class Loras:
    """The LoRAs in the networks of a model.

    The values of every variable that one of them changes are kept as they were, once: each change starts from those.

    Attributes:
        networks: The networks that the LoRAs are in, by name.
        scales: The scale of each LoRA, by name.
    """

    def __init__(self):
        self.networks = {}
        self._loaded = {}  # name → (scale, changes by layer)
        self._originals = {}  # changed layer → the values of its variable before

    @property
    def scales(self):
        return {name: scale for name, (scale, _) in self._loaded.items()}

    def load(self, path, scale, name, **networks):
        """Fuses a file into networks; see `StableDiffusion.load_lora`."""
        scale = arguments.number("scale", scale)
        name = Path(path).stem if name is None else name
        if not isinstance(name, str):
            raise TypeError(f"`name` must be a str. Received: name={name!r:.200}")
        if name in self._loaded:
            raise ValueError(f"A LoRA of this name is loaded; unload it or give another name. Received: {name=!r:.200}")
        if self._loaded and any(self.networks[key] is not network for key, network in networks.items()):
            raise ValueError(
                "A network was replaced while there were LoRAs in the one before; unload them first. "
                f"Received: loras={[*self._loaded]!r:.200}"
            )
        architecture = networks["diffusion_model"].architecture if "diffusion_model" in networks else None
        changes = lora_file.changes(path, lora_file.weights(networks), architecture)
        self.networks = networks
        self._update({**self._loaded, name: (scale, changes)}, changes)
        return name

    def unload(self, name=None):
        """Takes a LoRA out, or all of them; see `StableDiffusion.unload_lora`."""
        if name is not None and name not in self._loaded:
            raise ValueError(f"`name` must be that of a loaded LoRA, {[*self._loaded]}. Received: {name=!r:.200}")
        kept = {key: loaded for key, loaded in self._loaded.items() if name not in (None, key)}
        self._update(kept, {layer for key in self._loaded.keys() - kept for layer in self._loaded[key][1]})

    def replace(self, name, network, by):
        """Notes that another network of the same weights takes the place of one."""
        if self.networks.get(name) is network:
            self.networks[name] = by

    def _update(self, loaded, layers):
        """Gives layers the weights they have with the LoRAs `loaded`; on an error, the weights they had."""
        targets = lora_file.weights(self.networks)
        try:
            for layer in layers:
                self._fuse(layer, targets[layer], loaded)
        except BaseException:
            for layer in layers:
                self._fuse(layer, targets[layer], self._loaded)
            raise
        else:
            self._loaded = loaded
        finally:
            changed = {layer for _, changes in self._loaded.values() for layer in changes}
            self._originals = {layer: values for layer, values in self._originals.items() if layer in changed}

    def _fuse(self, layer, target, loaded):
        """Assigns the original values and all that is added to them, in the order of the LoRAs' names."""
        variable = target.variable
        if layer not in self._originals:
            self._originals[layer] = np.array(ops.convert_to_numpy(variable))
        original = values = self._originals[layer]
        for _, (scale, changes) in sorted(loaded.items(), key=lambda item: item[0]):
            if layer in changes:
                values = values.astype("float32") + changes[layer].added(target, scale)
        if values is not original and not (top := np.abs(values).max()) < LIMITS.get(variable.dtype, math.inf):
            raise CheckpointMismatchError(
                f"A weight overflows in {variable.dtype}, nothing was changed; give a smaller scale. "
                f"Received: {layer} up to ±{top:.6g}",
                mismatched=[layer],
            )
        variable.assign(ops.convert_to_tensor(values, variable.dtype))
