"""Names the formats that a model can be exported in, for those that must do without Keras."""

from typing import NamedTuple


class Format(NamedTuple):
    """Describes a format; the module of its name writes it.

    Args:
        runtime: What runs the files.
        packages: Those that writing needs, by the names of their modules.
        backend: Keras' backend that writes it, or None for any.
    """

    runtime: str
    packages: tuple = ()
    backend: str | None = None


FORMATS = {
    "saved_model": Format("TensorFlow and TF Serving", backend="tensorflow"),
    "onnx": Format("ONNX Runtime and optimum", ("onnx",)),
    "openvino": Format("OpenVINO GenAI", ("onnx", "openvino", "openvino_tokenizers", "transformers")),
}
