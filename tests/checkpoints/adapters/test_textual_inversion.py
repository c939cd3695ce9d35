"""Textual inversions: files of every form, and what prompts become with them."""

import copy
import json

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from keras_diffusion import (
    CheckpointError,
    CheckpointMismatchError,
    CorruptCheckpointError,
    SimpleTokenizer,
    StableDiffusion,
)
from keras_diffusion.checkpoints.adapters import textual_inversion as reader
from keras_diffusion.checkpoints.adapters.lora_fusion import Loras
from keras_diffusion.checkpoints.formats.tensors import read
from keras_diffusion.checkpoints.layouts.tokenizer_files import read_tokenizer

from ...golden import lora, networks, textual_inversion

WIDTH = lora.ARCHITECTURE.text_encoder.width
VECTORS = networks.uniform("vectors", (3, WIDTH))
PROMPTS = ["a cat", "a <thing> and a cat"]


@pytest.fixture(scope="module")
def built():
    model = StableDiffusion(preset=lora.ARCHITECTURE)
    networks.fill(model.text_encoder, "text_encoder", lora.ARCHITECTURE)
    return model


@pytest.fixture
def model(built):
    """A model of its own but for the networks, which learning a word leaves as they are."""
    model = copy.copy(built)
    model.tokenizer, model._loras = SimpleTokenizer(), Loras()
    yield model
    model.unload_lora()


@pytest.fixture
def write(tmp_path):
    """Writes tensors as a file."""

    def write(tensors, name="thing.safetensors"):
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    return write


def table(model):
    [variable] = [variable for variable in model.text_encoder.variables if variable.path == reader.EMBEDDING]
    return np.array(keras.ops.convert_to_numpy(variable), "float32")


def state(model):
    return (
        model.text_encoder,
        model.tokenizer.vocab_size,
        [np.array(keras.ops.convert_to_numpy(variable)).tobytes() for variable in model.text_encoder.variables],
    )


def deviation(model, folder):
    """How far the contexts are from the fixture's."""
    for path in textual_inversion.write(folder):
        model.load_textual_inversion(path)
    with np.load(textual_inversion.FIXTURE) as fixture:
        return np.abs(model.encode_text(textual_inversion.PROMPTS) - fixture["context"]).max()


@pytest.mark.backend
def test_context_is_that_of_diffusers(model, tmp_path):
    assert deviation(model, tmp_path) < 1e-5


def test_the_fixture_shows_the_order_of_vectors(model, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "read", lambda tensor: read(tensor)[::-1])
    assert deviation(model, tmp_path) > 1e-2


@pytest.mark.parametrize(
    ("tensors", "token", "expected"),
    [
        ({"<thing>": VECTORS}, None, "<thing>"),
        ({"<other>": VECTORS}, "<thing>", "<thing>"),
        ({"emb_params": VECTORS}, "<thing>", "<thing>"),
        ({"emb_params": VECTORS}, None, "<file thing>"),
        ({"string_to_param.*": VECTORS, "string_to_token.*": np.array(265)}, None, "<file thing>"),
    ],
)
def test_files_of_every_form(model, write, tensors, token, expected):
    before = table(model)
    assert model.load_textual_inversion(write(tensors, "<file thing>.safetensors"), token) == expected
    assert model.tokenizer.vocab_size == 49411
    np.testing.assert_array_equal(table(model), np.concatenate([before, VECTORS]))
    tokens = model.tokenizer.encode(f"a {expected} in red")
    assert tokens[2:5] == [49408, 49409, 49410]
    assert len(tokens) == 8


def test_a_vector_may_be_alone(model, write):
    model.load_textual_inversion(write({"<one>": VECTORS[0]}))
    np.testing.assert_array_equal(table(model)[-1], VECTORS[0])


@pytest.mark.backend
@pytest.mark.parametrize("dtype", ["mixed_float16", "bfloat16"])
def test_other_prompts_stay_as_they_were(write, dtype):
    model = StableDiffusion(preset=lora.ARCHITECTURE, dtype=dtype)
    known, plain = model.encode_text(PROMPTS[0]), model.encode_text(PROMPTS[1])
    model.load_textual_inversion(write({"<thing>": VECTORS}))
    assert model.text_encoder.layers[-1].dtype_policy.name == dtype
    np.testing.assert_array_equal(model.encode_text(PROMPTS[0]), known)
    assert not np.array_equal(model.encode_text(PROMPTS[1]), plain)


