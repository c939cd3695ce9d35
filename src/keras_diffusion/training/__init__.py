"""Trains the networks of a model: `Trainer`, the data it learns from, and its losses. Names are imported when used."""

from importlib import import_module

_HOME_OF = {"Examples": "dataset", "Trainer": "trainer", "records": "folder"}
__all__ = sorted(_HOME_OF)


def __getattr__(name):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__():
    return [*globals(), *__all__]
