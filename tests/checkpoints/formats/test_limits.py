"""What a file states is compared with the limits before memory or time is spent on it."""

import json
import os
import re
import shutil
import time

import keras
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from keras_diffusion import CheckpointError, CheckpointMismatchError, CorruptCheckpointError, StableDiffusion
from keras_diffusion.checkpoints.adapters import lora_file
from keras_diffusion.checkpoints.download.sources import FOLDER
from keras_diffusion.checkpoints.formats import safetensors
from keras_diffusion.checkpoints.layouts import files
from keras_diffusion.checkpoints.layouts.tokenizer_files import read_tokenizer
from keras_diffusion.checkpoints.mapping import loading
from keras_diffusion.images import metadata, reading
from keras_diffusion.networks.keras_internals import no_leftovers
from keras_diffusion.system import limits

ENTRY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def with_header(path, header):
    header = header.encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


HEADERS = {
    "tensors": lambda: json.dumps({f"{i:x}": ENTRY for i in range(limits.TENSORS + 1)}),
    "escaped tensors": lambda: json.dumps({f"{i:x}": ENTRY for i in range(30_000)}).replace('"da', '"\\u0064a'),
    "metadata": lambda: json.dumps({"__metadata__": {f"{i:x}": "" for i in range(60_000)}}),
    "backslashes": lambda: json.dumps({"__metadata__": {f"{i:x}\\": "\\" for i in range(120_000)}}),
    "bytes": lambda: json.dumps({"__metadata__": {"": "x" * limits.HEADER}}),
    "name": lambda: json.dumps({"a" * (limits.NAME + 1): ENTRY}),
    "axes": lambda: json.dumps({"a": {**ENTRY, "shape": [0] * (limits.AXES + 1)}}),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_refuses_headers_beyond_any_model(kind, tmp_path):
    path = with_header(tmp_path / "x.safetensors", HEADERS[kind]())
    begun = time.process_time()
    with pytest.raises(CorruptCheckpointError, match=r"x\.safetensors"):
        safetensors.index(path)
    assert time.process_time() - begun < 1


def test_reads_headers_as_large_as_those_of_real_files(tmp_path):
    words = json.dumps({f"word {i}": i for i in range(40_000)})  # as sd-scripts counts them
    tensors = {f"{'layer.' * 30}{i}": ENTRY for i in range(5000)}
    path = with_header(tmp_path / "x.safetensors", json.dumps({"__metadata__": {"tags": words}} | tensors))
    assert len(safetensors.index(path)) == 5000
    assert safetensors.metadata(path) == {"tags": words}


@pytest.mark.parametrize("name", ["attn2.to_k" * 20, "lora_te2_" * 20, "string_to_param" * 13, "a" * 200])
def test_families_are_told_in_linear_time(name):
    class Shaped:
        shape = (1,)

    tensors = {f"{name}{i}": Shaped for i in range(10_000)}
    begun = time.process_time()
    list(loading.families(tensors, lora_file.FAMILIES | loading.FAMILIES))
    assert time.process_time() - begun < 2


def test_messages_name_many_tensors_and_lists_all():
    error = loading.mismatch([], [f"tensor {i}" for i in range(5000)], [], [])
    assert len(error.missing) == 5000
    assert len(str(error).splitlines()) < limits.SHOWN + 10
    assert f"and {5000 - limits.SHOWN} more" in str(error)


CONFIGS = {  # file, option → value
    ("unet/config.json", "block_out_channels"): 64,
    ("vae/config.json", "block_out_channels"): {},
    ("unet/config.json", "layers_per_block"): 64,
    ("unet/config.json", "transformer_layers_per_block"): 64,
    ("vae/config.json", "layers_per_block"): 64,
    ("text_encoder/config.json", "num_hidden_layers"): 64,
    ("unet/config.json", "attention_head_dim"): [8] * 200,
    ("scheduler/scheduler_config.json", "beta_start"): [[1, 2]],
    ("scheduler/scheduler_config.json", "trained_betas"): "epsilon",
    ("scheduler/scheduler_config.json", "num_train_timesteps"): "1000",
    ("scheduler/scheduler_config.json", "_class_name"): {"a": 1},
    ("tokenizer/special_tokens_map.json", "pad_token"): [1],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shutil.copytree(FOLDER / "emoji", tmp_path_factory.mktemp("limits") / "emoji")


@pytest.mark.parametrize(("file", "option"), CONFIGS)
def test_configurations_are_refused_by_name_before_anything_is_built(file, option, folder):
    path = folder / file
    whole = path.read_bytes()
    path.write_text(json.dumps(json.loads(whole) | {option: CONFIGS[file, option]}))
    begun = time.process_time()
    with pytest.raises(CheckpointMismatchError) as caught:
        StableDiffusion.from_preset(folder)
    path.write_bytes(whole)
    assert str(folder) in str(caught.value)
    assert time.process_time() - begun < 1


@pytest.mark.parametrize("text", ["[" + "[]," * 400_000 + "[]]", '{"a": ' + "[" * 100_000, "\x00", "[]", "NaN"])
def test_json_is_read_within_limits(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(CorruptCheckpointError, match=r"config\.json"):
        files.read_json(path)


def test_an_index_may_name_files_that_no_file_system_has(tmp_path):
    name = "a" * 100_000 + ".safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(CorruptCheckpointError, match="a file that is missing"):
        files.weights(tmp_path, "model")


def test_networks_that_were_refused_leave_nothing_to_initialize():
    def build():
        with keras.StatelessScope(initialize_variables=False):
            return keras.Variable("zeros", shape=(2,))

    def fail():
        lost.append(build())
        raise CheckpointError

    kept, lost = build(), []
    with pytest.raises(CheckpointError), no_leftovers():
        fail()
    with keras.StatelessScope():
        pass  # at its end, Keras initializes all that wait
    np.testing.assert_array_equal(kept.numpy(), 0)
    assert lost[0]._value is None


@pytest.mark.parametrize("count", [limits.IMAGE_TEXTS, limits.IMAGE_TEXTS + 1, 60])
@pytest.mark.parametrize("read", [metadata.read, lambda path: reading.read_images("image", path)])
def test_texts_of_a_png_are_counted_before_they_are_unpacked(read, count, tmp_path):
    texts = PngImagePlugin.PngInfo()
    for i in range(count):
        texts.add_itxt(f"text {i}", "x" * 1000 + "\U0001f600", zip=True)
    Image.new("RGB", (8, 8)).save(path := tmp_path / "x.png", pnginfo=texts)
    if count > limits.IMAGE_TEXTS:
        with pytest.raises(ValueError, match=r"x\.png"):
            read(path)
    else:
        read(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
@pytest.mark.parametrize(
    "read", [safetensors.index, metadata.read, lambda path: reading.read_images("image", path), files.read_json]
)
def test_pipes_are_refused(read, tmp_path):
    os.mkfifo(tmp_path / "p.png")
    with pytest.raises((ValueError, FileNotFoundError), match="a pipe and no file"):
        read(tmp_path / "p.png")


@pytest.mark.parametrize("words", [{f"<w{i}>": 49408 + i for i in range(limits.WORDS + 1)}, {"a": 1e999}, {"a": 49408}])
def test_words_of_a_tokenizer_are_bounded_and_new(words, tmp_path):
    (tmp_path / "added_tokens.json").write_text(json.dumps(words))
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        read_tokenizer(tmp_path)
