import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import keras
import pytest

from keras_diffusion import StableDiffusion
from keras_diffusion.architectures import SD14, SDXL
from keras_diffusion.exporting import export as module
from keras_diffusion.exporting.export import export
from keras_diffusion.exporting.formats import FORMATS

from ..small import SMALL

MODEL = SimpleNamespace(architecture=SD14)


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_written_over(tmp_path, format):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="something already"):
        export(MODEL, tmp_path, format, "float32")


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"saved_model.*tflite"):
        export(MODEL, tmp_path / "out", "tflite", "float32")
    with pytest.raises(ValueError, match=r"float32, float16.*bfloat16"):
        export(MODEL, tmp_path / "out", "onnx", "bfloat16")
    for other in SDXL, replace(SD14, diffusion_model=replace(SD14.diffusion_model, guidance_width=256)):
        with pytest.raises(ValueError, match="SDXL and networks that take the guidance"):
            export(SimpleNamespace(architecture=other), tmp_path / "out", "saved_model", "float32")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", [name for name, row in FORMATS.items() if row.packages])
def test_a_missing_package_is_named(tmp_path, monkeypatch, format):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=f"{FORMATS[format].packages[0]}.*pip install"):
        export(MODEL, tmp_path / "out", format, "float32")


@pytest.mark.parametrize(("backend", "dtype"), [("jax", "float32"), ("tensorflow", "mixed_float16")])
def test_another_process_exports_where_this_one_cannot(tmp_path, monkeypatch, backend, dtype):
    """It runs the command line on a copy of the model, in float32."""

    def run(command, env, **options):
        *start, preset, folder, _, format, _, stored, _, height, _, width = command
        assert start == [sys.executable, "-m", "keras_diffusion", "export"]
        assert (folder, format, stored) == (tmp_path / "out", "litert", "float16")
        assert (height, width) == ("16", "12")
        assert env["KERAS_BACKEND"] == FORMATS["litert"].backend
        assert (preset / "model_index.json").is_file()
        return subprocess.CompletedProcess(command, 1, stderr="no space")

    model = StableDiffusion(16, 12, preset=SMALL, dtype=dtype)
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RuntimeError, match="failed: no space"):
        model.export(tmp_path / "out", "litert", "float16")


def test_weights_that_overflow_are_named(tmp_path):
    pytest.importorskip("onnx")
    model = StableDiffusion(preset=SMALL)
    bias = model.decoder.get_layer("conv_in").bias
    bias.assign(bias + 1e5)
    with pytest.raises(ValueError, match=r"finite in float16.*decoder/conv_in/bias"):
        model.export(tmp_path / "out", "onnx", "float16")
    assert not (tmp_path / "out").exists()
