"""Checks of what people pass in: each returns the value in the form the library works with, or says what is allowed."""

import math
from numbers import Real

import numpy as np

LARGEST_SIDE = 4096
LARGEST_BATCH = 1024


def choice(name, value, choices):
    """Returns `value` if it is one of the names `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}. Received: {name}={value!r:.200}")
    return value


def boolean(name, value):
    """Returns `value` if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False. Received: {name}={value!r:.200}")
    return value


def whole_number(name, value, smallest, largest):
    """Returns `value` as an int if it is one, within the range."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be an int from {smallest} to {largest}. Received: {name}={value!r:.200}")
    if not smallest <= value <= largest:
        raise ValueError(f"`{name}` must be from {smallest} to {largest}. Received: {name}={value!r:.200}")
    return int(value)


def number(name, value, smallest=-math.inf, largest=math.inf):
    """Returns `value` as a float if it is a finite number within the range."""
    allowed = "a finite number" if largest == math.inf else f"a number from {smallest} to {largest}"
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be {allowed}. Received: {name}={value!r:.200}")
    if not (math.isfinite(value) and smallest <= value <= largest):
        raise ValueError(f"`{name}` must be {allowed}. Received: {name}={value!r:.200}")
    return float(value)


def interval(name, value):
    """Returns two numbers from 0 to 1, the smaller one first."""
    if not (isinstance(value, (tuple, list)) and len(value) == 2):
        raise TypeError(f"`{name}` must be (start, end). Received: {name}={value!r:.200}")
    start, end = (number(f"{name}.{part}", x, 0, 1) for part, x in zip(("start", "end"), value, strict=True))
    if start >= end:
        raise ValueError(f"`{name}.start` must be before `{name}.end`. Received: {start} and {end}")
    return start, end


def function(name, value):
    """Returns `value` if it can be called, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"`{name}` must be a function, or None. Received: {name}={value!r:.200}")
    return value


def image_side(name, value, factor):
    """Returns a height or width in pixels if it is a multiple of `factor`, which latents need."""
    value = whole_number(name, value, factor, LARGEST_SIDE)
    if value % factor:
        below = value // factor * factor
        raise ValueError(
            f"`{name}` must be a multiple of {factor}; the nearest are {below} and {below + factor}. "
            f"Received: {name}={value}"
        )
    return value


def texts(name, value):
    """Returns a str or a list of str as a list."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"`{name}` must be a str or a list of them. Received: {name}={value!r:.200}")
    for i, text in enumerate(values):
        if not isinstance(text, str):
            raise TypeError(f"`{name}` must hold only str. Received: {name}[{i}]={text!r:.200}")
    if not values:
        raise ValueError(f"`{name}` must hold at least one str. Received: {name}={value!r:.200}")
    return list(values)


def repeated(name, values, count):
    """Returns `count` values: one stands for all."""
    if len(values) not in (1, count):
        raise ValueError(f"`{name}` must hold 1 or {count} values, one for each image. Received: {len(values)} values")
    return list(values) * (count // len(values))


def batch_size(name, value, count):
    """Returns the number of images for `count` prompts or contexts: None takes one for each."""
    if value is None:
        return count
    value = whole_number(name, value, 1, LARGEST_BATCH)
    if count not in (1, value):
        raise ValueError(f"`{name}` must be {count}, the number of prompts, or None. Received: {name}={value}")
    return value


def context(name, value, shape):
    """Returns a text encoder's output of `shape`, of several chunks, or a batch of them, as (b, tokens, width)."""
    values = np.asarray(value)
    tokens, width = shape
    if values.ndim > 1 and values.shape[-2] and values.shape[-2] % tokens == 0:
        tokens = values.shape[-2]
    return array(name, values, (len(values) if values.ndim == 3 else 1, tokens, width))


def numbers(name, value, count, largest=math.inf):
    """Returns a number from 0 to `largest` for each image, where one may stand for all, as float32 (count,)."""
    values = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]
    allowed = "a number of at least 0" if largest == math.inf else f"a number from 0 to {largest}"
    for number in values:
        if not isinstance(number, Real) or isinstance(number, bool):
            raise TypeError(f"`{name}` must be {allowed}. Received: {name}={value!r:.200}")
        if not (math.isfinite(number) and 0 <= number <= largest):
            raise ValueError(f"`{name}` must be {allowed}, and finite. Received: {name}={value!r:.200}")
    return np.array(repeated(name, values, count), "float32")


def skipped_steps(name, strength, num_steps):
    """Returns how many of `num_steps` steps a strength, more than 0 and at most 1, leaves out."""
    if not isinstance(strength, Real) or isinstance(strength, bool):
        raise TypeError(f"`{name}` must be a number above 0, at most 1. Received: {name}={strength!r:.200}")
    if not 0 < strength <= 1:
        raise ValueError(f"`{name}` must be above 0 and at most 1. Received: {name}={strength!r:.200}")
    taken = int(num_steps * strength)
    if not taken:
        raise ValueError(
            f"`{name}` must leave at least one of {num_steps} steps; it is their share, so at least {1 / num_steps:g}. "
            f"Received: {name}={strength!r:.200}"
        )
    return int(num_steps) - taken


def array(name, value, shape):
    """Returns numbers of the given shape, or without its first axis, as a float32 array of that shape."""
    values = np.asarray(value)
    if values.dtype.kind not in "fiu" or values.shape not in (shape, shape[1:]):
        raise ValueError(
            f"`{name}` must be numbers of shape {shape} or {shape[1:]}. "
            f"Received: {name} of shape {values.shape} and dtype {values.dtype}"
        )
    if not np.isfinite(values).all():
        bad = np.count_nonzero(~np.isfinite(values))
        raise ValueError(f"`{name}` must be finite. Received: {name} with {bad} values that are not")
    return np.broadcast_to(values.astype("float32"), shape)