def test_several_words_and_a_lora(model, write):
    before = model.encode_text(PROMPTS[0])
    model.load_lora(lora.FILES["peft"])
    changed = model.encode_text(PROMPTS[0])
    model.load_textual_inversion(write({"<thing>": VECTORS}))
    model.load_lora(lora.FILES["kohya"])
    model.load_textual_inversion(write({"<thing two>": VECTORS[:2]}))
    assert model.tokenizer.encode("<thing two> <thing>")[1:-1] == [49411, 49412, 49408, 49409, 49410]

    model.unload_lora("lora_kohya")
    np.testing.assert_array_equal(model.encode_text(PROMPTS[0]), changed)
    model.unload_lora()
    np.testing.assert_array_equal(model.encode_text(PROMPTS[0]), before)


def test_the_larger_text_encoder_can_be_saved_alone(model, write, tmp_path):
    model.load_textual_inversion(write({"<thing>": VECTORS}))
    model.text_encoder.save(tmp_path / "text_encoder.keras")
    again = keras.models.load_model(tmp_path / "text_encoder.keras")
    assert again.get_config() == model.text_encoder.get_config()
    for ours, theirs in zip(again.variables, model.text_encoder.variables, strict=True):
        np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(variable) for variable in (ours, theirs)))


def test_a_single_file_has_no_place_for_words(model, write, tmp_path):
    model.load_textual_inversion(write({"<thing>": VECTORS}))
    with pytest.raises(ValueError, match=r"no place for the words.*Received: .*<thing>"):
        model.export_checkpoint(tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_a_folder_keeps_words_and_gives_them_to_all(model, write, tmp_path):
    """What is saved, transformers and this library read alike, also after `unload`."""
    transformers = pytest.importorskip("transformers")
    model.load_textual_inversion(write({"<thing>": VECTORS}))
    expected = model.encode_text("a <thing>, b")
    model.save_to_preset(tmp_path / "folder")

    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "folder" / "tokenizer")
    assert theirs("a <thing> <thing>_1 <thing>_2")["input_ids"][2:5] == [49408, 49409, 49410]
    again = StableDiffusion.from_preset(tmp_path / "folder")
    again.unload()
    np.testing.assert_array_equal(again.encode_text("a <thing>, b"), expected)
    again.load_textual_inversion(write({"<thing two>": VECTORS[:1]}))
    assert again.tokenizer.encode("<thing two>")[1:-1] == [49411]
    with pytest.raises(ValueError, match=r"would lose the words \['<thing two>'\]"):
        again.unload()

    words = tmp_path / "folder/tokenizer/added_tokens.json"
    words.rename(tmp_path / "added_tokens.json")
    with pytest.raises(CheckpointMismatchError, match="knows 49411 tokens and the tokenizer 49408"):
        StableDiffusion.from_preset(tmp_path / "folder")
    own = SimpleTokenizer()
    own.add_tokens("<thing>", 3)
    for tokenizer in (tmp_path / "added_tokens.json", own):
        given = StableDiffusion.from_preset(tmp_path / "folder", tokenizer=tokenizer)
        np.testing.assert_array_equal(given.encode_text("a <thing>, b"), expected)


def test_words_are_found_wherever_a_tokenizer_lists_them(tmp_path):
    entries = {
        "tokenizer_config.json": {"added_tokens_decoder": {"49408": {"content": "<a>"}, "0": {"content": "!"}}},
        "tokenizer.json": {"added_tokens": [{"id": 49408, "content": "<a>"}, {"id": 49409, "content": "<a>_1"}]},
        "added_tokens.json": {"<A>": 49408},
    }
    for name, content in entries.items():
        (tmp_path / name).write_text(json.dumps(content))
        assert read_tokenizer(tmp_path).encode("<a>")[1] == 49408
        (tmp_path / name).unlink()
    for wrong in ({"<a>": 49410}, {"<a>": "x"}):
        (tmp_path / "added_tokens.json").write_text(json.dumps(wrong))
        with pytest.raises(CheckpointError, match=r"Received|lists no words"):
            read_tokenizer(tmp_path)
    with pytest.raises(TypeError, match="where its files are"):
        read_tokenizer(3)


