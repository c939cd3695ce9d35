"""Which reader understands a file: told by how it begins, never by what it is called."""

from keras_diffusion.checkpoints.formats import gguf_file, pickle_file, safetensors
from keras_diffusion.system import limits
from keras_diffusion.system.paths import existing_file


def index(path):
    """Lists the tensors of a safetensors file, a pickle or a GGUF file without reading their values.

    Args:
        path: The file.

    Returns:
        A dict from names to `Tensor`, in the order of the file.

    Raises:
        FileNotFoundError: If there is no file.
        CorruptCheckpointError: If the file is damaged or of another kind.
        UnsafeCheckpointError: If a pickle asks for something that only hostile ones ask for.
    """
    return (pickle_file if is_pickle(path) else gguf_file if _is_gguf(path) else safetensors).index(path)


def metadata(path):
    """Returns what a file, which `index` has read, says about itself: a dict of str; {} for a pickle and for GGUF."""
    return {} if is_pickle(path) or _is_gguf(path) else safetensors.metadata(path)


def is_pickle(path):
    """Tells whether a file begins as a pickle or a zip archive does, and not as safetensors does."""
    with open(existing_file(path), "rb") as file:
        start = file.read(8)
    return int.from_bytes(start, "little") > limits.HEADER and start.startswith((b"PK", b"\x80"))


def _is_gguf(path):
    with open(path, "rb") as file:
        return file.read(len(gguf_file.MAGIC)) == gguf_file.MAGIC
