"""Lists the tensors of an HDF5 file. Nothing in it is followed or run: it holds plain datasets or is refused."""

import math
import struct
from itertools import count, takewhile

from keras_diffusion.checkpoints.formats.hdf5_objects import CONTIGUOUS, VIRTUAL, Message, Objects, dataset
from keras_diffusion.checkpoints.formats.tensors import Tensor, mistaken_for
from keras_diffusion.errors import CorruptCheckpointError, UnsafeCheckpointError
from keras_diffusion.system import limits
from keras_diffusion.system.paths import existing_file

MAGIC = b"\x89HDF\r\n\x1a\n"
WHOLE_MODEL = "model_weights"  # where Keras keeps the weights in an .h5 with a whole model
DAMAGED = (ValueError, TypeError, LookupError, ArithmeticError, OSError, struct.error)  # what damaged files cause


def index(path):
    """Lists the tensors of an HDF5 file without reading their values.

    Args:
        path: The file.

    Returns:
        A dict from names to `Tensor`: in the order of the layers where the file states one, as Keras 2 does, and then
        all others in the order of their names. The prefix "model_weights/" is left out.

    Raises:
        FileNotFoundError: If there is no file.
        CorruptCheckpointError: If the file is damaged, of another kind, or stores a tensor in pieces or compressed.
        UnsafeCheckpointError: If the file refers to other files, or to the same object twice.
    """
    path = existing_file(path)
    with path.open("rb") as file:
        start = file.read(32)
        if not start.startswith(MAGIC):
            raise CorruptCheckpointError(f"{path} is not an HDF5 file but {mistaken_for(start) or 'something else'}.")
        try:
            return _tensors(Objects(file), path)
        except UnsafeCheckpointError as error:
            raise UnsafeCheckpointError(f"{path} {error}") from None
        except DAMAGED as error:
            raise CorruptCheckpointError(f"{path} is damaged or not written by Keras: {error!s:.400}") from error


def _tensors(objects, path):
    """All tensors by name, first those of which the file states the order."""
    groups, tensors, listed = {"": objects.root}, {}, {}
    for name, address, tensor in _walk(objects, path, objects.root, "", {objects.root}):
        if tensor is None:
            groups[f"{name}/"] = address
        else:
            tensors[name] = tensor
    root = f"{WHOLE_MODEL}/" if f"{WHOLE_MODEL}/" in groups else ""
    for layer in _texts(objects, objects.attributes(groups[root]), "layer_names"):
        layer = f"{root}{layer}/"
        for name in _texts(objects, objects.attributes(groups[layer]), "weight_names"):
            if layer + name in listed:
                raise ValueError(f"it lists a weight twice. Received: {layer + name!r:.200}")
            listed[layer + name] = tensors[layer + name]
    return {name.removeprefix(root): tensor for name, tensor in (listed | tensors).items()}


def _walk(objects, path, group, prefix, seen):
    """Yields name, address and tensor of all that is below a group, each object once; of groups the tensor is None."""
    messages = objects.messages(group)
    if Message.LINK in messages or Message.LINKS in messages:
        raise UnsafeCheckpointError(f"may not refer to other places or files. Received: {prefix!r:.200}")
    for name, address in objects.symbols(messages[Message.SYMBOLS]):
        full = prefix + name
        if address is None or "/" in name or name in ("", ".", ".."):
            raise UnsafeCheckpointError(f"may not refer to other places or files. Received: {full!r:.200}")
        if address in seen:
            raise UnsafeCheckpointError(f"refers to one object twice. Received: {full!r:.200}")
        seen.add(address)
        if len(seen) > limits.HDF5_OBJECTS or full.count("/") > limits.HDF5_DEPTH or len(full) > limits.NAME:
            raise ValueError(f"it is larger or deeper than any model. Received: {full!r:.200}")
        messages = objects.messages(address)
        if Message.LAYOUT in messages:
            yield full, address, _tensor(objects, path, full, address, messages)
        else:
            yield full, address, None
            yield from _walk(objects, path, address, f"{full}/", seen)


def _tensor(objects, path, name, address, messages):
    """Returns where a dataset lies; one that lies in several places or elsewhere is an error."""
    kind, shape, layout, offset, size = dataset(messages)
    if Message.ELSEWHERE in messages or layout == VIRTUAL:
        raise UnsafeCheckpointError(f"may not keep a tensor in other files. Received: {name!r:.200}")
    if layout != CONTIGUOUS:
        raise ValueError(
            "it keeps a tensor in pieces or compressed, which Keras does not; undo it by `h5repack -f NONE -l CONTI`. "
            f"Received: {name!r:.200}"
        )
    if size != math.prod(shape) * kind.size or (size and not 0 < offset <= objects.size - size):
        raise ValueError(f"it lacks values. Received: {name!r:.200}")
    opaque = (kind.name, kind.size) == ("opaque", 2)
    bfloat16 = opaque and _texts(objects, objects.attributes(address), "dtype") == ["bfloat16"]
    return Tensor(path, name, "BF16" if bfloat16 else kind.dtype, shape, offset)


def _texts(objects, attributes, name):
    """A list in an attribute, or, where that would be too long, in name0, name1 and so on."""
    names = [name] if name in attributes else takewhile(attributes.__contains__, (f"{name}{i}" for i in count()))
    return [text for name in names for text in objects.texts(attributes[name])]
