"""Finds samplers and spacings by the names that people know them by, in whatever tool."""

import re

from keras_diffusion.sampling.registry import SAMPLERS
from keras_diffusion.sampling.spacings import ALL_SPACINGS

# Other names of spacings: of A1111's and Forge's "Schedule type", of ComfyUI's `scheduler`, of InvokeAI's suffix.
SPACING_SPELLINGS = {
    "karras": ("ka", "k"),
    "exponential": ("polyexponential", "exp"),  # A1111's polyexponential has the exponent 1
    "normal": ("uniform",),
    "ddim_uniform": ("ddim",),
    "align_your_steps": ("ays",),
}
# A1111 writes "Automatic" as its schedule type, or none, and means by it these; "normal" for all others.
AUTOMATIC = {
    "dpm2": "karras",
    "dpm2_ancestral": "karras",
    "dpmpp_2m": "karras",
    "dpmpp_2m_sde": "exponential",
    "dpmpp_2m_sde_heun": "exponential",
    "dpmpp_2s_ancestral": "karras",
    "dpmpp_3m_sde": "exponential",
    "dpmpp_sde": "karras",
}
LABELS = {"karras": "Karras", "exponential": "Exponential", "sgm_uniform": "SGM Uniform", "beta": "Beta"}


def _key(name):
    """Reduces a spelling to lower-case letters and digits; + becomes p."""
    return re.sub("[^a-z0-9]", "", name.lower().replace("+", "p"))


_SAMPLERS = {_key(spelling): name for name, row in SAMPLERS.items() for spelling in (name, *row.spellings)}
_SPACINGS = {_key(s): name for name in ALL_SPACINGS for s in (name, *SPACING_SPELLINGS.get(name, ()))}


def resolve(name):
    """Finds the name in `SAMPLERS` of a spelling, and the spacing that the spelling asks for at its end.

    Capitals, spaces and punctuation do not count.

    Args:
        name: A name in `SAMPLERS`, a diffusers class, or a name from A1111, ComfyUI or InvokeAI, with or without a
            spacing: "dpmpp_2m", "DPM++ 2M Karras", "dpmpp_2m_sde_k", "Euler SGM Uniform".

    Returns:
        (name, spacing), a str and a str or None.

    Raises:
        ValueError: If there is no such sampler, with the names there are.
    """
    key = _key(name) if isinstance(name, str) else ""
    for end in range(len(key), 0, -1):
        sampler, spacing = _SAMPLERS.get(key[:end]), _SPACINGS.get(key[end:])
        if sampler and (spacing or end == len(key)):
            return sampler, spacing
    raise ValueError(f"The sampler must be one of {', '.join(SAMPLERS)}. Received: sampler={name!r:.200}")


def resolve_spacing(name):
    """Finds the name of a spacing, as `samplers.build` takes it.

    Args:
        name: A name in `ALL_SPACINGS`, a schedule type of A1111 or a scheduler of ComfyUI; or None.

    Returns:
        A str, or None for None.

    Raises:
        ValueError: If there is no such spacing, with the names there are.
    """
    if name is None:
        return None
    key = _key(name) if isinstance(name, str) else ""
    if key not in _SPACINGS:
        raise ValueError(f"`spacing` must be one of {', '.join(ALL_SPACINGS)}. Received: spacing={name!r:.200}")
    return _SPACINGS[key]


def from_a1111(sampler, schedule_type=None):
    """Translates what A1111 and Forge write under "Sampler" and "Schedule type".

    Args:
        sampler: Such as "DPM++ 2M" or, before version 1.9, "DPM++ 2M Karras".
        schedule_type: Such as "Karras" or "Automatic"; None where it was not written.

    Returns:
        (sampler, spacing) for `samplers.build`.

    Raises:
        ValueError: If there is no such sampler or no such spacing.
    """
    name, spacing = resolve(sampler)
    if schedule_type is not None and _key(schedule_type) != "automatic":
        spacing = resolve_spacing(schedule_type)
    elif schedule_type is not None:
        spacing = spacing or AUTOMATIC.get(name)
    return name, spacing


def label(name, spacing=None):
    """Returns the name of a sampler in A1111's menu, such as "DPM++ 2M Karras", or else another spelling of it."""
    name, named = resolve(name)
    spacing = resolve_spacing(spacing) or named
    return " ".join(filter(None, [SAMPLERS[name].spellings[0], LABELS.get(spacing, spacing)]))