WRONG = {  # what is wrong → (tensors, words of the message)
    "width of SD 1": ({"<a b>": np.zeros((1, 768), "float32")}, "of Stable Diffusion 1; this text encoder"),
    "width of SD 2": ({"<a b>": np.zeros(1024, "float32")}, "of Stable Diffusion 2"),
    "width": ({"<a b>": np.zeros((2, 15), "float32")}, "of another model"),
    "SDXL": ({"clip_l": np.zeros((1, 768), "float32"), "clip_g": np.zeros((1, 1280), "float32")}, "like one for SDXL"),
    "axes": ({"<a b>": np.zeros((1, 1, WIDTH), "float32")}, "shape"),
    "scalar": ({"<a b>": np.zeros((), "float32")}, "shape"),
    "none": ({}, "and not 0"),
    "no vectors": ({"<a b>": np.zeros((0, WIDTH), "float32")}, "has 0 vectors"),
    "too many": ({"<a b>": np.zeros((76, WIDTH), "float32")}, "room for 1 to 75"),
    "dtype": ({"<a b>": np.zeros((1, WIDTH), "int32")}, "dtype I32"),
    "NaN": ({"<a b>": np.full((1, WIDTH), np.nan, "float32")}, "holds nan"),
    "a LoRA": ({"lora_unet_x.lora_down.weight": VECTORS, "lora_unet_x.lora_up.weight": VECTORS}, "like a LoRA"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_changes_nothing(model, write, case):
    tensors, words = WRONG[case]
    before = state(model)
    with pytest.raises(CheckpointMismatchError, match=words) as caught:
        model.load_textual_inversion(write(tensors))
    assert "Received: path=" in str(caught.value)
    assert state(model) == before


def test_vectors_that_overflow(write):
    model = StableDiffusion(preset=lora.ARCHITECTURE, dtype="float16")
    with pytest.raises(CheckpointMismatchError, match="overflows in float16"):
        model.load_textual_inversion(write({"<thing>": VECTORS * 1e6}))


@pytest.mark.parametrize(
    ("token", "error", "message"),
    [
        ("cat", ValueError, "is token"),
        ("<Thing>", ValueError, "is token 49408 already"),
        (" ", ValueError, "is empty"),
        (["<a>", "<b>"], TypeError, "`token` must be a str"),
        (3, TypeError, "`token` must be a str"),
    ],
)
def test_a_word_must_be_new(model, write, token, error, message):
    path = write({"<thing>": VECTORS})
    model.load_textual_inversion(path)
    before = state(model)
    with pytest.raises(error, match=message):
        model.load_textual_inversion(path, token)
    assert state(model) == before


def test_every_token_needs_a_vector(model, write):
    model.tokenizer.add_tokens("<mine>")
    with pytest.raises(ValueError, match="Received: 49408 vectors, 49409 tokens"):
        model.load_textual_inversion(write({"<thing>": VECTORS}))


def test_files_that_are_none(model, tmp_path):
    (tmp_path / "page.pt").write_text("<html>" + " " * 100)
    with pytest.raises(CorruptCheckpointError, match="HTML"):
        model.load_textual_inversion(tmp_path / "page.pt")
    with pytest.raises(FileNotFoundError, match="no such file"):
        model.load_textual_inversion(tmp_path / "nothing.pt")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("form", ["diffusers", "webui"])
def test_pickles(model, tmp_path, form, legacy):
    torch = pytest.importorskip("torch")
    vectors = torch.from_numpy(VECTORS)
    contents = {
        "diffusers": {"<thing>": vectors},
        "webui": {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": torch.nn.Parameter(vectors)},
            "name": "thing",
            "step": 500,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
        },
    }
    path = tmp_path / "<thing>.pt"
    torch.save(contents[form], path, _use_new_zipfile_serialization=not legacy)
    assert model.load_textual_inversion(path) == "<thing>"
    np.testing.assert_array_equal(table(model)[-3:], VECTORS)
