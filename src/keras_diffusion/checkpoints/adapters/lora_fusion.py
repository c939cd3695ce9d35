"""Fuses adapters into the weights of networks, and takes them out without a trace."""

import math
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from keras import ops

from keras_diffusion import arguments
from keras_diffusion.checkpoints.adapters import layer_names, lora_file
from keras_diffusion.checkpoints.mapping.loading import LIMITS
from keras_diffusion.errors import CheckpointMismatchError
from keras_diffusion.networks.int8 import is_int8
from keras_diffusion.sampling.defaults import find_few_steps

Scale = float | Mapping[str, float]
KEPT_FILES = 8  # that prompts named last, so that they are not read for every image


class Loras:
    """The LoRAs and other adapters in the networks of a model.

    The values of every variable that one of them changes are kept as they were, once: each change starts from those.

    Attributes:
        networks: The networks that the LoRAs are in, by name.
        scales: The scale of each LoRA, by name.
    """

    def __init__(self):
        self.networks = {}
        self._loaded = {}  # name → (scale, changes by tensor)
        self._few_steps = {}  # name → `FewSteps` or None
        self._files = {}  # file and its state → changes by tensor
        self._originals = {}  # changed tensor → the values of its variable before

    def __getstate__(self):
        """Gives a pickle dicts that no other thread changes; `locks.Unchanged` says whether one changed those here."""
        return {name: dict(value) for name, value in vars(self).items()}

    @property
    def few_steps(self):
        """The `FewSteps` of the LoRA loaded last that was distilled for few steps and acts; or None."""
        found = [self._few_steps.get(name) for name, scale in self.scales.items() if scale != 0]
        return next(filter(None, reversed(found)), None)

    @property
    def scales(self):
        return {name: scale for name, (scale, _) in self._loaded.items()}

    def load(self, path, scale, name, **networks):
        """Fuses a file into networks; see `StableDiffusion.load_lora`."""
        scale = checked("scale", scale, networks)
        name = Path(path).stem if name is None else name
        if not isinstance(name, str):
            raise TypeError(f"`name` must be a str. Received: name={name!r:.200}")
        if name in self._loaded:
            raise ValueError(f"A LoRA of this name is loaded; unload it or give another name. Received: {name=!r:.200}")
        self._attach(networks)
        changes = lora_file.changes(path, networks)
        self._few_steps[name] = find_few_steps(*lora_file.titles(path))
        self._update({**self._loaded, name: (scale, changes)})
        return name

    def set_scale(self, name, scale):
        """Changes the scale of a LoRA; see `StableDiffusion.set_lora_scale`."""
        self._check_loaded(name)
        scale = checked("scale", scale, self.networks)
        self._update({**self._loaded, name: (scale, self._loaded[name][1])})

    def unload(self, name=None):
        """Takes a LoRA out, or all of them; see `StableDiffusion.unload_lora`."""
        if name is not None:
            self._check_loaded(name)
        self._update({key: loaded for key, loaded in self._loaded.items() if name not in (None, key)})

    @contextmanager
    def during(self, paths, scales, **networks):
        """Gives LoRAs scales for as long as the block runs; then they are as before, or not loaded.

        Args:
            paths: A dict from names to files, or to None for those that are loaded.
            scales: A dict from the same names to scales.
            **networks: See `load`.
        """
        self._attach(networks)
        before = {name: self._loaded[name] for name in paths if name in self._loaded}
        changes = {name: self._read(path, networks) if path else before[name][1] for name, path in paths.items()}
        self._few_steps |= {name: find_few_steps(*lora_file.titles(path)) for name, path in paths.items() if path}
        try:
            self._update(self._loaded | {name: (scale, changes[name]) for name, scale in scales.items()})
            yield
        finally:
            kept = {name: loaded for name, loaded in self._loaded.items() if name not in paths} | before
            try:
                self._update(kept)
            except BaseException:  # an interrupt, for one: the model must not keep them
                self._update(kept)
                raise

    def _attach(self, networks):
        """Notes which networks LoRAs are in."""
        if quantised := [name for name, network in networks.items() if is_int8(network)]:
            raise ValueError(
                "A LoRA changes weights by less than the steps of int8. Load the model with another `dtype`, such as "
                f"'float32_from_float16'. Received: weights of {', '.join(quantised)} in int8"
            )
        if self._loaded and any(self.networks[key] is not network for key, network in networks.items()):
            raise ValueError(
                "A network was replaced while there were LoRAs in the one before; unload them first. "
                f"Received: loras={[*self._loaded]!r:.200}"
            )
        self.networks = networks

    def _read(self, path, networks):
        """Reads the changes of a file; those of the last few files are kept."""
        state = Path(path).stat()
        key = path, state.st_mtime_ns, state.st_size
        changes = self._files.pop(key, None) or lora_file.changes(path, networks)
        self._files = dict([*self._files.items(), (key, changes)][-KEPT_FILES:])
        return changes

    def replace(self, name, network, by):
        """Notes that another network of the same weights takes the place of one."""
        if self.networks.get(name) is network:
            self.networks[name] = by

    def _check_loaded(self, name):
        if name not in self._loaded:
            raise ValueError(f"`name` must be that of a loaded LoRA, {[*self._loaded]}. Received: {name=!r:.200}")

    def _update(self, loaded):
        """Gives tensors the values they have with the LoRAs `loaded`; on an error, the values they had."""
        targets = lora_file.targets(self.networks)
        tensors = {
            tensor
            for before, after in ((self._loaded, loaded), (loaded, self._loaded))
            for name, (scale, changes) in before.items()
            for tensor in changes
            if name not in after or scale_of(scale, tensor) != scale_of(after[name][0], tensor)
        }
        try:
            for tensor in tensors:
                self._fuse(tensor, targets[tensor], loaded)
        except BaseException:
            for tensor in tensors:
                self._fuse(tensor, targets[tensor], self._loaded)
            raise
        else:
            self._loaded = loaded
        finally:
            changed = {tensor for _, changes in self._loaded.values() for tensor in changes}
            self._originals = {tensor: values for tensor, values in self._originals.items() if tensor in changed}

    def _fuse(self, tensor, target, loaded):
        """Assigns the original values and all that is added to them, in the order of the LoRAs' names."""
        variable = target.variable
        if tensor not in self._originals:
            self._originals[tensor] = np.array(ops.convert_to_numpy(variable))
        original = values = self._originals[tensor]
        for _, (scale, changes) in sorted(loaded.items(), key=lambda item: item[0]):
            if tensor in changes and (factor := scale_of(scale, tensor)):
                values = original.astype("float32") if values is original else values
                change = changes[tensor].added(target, original)
                change *= np.float32(factor)
                values += change
        if values is not original and not (top := max(values.max(), -values.min())) < LIMITS.get(
            variable.dtype, math.inf
        ):
            raise CheckpointMismatchError(
                f"A weight overflows in {variable.dtype}, nothing was changed; give a smaller scale. "
                f"Received: {tensor} up to ±{top:.6g}",
                mismatched=[tensor],
            )
        variable.assign(ops.convert_to_tensor(values, variable.dtype))


