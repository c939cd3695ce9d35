"""The folder for what is compiled: one for each version and processor, and never a reason to fail."""

import keras
import numpy as np
import pytest

from keras_diffusion.architectures import TINY
from keras_diffusion.engines import compile_cache
from keras_diffusion.engines.engine import Engine
from keras_diffusion.networks.decoder import Decoder


@pytest.fixture
def chosen(monkeypatch, tmp_path):
    monkeypatch.setenv(compile_cache.SETTING, str(tmp_path / "compiled"))
    return tmp_path / "compiled"


def test_a_folder_for_each_version_and_processor(chosen, monkeypatch):
    folders = [compile_cache.folder("keras")]
    monkeypatch.setattr(compile_cache, "_version", lambda package: "0")
    folders.append(compile_cache.folder("keras"))
    monkeypatch.setattr(compile_cache, "_processor", lambda: "another")
    folders += [compile_cache.folder("keras"), compile_cache.folder("numpy")]
    assert len(set(folders)) == 4
    assert all(folder.is_dir() and folder.parent == chosen for folder in folders)
    assert folders[0].stat().st_mode & 0o077 == 0  # what lies there is run


def test_it_is_in_the_users_cache_unless_told(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(compile_cache.SETTING)
    assert compile_cache.folder("keras").parent == tmp_path / "keras-diffusion" / "compiled"
    monkeypatch.setenv(compile_cache.SETTING, "0")
    assert compile_cache.folder("keras") is None


def test_no_folder_where_none_can_be_made_or_there_is_no_room(chosen, monkeypatch):
    chosen.write_text("a file")
    assert compile_cache.folder("keras") is None
    chosen.unlink()
    full = compile_cache.shutil._ntuple_diskusage(1, 1, 0)
    monkeypatch.setattr(compile_cache.shutil, "disk_usage", lambda path: full)
    assert compile_cache.folder("keras") is None


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="about JAX")
@pytest.mark.parametrize("usable", [True, False])
def test_jax_keeps_what_it_compiles(chosen, monkeypatch, usable):
    import jax

    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", None)  # that of all tests
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if not usable:
        chosen.write_text("a file")
    try:
        images = Engine().decode(Decoder(architecture=TINY), np.zeros((1, 2, 2, 4), "float32"))
        assert images.shape == (1, 16, 16, 3)
        assert any(chosen.glob("jax-*/*")) == usable
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
        jax.experimental.compilation_cache.compilation_cache.reset_cache()


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX is configured otherwise")
def test_other_backends_are_told_where(chosen, monkeypatch):
    name = {"tensorflow": "TF_XLA_FLAGS", "torch": "TORCHINDUCTOR_CACHE_DIR"}[keras.backend.backend()]
    monkeypatch.delenv(name, raising=False)
    Engine()
    import os

    assert str(chosen) in os.environ.pop(name)
    monkeypatch.setenv(compile_cache.SETTING, "")
    Engine()
    assert name not in os.environ


@pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")  # by importing openvino
def test_openvino_keeps_what_it_compiles_where_it_is_told(chosen, monkeypatch):
    pytest.importorskip("openvino")
    decoder, latents = Decoder(architecture=TINY), np.ones((1, 2, 2, 4), "float32")
    first, again = (Engine("openvino").decode(decoder, latents) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    (kept,) = chosen.glob("openvino-*/*.blob")
    kept.unlink()
    monkeypatch.setenv(compile_cache.SETTING, "")
    Engine("openvino").decode(decoder, latents)
    assert not any(chosen.glob("openvino-*/*.blob"))
