"""Names what computes, for those that must do without Keras."""

from contextlib import contextmanager
from importlib.util import find_spec

BACKENDS = ("tensorflow", "jax", "torch")
JIT_COMPILE = {"auto": "auto", "xla": True, "openvino": "openvino", "off": False}  # a command's word → `jit_compile`
COMPILED = "xla"  # the word for True
EXPLAINED = f"{', '.join(JIT_COMPILE)} (default: auto; without a value: {COMPILED})"


@contextmanager
def explaining_missing_backend():
    """Says what to do where an import in it fails because Keras' backend is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in BACKENDS:
            raise
        installed = [name for name in BACKENDS if name != error.name and find_spec(name)]
        other = f"or set KERAS_BACKEND={installed[0]}, which is installed, " if installed else ""
        raise ImportError(
            f"Keras computes with {error.name}, which is not installed. Install it (pip install {error.name}), {other}"
            f"and start Python again. The environment variable KERAS_BACKEND chooses among {', '.join(BACKENDS)}."
        ) from error