def checked(name, scale, networks):
    """Returns a scale: a number, or a dict from networks and blocks to numbers.

    A block is how the names of its layers begin, such as "mid_block", "down_blocks.1" or "encoder.layers.11".
    """
    if not isinstance(scale, Mapping):
        return arguments.number(name, scale)
    known = [key.partition("/") for key in layer_names.layers(networks)]
    for key, value in scale.items():
        arguments.number(f"{name}[{key!r:.99}]", value)
        if not any(belongs(key, network, layer) for network, _, layer in known):
            blocks = sorted({".".join(layer.split(".")[:2]) for _, _, layer in known if "blocks." in layer})
            raise ValueError(
                f"`{name}` may name a network ({', '.join(networks)}) or a block, which is how names of its layers "
                f"begin ({', '.join(blocks)}, mid_block, encoder.layers.0, …). Received: {key!r:.200}"
            )
    return dict(scale)


def scale_of(scale, tensor):
    """Returns the scale of a tensor, "network/name": that of its smallest block, else of its network, else 1."""
    if not isinstance(scale, Mapping):
        return scale
    network, _, layer = tensor.partition("/")
    named = [key for key in scale if belongs(key, network, layer)]
    return scale[max(named, key=lambda key: (key != network, len(key)))] if named else 1.0


def belongs(key, network, layer):
    return key == network or f"{layer}.".startswith(f"{key}.")
