from types import SimpleNamespace

import pytest

from keras_diffusion.architectures import SD14, SDXL
from keras_diffusion.exporting import export as module
from keras_diffusion.exporting.export import export
from keras_diffusion.exporting.formats import FORMATS

MODEL = SimpleNamespace(architecture=SD14)


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_written_over(tmp_path, format):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="something already"):
        export(MODEL, tmp_path, format)


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"saved_model.*tflite"):
        export(MODEL, tmp_path / "out", "tflite")
    with pytest.raises(ValueError, match="SDXL"):
        export(SimpleNamespace(architecture=SDXL), tmp_path / "out", "saved_model")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", [name for name, row in FORMATS.items() if row.packages])
def test_a_missing_package_is_named(tmp_path, monkeypatch, format):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=f"{FORMATS[format].packages[0]}.*pip install"):
        export(MODEL, tmp_path / "out", format)
