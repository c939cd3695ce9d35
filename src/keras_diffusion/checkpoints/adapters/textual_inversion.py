"""Textual inversion: new words for the tokenizer, and what the text encoder sees in them.

Source: Gal et al. 2022, arXiv:2208.01618. The files are those of diffusers ({"<word>": vectors}) and of
AUTOMATIC1111/stable-diffusion-webui ({"string_to_param": {"*": vectors}}, or {"emb_params": vectors}).
"""

import re
from itertools import islice
from pathlib import Path

import numpy as np
from keras import ops

from keras_diffusion.arguments import choice
from keras_diffusion.checkpoints.formats import safetensors, tensor_index
from keras_diffusion.checkpoints.formats.tensors import DTYPES, largest, read
from keras_diffusion.checkpoints.layouts.files import new_file
from keras_diffusion.checkpoints.mapping import loading
from keras_diffusion.errors import CheckpointMismatchError

FORMATS = {"diffusers": "{}", "webui": "emb_params"}  # of files → what the one tensor is called, "{}" for the word
EMBEDDING = "embeddings_token_embedding/embeddings"  # path of the text encoder's table
NAMELESS = re.compile(r"emb_params|string_to_param\b.*")  # the vectors of the word that the file is called
MEANINGLESS = re.compile(r"string_to_token\b.*")  # tensors that say nothing
WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "SDXL"}
FAMILIES = {"one for SDXL": r"^clip_[gl] ", **loading.FAMILIES}


def load(path, token, text_encoder, tokenizer):
    """Adds a word to a tokenizer and builds the text encoder that knows it; see `StableDiffusion`.

    Returns:
        The `TextEncoder`, and the word.
    """
    if not isinstance(token, str | None):
        raise TypeError(f"`token` must be a str. Received: token={token!r:.200}")
    if (known := text_encoder.get_config()["vocab_size"]) != tokenizer.vocab_size:
        raise ValueError(
            "The text encoder must have one vector for each token of the tokenizer. "
            f"Received: {known} vectors, {tokenizer.vocab_size} tokens"
        )
    word, vectors = read_embedding(path, text_encoder)
    word = word if token is None else token
    larger = with_vectors(text_encoder, vectors)
    tokenizer.add_tokens(word, len(vectors))
    return larger, word


def refuse_words(tokenizer):
    """Raises an error where a tokenizer has words that a checkpoint has no place for."""
    if words := list(tokenizer.added_tokens):
        raise ValueError(
            "A checkpoint has no place for the words of textual inversions; save the model before they are loaded, "
            f"and load them again after it. Received: a model with {words!r:.200}"
        )


def read_embedding(path, text_encoder):
    """Reads what a file teaches.

    Args:
        path: The file, safetensors or a pickle.
        text_encoder: The `TextEncoder` that is to learn it.

    Returns:
        The word, and its vectors, a float array (n, width).

    Raises:
        CheckpointMismatchError: If the file holds anything but finite vectors of the text encoder's width, at most as
            many as a prompt has room for.
        CorruptCheckpointError: If the file is damaged or of another kind.
    """
    tensors = {name: tensor for name, tensor in tensor_index.index(path).items() if not MEANINGLESS.fullmatch(name)}
    if len(tensors) != 1:
        looks = "".join(f"; it looks like {family}" for family in islice(loading.families(tensors, FAMILIES), 1))
        raise CheckpointMismatchError(
            f"A textual inversion holds one tensor, the vectors of its word, and not {len(tensors)}{looks}. "
            f"Received: path={str(path)!r:.200}"
        )
    [(name, tensor)] = tensors.items()
    if wrong := next(header_problems(tensor, text_encoder), None):
        raise CheckpointMismatchError(
            f"The textual inversion does not fit the model: {loading.printable(name)} {wrong}. "
            f"Received: path={str(path)!r:.200}",
            mismatched=[name],
        )
    return Path(path).stem if NAMELESS.fullmatch(name) else name, read(tensor).reshape(-1, tensor.shape[-1])


def header_problems(tensor, text_encoder):
    """Yields why a tensor cannot be the vectors of a word."""
    table = next(variable for variable in text_encoder.variables if variable.path == EMBEDDING)
    width, room = table.shape[1], text_encoder.architecture.text_encoder.length - 2  # start and end of text
    if tensor.dtype not in DTYPES:
        yield f"has dtype {tensor.dtype}, not one of {', '.join(DTYPES)}"
    if len(tensor.shape) not in (1, 2) or tensor.shape[-1] != width:
        theirs, ours = (WIDTHS.get(x, "another model") for x in ((0, *tensor.shape)[-1], width))
        yield f"has shape {tensor.shape}, of {theirs}; this text encoder's vectors have width {width}, of {ours}"
    if not 1 <= tensor.size // width <= room:
        yield f"has {tensor.size // width} vectors; a prompt has room for 1 to {room}"
    yield from loading.value_problems(largest(tensor), table.dtype)


def with_vectors(text_encoder, vectors):
    """Builds a text encoder of more words.

    Args:
        text_encoder: A `TextEncoder`.
        vectors: What the new words mean, (n, width): they get the next n tokens.

    Returns:
        A `TextEncoder` with the same values in variables of its own.
    """
    config = text_encoder.get_config()
    config["vocab_size"] += len(vectors)
    config["architecture"]["text_encoder"]["vocabulary"] = config["vocab_size"]
    larger = type(text_encoder).from_config({**config, "initialize": False})
    for variable, known in zip(larger.variables, text_encoder.variables, strict=True):
        value = known.value
        if known.path == EMBEDDING:
            value = ops.concatenate([value, ops.convert_to_tensor(vectors, known.dtype)])
        variable.assign(value)
    return larger


def save(path, word, vectors, format="diffusers"):
    """Writes the vectors of a word.

    Args:
        path: A new .safetensors file.
        word: The word, such as "<cat-toy>".
        vectors: float32 (n, width).
        format: "diffusers", which holds the word; or "webui" (A1111, Forge, ComfyUI), where the file is called as the
            word.

    Raises:
        FileExistsError: If there is something at `path`.
        ValueError: If `format` is another one, the file's name ends otherwise, or a value is not finite.
    """
    path = Path(path)
    choice("format", format, FORMATS)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"The file's name must end in .safetensors. Received: path={str(path)!r:.200}")
    if not np.isfinite(vectors).all():
        raise ValueError(f"Vectors must be finite. Received: those of {word!r:.200} with inf or NaN")
    name = FORMATS[format].format(word)
    with new_file(path) as file:
        safetensors.write(file, "float32", {name: vectors.shape}, [vectors])
