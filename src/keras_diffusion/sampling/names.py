"""Finds samplers by the names that people know them by."""

import re

from keras_diffusion.sampling.registry import SAMPLERS


def _key(name):
    """Reduces a spelling to lower-case letters and digits; + becomes p."""
    return re.sub("[^a-z0-9]", "", name.lower().replace("+", "p"))


_SPELLINGS = {_key(spelling): name for name, row in SAMPLERS.items() for spelling in (name, *row.spellings)}
_KARRAS = re.compile("(.*?)(karras|ka)?")  # "DPM++ 2M Karras", "k_dpmpp_2m_ka"


def resolve(name):
    """Finds the name in `SAMPLERS` of a spelling, and whether the spelling asks for Karras levels.

    Capitals, spaces and punctuation do not count.

    Args:
        name: A name in `SAMPLERS`, a diffusers class, or a name from A1111's menu, as "DPM++ 2M Karras"; see the table.

    Returns:
        (name, karras), a str and a bool.

    Raises:
        ValueError: If there is no such sampler, with the names there are.
    """
    key, karras = _KARRAS.fullmatch(_key(name) if isinstance(name, str) else "").groups()
    if key not in _SPELLINGS:
        raise ValueError(f"The sampler must be one of {', '.join(SAMPLERS)}. Received: sampler={repr(name)[:200]}")
    return _SPELLINGS[key], karras is not None


def label(name):
    """Returns the name of a sampler in A1111's menu, such as "DPM++ 2M Karras", or else another spelling of it."""
    name, karras = resolve(name)
    return SAMPLERS[name].spellings[0] + " Karras" * karras
