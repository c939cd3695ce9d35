"""Checks a model before it is written, and writes its weights."""

from dataclasses import replace

import numpy as np
from keras import ops

from keras_diffusion.checkpoints.formats import safetensors
from keras_diffusion.checkpoints.layouts.diffusers_configs import from_diffusers, to_diffusers
from keras_diffusion.checkpoints.mapping.loading import SHAPES, stored, value_problems
from keras_diffusion.networks.network import Network
from keras_diffusion.sampling.scheduler_config import OPTIONS


def describe(architecture, dtype, scheduler_config, networks):
    """Describes a model by diffusers' configuration files, which must say everything about it.

    Args:
        architecture: The `Architecture` of the networks.
        dtype: How tensors are to be stored.
        scheduler_config: A dict for scheduler_config.json; None takes DDIM on Stable Diffusion's schedule.
        networks: The networks, by name.

    Returns:
        A dict of dicts: the contents of the files, by part.

    Raises:
        TypeError: If a network is missing, has another name or is none of this package.
        ValueError: If `dtype` cannot be written, a network is of another architecture, or diffusers has no such
            architecture.
    """
    if dtype not in safetensors.NAMES:
        raise ValueError(f"`dtype` must be one of {', '.join(safetensors.NAMES)}. Received: dtype={dtype!r:.200}")
    if networks.keys() != set(architecture.networks):
        raise TypeError(f"The networks must be {', '.join(architecture.networks)}. Received: {sorted(networks)}")
    for name, network in networks.items():
        if not isinstance(network, Network):
            raise TypeError(f"Networks of this package can be written. Received: {name}={type(network).__name__}")
        if getattr(network.architecture, SHAPES[name]) != getattr(architecture, SHAPES[name]):
            raise ValueError(
                f"`{name}` must be of the architecture given. Received: {name} of {network.architecture.name!r}, "
                f"architecture {architecture.name!r}"
            )
    configs = to_diffusers(architecture)
    if replace(from_diffusers(configs), name=architecture.name) != architecture:
        raise ValueError(f"diffusers cannot describe this architecture. Received: architecture={architecture!r:.200}")
    scheduler = {**(scheduler_config or configs["scheduler"]), "prediction_type": architecture.prediction_type}
    # What is drawn here, said for the scheduler itself and for all that diffusers' from_config puts in its place.
    to_one, *_ = OPTIONS.get(scheduler["_class_name"], {}).get("set_alpha_to_one", (False,))
    scheduler = {"set_alpha_to_one": to_one, **scheduler, "clip_sample": False, "steps_offset": 1}
    configs["scheduler"] = scheduler
    configs["model_index"]["scheduler"] = ["diffusers", scheduler["_class_name"]]
    return configs


def write_weights(path, wanted, dtype, metadata=None):
    """Writes the variables of some targets, one at a time, as a safetensors file; thirds of a tensor become one.

    Raises:
        ValueError: If a value is not finite in `dtype`.
    """

    def values():
        for target in wanted:
            array = stored(target.values(), target.layout)
            _require_finite(array, target.name, dtype)
            yield array

    wanted, shapes = sorted(wanted, key=lambda target: target.name), {}
    for target in wanted:
        name = target.name.partition("[")[0]
        before = shapes.get(name, (0,))[0]
        shapes[name] = (before + target.shape[0], *target.shape[1:])
    safetensors.write(path, dtype, shapes, values(), metadata)


def require_finite(networks, dtype):
    """Checks all weights of networks, given by name.

    Raises:
        ValueError: If a value is not finite in `dtype`.
    """
    for name, network in networks.items():
        for variable in network.variables:
            _require_finite(np.asarray(ops.convert_to_numpy(variable)), f"{name}/{variable.path}", dtype)


def _require_finite(array, name, dtype):
    if any(value_problems(float(np.abs(array).max(initial=0)), dtype)):
        raise ValueError(f"Weights must be finite in {dtype}. Received: {name} with inf or NaN")
