"""Names and paths of models."""

from pathlib import Path

import pytest

from keras_diffusion.architectures import ARCHITECTURES
from keras_diffusion.checkpoints import presets
from keras_diffusion.checkpoints.download import sources
from keras_diffusion.checkpoints.layouts import single_file
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError, OfflineError


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """A bundled model in a place of its own."""
    folder = tmp_path / "weights" / "emoji"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model_index.json").write_text("{}")
    monkeypatch.setattr(presets, "FOLDER", folder.parent)
    return folder


def test_finds_a_bundled_model(bundled):
    assert presets.find("emoji") == bundled


def test_a_folder_has_no_moving_averages():
    with pytest.raises(CheckpointMismatchError, match="Only single files hold moving averages"):
        presets.read("emoji", ema=True)


@pytest.mark.parametrize("kind", [str, Path])
def test_finds_a_folder(bundled, kind):
    assert presets.find(kind(bundled)) == bundled


@pytest.mark.parametrize("kind", [str, Path])
def test_finds_a_file(tmp_path, kind):
    (tmp_path / "any.name").write_bytes(b"")
    assert presets.find(kind(tmp_path / "any.name")) == tmp_path / "any.name"


@pytest.mark.backend
def test_reads_what_it_finds(saved, networks, small, tmp_path):
    single_file.save(tmp_path / "a.bin", small, **networks)
    for path in (saved, tmp_path / "a.bin"):
        assert presets.read(path).path == path
        assert presets.read(path).architecture == small
        assert presets.read(path, "sample").architecture.prediction_type == "sample"
    (tmp_path / "a.bin").write_bytes(b"<html>")
    with pytest.raises(CorruptCheckpointError):
        presets.read(tmp_path / "a.bin")


def test_a_folder_may_be_relative(bundled, monkeypatch):
    monkeypatch.chdir(bundled.parents[1])
    assert presets.find("elsewhere") == Path("elsewhere")


@pytest.mark.parametrize("name", [name for name, entry in sources.MANIFEST.items() if entry])
def test_says_how_to_get_a_known_model(name, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_DIFFUSION_HOME", str(tmp_path))
    model = sources.source(name)
    with pytest.raises(OfflineError) as caught:
        presets.find(name)
    message = str(caught.value)
    asked = name if model.files else f"hf://{model.repository}@{model.revision}"
    assert f"StableDiffusion.from_preset({asked!r})" in message
    assert all(file in message for file in model.files)
    assert model.licence in message


def test_says_when_the_bundled_model_is_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    with pytest.raises(OfflineError, match="install it again"):
        presets.find("emoji")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "unknown",
        "EMOJI",
        "emoji/",
        "./emoji",
        "../elsewhere",
        "emoji/../../elsewhere",
        "..\\elsewhere",
        "/etc",
        "C:\\Windows",
        "hf://owner/../name",
        "https://example.com/model",
        "x" * 100_000,
        "nul\0byte",
        "\ud800",
    ],
)
def test_a_name_never_becomes_part_of_a_path(bundled, name):
    with pytest.raises(ValueError, match=r"Received: preset=") as caught:
        presets.find(name)
    assert "emoji" in str(caught.value) or name.startswith("hf://")
    assert len(str(caught.value)) < 1000


def test_says_what_a_path_is_instead(bundled):
    with pytest.raises(ValueError, match=r"a folder without model_index\.json.*text_encoder\.h5"):
        presets.find(bundled.parent)


@pytest.mark.parametrize("preset", [None, 7, b"emoji", ["emoji"]])
def test_refuses_other_types(preset):
    with pytest.raises(TypeError, match="Received: preset="):
        presets.find(preset)


def test_the_manifest_knows_the_architectures():
    brought = {"tiny", "tiny_sd", "lcm", "sdxl", "sdxl_refiner", "sdxl_inpainting", "sdxl_turbo", "ssd_1b", "vega"}
    assert ARCHITECTURES.keys() - sources.MANIFEST.keys() == brought
