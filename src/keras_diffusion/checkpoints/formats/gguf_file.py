"""Reads GGUF files, as stable-diffusion.cpp and ComfyUI-GGUF write them.

Source: docs/gguf.md of ggml-org/ggml. ComfyUI-GGUF stores some tensors in another shape; a key of the file then holds
the true one.
"""

import math
import struct

from keras_diffusion.checkpoints.formats.gguf_blocks import BLOCK, QUANTISED
from keras_diffusion.checkpoints.formats.tensors import DTYPES, Tensor, nbytes
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError
from keras_diffusion.system import limits
from keras_diffusion.system.paths import existing_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
TYPES = {  # number of a type of tensors → its name
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K"},
    **{12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S"},
    **{20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0"},
    **{24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 39: "MXFP4", 40: "NVFP4"},
}
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}  # of values
TEXT, ARRAY = 8, 9  # types of values
ALIGNMENT, LARGEST_ALIGNMENT = "general.alignment", 2**16
SHAPE = "comfy.gguf.orig_shape."  # how a key begins that holds the true shape of a tensor


class _Reader:
    """Reads numbers and texts from the header of a file, one after the other; it holds no more than that."""

    def __init__(self, content):
        self.content, self.place = content, 0

    def take(self, count):
        if count > len(self.content) - self.place:
            raise ValueError("its header is cut short, or larger than that of any model")
        self.place += count
        return self.content[self.place - count : self.place]

    def numbers(self, format):
        return struct.unpack(f"<{format}", self.take(struct.calcsize(f"<{format}")))

    def number(self, format):
        return self.numbers(format)[0]

    def text(self):
        return str(self.take(self.number("Q")), "utf-8")

    def value(self, kind):
        """The value of a key; None for a list of texts, which no key that matters has."""
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            return self.number(_known(kind, SCALARS))
        kind, count = self.numbers("IQ")
        if kind == TEXT:
            for _ in range(count):
                self.take(self.number("Q"))
            return None
        format = _known(kind, SCALARS)
        return struct.unpack(f"<{count}{format}", self.take(count * struct.calcsize(f"<{format}")))


def _known(number, table):
    if number not in table:
        raise ValueError(f"it has a type {number}, which GGUF does not know")
    return table[number]


def index(path):
    """Lists the tensors of a GGUF file without reading their values.

    Args:
        path: The file.

    Returns:
        A dict from names to `Tensor`, in the order of the file.

    Raises:
        CheckpointMismatchError: If tensors are of a type that is not read, such as Q4_K.
        CorruptCheckpointError: If the file is damaged or of another kind.
    """
    path = existing_file(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        reader = _Reader(file.read(min(size, limits.HEADER)))
    try:
        keys, entries = _header(reader)
        tensors = list(_tensors(path, keys, entries, reader.place, size))
    except (ValueError, struct.error) as error:  # UnicodeDecodeError is a ValueError
        raise CorruptCheckpointError(f"{path} is no sound GGUF file: {error!s:.200}. Fetch it again.") from error
    if unread := sorted({tensor.dtype for tensor in tensors} - DTYPES.keys()):
        raise CheckpointMismatchError(
            f"{path} holds tensors of {', '.join(unread)}. Get a file of {', '.join(DTYPES)}, such as one that ends in "
            "Q8_0.gguf.",
            mismatched=[tensor.name for tensor in tensors if tensor.dtype in unread],
        )
    for tensor in tensors:
        if tensor.offset + nbytes(tensor) > size:
            raise CorruptCheckpointError(f"{path} is cut short: {tensor.name!r:.200} lies behind its end.")
    return {tensor.name: tensor for tensor in tensors}


def _header(reader):
    """The keys of a file with their values, and for each tensor a tuple (name, shape, type, offset)."""
    if reader.take(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version, tensors, keys = reader.numbers("IQQ")
    if version not in VERSIONS:
        raise ValueError(f"it is of version {version}, not one of {VERSIONS}")
    if max(tensors, keys) > limits.TENSORS:
        raise ValueError(f"it lists {tensors} tensors and {keys} keys, of at most {limits.TENSORS}")
    values = {}
    for _ in range(keys):
        key = reader.text()
        values[key] = reader.value(reader.number("I"))
    entries = []
    for _ in range(tensors):
        name, axes = reader.text(), reader.number("I")
        if len(name) > limits.NAME or axes > limits.AXES:
            raise ValueError(f"it has a name of {len(name)} characters or a tensor of {axes} axes")
        shape = reader.numbers(f"{axes}Q")[::-1]  # the innermost comes first in the file
        entries.append((name, shape, *reader.numbers("IQ")))
    return values, entries


def _tensors(path, keys, entries, end, size):
    alignment = keys.get(ALIGNMENT, 32)
    if not (isinstance(alignment, int) and 0 < alignment <= LARGEST_ALIGNMENT and alignment.bit_count() == 1):
        raise ValueError(f"its {ALIGNMENT} must be a power of two. Received: {alignment!r:.99}")
    start, names = -(-end // alignment) * alignment, set()
    for name, shape, kind, offset in entries:
        true = keys.get(SHAPE + name, shape)
        whole = isinstance(true, tuple) and all(isinstance(x, int) and x >= 0 for x in true)
        if name in names or offset % alignment or not whole or math.prod(true) != math.prod(shape):
            raise ValueError(f"its tensor {name!r:.200} is repeated, misplaced, or of shapes {shape} and {true!r:.99}")
        if max(math.prod(shape), start + offset) > limits.ELEMENTS or len(true) > limits.AXES:
            raise ValueError(f"its tensor {name!r:.200} is larger than any, of shape {shape}")
        names.add(name)
        dtype = _known(kind, TYPES)
        if dtype in QUANTISED and (not shape or shape[-1] % BLOCK):
            raise ValueError(f"its tensor {name!r:.200} of shape {shape} has rows that are no whole blocks of {BLOCK}")
        yield Tensor(path, name, dtype, true, start + offset)
