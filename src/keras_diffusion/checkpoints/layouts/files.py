"""The files of a checkpoint folder: found, read and written with care."""

import json
import os
import re
from contextlib import contextmanager

from keras_diffusion.errors import (
    CheckpointError,
    CheckpointMismatchError,
    CorruptCheckpointError,
    UnsafeCheckpointError,
)
from keras_diffusion.system import limits
from keras_diffusion.system.paths import existing_file
from keras_diffusion.system.paths import new_file as new_file
from keras_diffusion.system.paths import new_folder as new_folder
from keras_diffusion.system.paths import require_vacant as require_vacant

CONFIGS = {  # part → its configuration: the first of these files that is there
    "model_index": ("model_index.json",),
    "text_encoder": ("text_encoder/config.json",),
    "unet": ("unet/config.json",),
    "vae": ("vae/config.json",),
    "scheduler": ("scheduler/scheduler_config.json",),
    "tokenizer": ("tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json"),
    "text_encoder_2": ("text_encoder_2/config.json",),
    "tokenizer_2": ("tokenizer_2/special_tokens_map.json", "tokenizer_2/tokenizer_config.json"),
}
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}  # part → its tokenizer
WEIGHTS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
KERAS_CV = {  # network → names of its file: KerasCV's downloads, and what people call their own
    "text_encoder": ("kcv_encoder.h5", "text_encoder_v2_1.h5", "text_encoder.weights.h5", "text_encoder.h5"),
    "diffusion_model": (
        "kcv_diffusion_model.h5",
        "diffusion_model_v2_1.h5",
        "diffusion_model.weights.h5",
        "diffusion_model.h5",
    ),
    "decoder": ("kcv_decoder.h5", "decoder.weights.h5", "decoder.h5"),
    "image_encoder": ("vae_encoder.h5", "image_encoder.weights.h5", "image_encoder.h5"),
}
FORMATS = {".safetensors": {}, ".bin": {"model": "pytorch_model"}}  # of weights → names that begin otherwise in it
VARIANTS = ("", ".fp16")  # of weights; the first format and variant that is there is taken, damaged or not
FILE_NAME = re.compile(r"\w[\w.-]*")


def parts(model_index):
    """Lists the parts in `CONFIGS` that a model has: all but the text encoders that its model_index.json leaves out."""
    classes = {part: model_index.get(part) for part in TOKENIZERS}
    encoders = [part for part, names in classes.items() if isinstance(names, list) and any(names)]
    absent = TOKENIZERS.keys() - (encoders or ["text_encoder"])
    return [part for part in CONFIGS if part not in absent and part not in {TOKENIZERS[name] for name in absent}]


def weights(folder, stem):
    """Lists the files that hold the weights of one part of a model.

    Args:
        folder: The part's folder.
        stem: What the names of its files begin with.

    Returns:
        A list of `Path`: one file, or those that an index lists.

    Raises:
        CorruptCheckpointError: If there is none, or one that the index lists is missing.
        UnsafeCheckpointError: If the index lists anything but names of files beside it.
    """
    for suffix, names in FORMATS.items():
        name = names.get(stem, stem)
        for variant in VARIANTS:
            path, index = folder / f"{name}{variant}{suffix}", folder / f"{name}{suffix}.index{variant}.json"
            if path.is_file():
                return [path]
            if index.is_file():
                return _shards(index, suffix)
    raise CorruptCheckpointError(
        f"The weights {folder.name}/{stem}.safetensors are missing. Received: path={str(folder)!r:.200}"
    )


def _shards(index, suffix):
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict):
        raise CorruptCheckpointError(f"{index} has no weight_map. Received: weight_map={names!r:.200}")
    names = sorted(set(map(str, names.values())))
    for name in names:
        if not (FILE_NAME.fullmatch(name) and name.endswith(suffix)):
            raise UnsafeCheckpointError(f"{index} may only list {suffix} files beside it. Received: {name!r:.200}")
        if not os.path.isfile(index.parent / name):
            raise CorruptCheckpointError(f"{index} lists a file that is missing. Received: {name!r:.200}")
    return [index.parent / name for name in names]


def keras_cv_file(folder, network):
    """The file of a network among KerasCV's in a folder, or None."""
    return next((folder / name for name in KERAS_CV[network] if (folder / name).is_file()), None)


def is_keras_cv(folder):
    """Tells whether a folder holds KerasCV's files; the image encoder's may be missing."""
    return all(keras_cv_file(folder, network) for network in KERAS_CV if network != "image_encoder")


def read_json(path, largest=limits.JSON):
    """Reads a JSON file that holds an object.

    Args:
        path: The file.
        largest: How many bytes it may have.

    Raises:
        CorruptCheckpointError: If it holds anything else.
    """
    try:
        with open(existing_file(path), "rb") as file:
            text = file.read(largest + 1)
        if len(text) > largest:
            raise ValueError(f"it has more than {largest} bytes")
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path} is not JSON: {error!s:.200}. Fetch it again.") from error
    if not isinstance(content, dict):
        raise CorruptCheckpointError(f"{path} must hold a JSON object. Received: {content!r:.200}")
    return content


@contextmanager
def naming(path):
    """Turns every error about the content of a file into one of ours that names the file."""
    try:
        yield
    except CheckpointError as error:
        if str(path) not in str(error):
            error.args = (f"{path}: {error}", *error.args[1:])
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointMismatchError(
            f"{path} describes no model that can be loaded: {error!s:.400}. Give another one, or correct it."
        ) from error


def write_json(path, content):
    """Writes a JSON file, its folder too; the same content makes the same bytes."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
