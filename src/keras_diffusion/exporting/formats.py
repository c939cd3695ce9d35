"""Names the formats that a model can be exported in, for those that must do without Keras."""

from typing import NamedTuple

DTYPES = ("float32", "float16")


class Format(NamedTuple):
    """Describes a format; the module of its name writes it.

    Args:
        packages: Those that writing needs, by the names of their modules.
        backend: Keras' backend that writes it, or None for any.
        dtypes: How it can store weights.
    """

    packages: tuple = ()
    backend: str | None = None
    dtypes: tuple = DTYPES


FORMATS = {
    "saved_model": Format(backend="tensorflow", dtypes=DTYPES[:1]),
    "onnx": Format(("onnx",)),
    "openvino": Format(("onnx", "openvino", "openvino_tokenizers", "transformers")),
    "litert": Format(backend="tensorflow"),
}
