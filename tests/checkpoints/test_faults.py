"""Every saver when the file system fails or somebody interrupts: nothing is left behind, and the next try succeeds."""

import errno
import os
from contextlib import suppress

import numpy as np
import pytest

from keras_diffusion.checkpoints.layouts import diffusers_folder, keras_files, single_file
from keras_diffusion.cli import generate

resource = pytest.importorskip("resource")

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), "uint8")
SAVERS = {
    "folder": lambda path, small, networks: diffusers_folder.save(path / "out", small, **networks),
    "file": lambda path, small, networks: single_file.save(path / "out.safetensors", small, **networks),
    "Keras 2": lambda path, small, networks: keras_files.write(path / "out.h5", networks["decoder"]),
    "Keras 3": lambda path, small, networks: keras_files.write(path / "out.weights.h5", networks["decoder"]),
    "PNG": lambda path, small, networks: generate.save(IMAGE, path / "out.png", None),
    "JPEG": lambda path, small, networks: generate.save(IMAGE, path / "out.jpg", None),
}
OLD = b"an image that was there"


@pytest.fixture(params=SAVERS)
def saver(request, tmp_path, small, networks):
    """Saves, and says what there should be after a failure."""
    before = {}
    if request.param in ("PNG", "JPEG"):
        path = tmp_path / {"PNG": "out.png", "JPEG": "out.jpg"}[request.param]
        path.write_bytes(OLD)
        before = {path: OLD}
    return lambda: SAVERS[request.param](tmp_path, small, networks), before


def left(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


@pytest.mark.parametrize("size", [0, 1, 100, 700])
def test_a_disk_that_is_full(saver, tmp_path, size):
    """Of every file, only the first bytes can be written."""
    save, before = saver
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot be written, nothing was left behind.*out"):
            save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left(tmp_path) == before
    save()
    assert left(tmp_path) != before


@pytest.mark.parametrize("fault", [OSError(errno.EIO, "broken"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize(("function", "call"), [("replace", 1), ("fsync", 1), ("fsync", 2)])
def test_a_call_that_fails(saver, tmp_path, monkeypatch, function, call, fault):
    save, before = saver
    calls, original = [], getattr(os, function)

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise fault
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with suppress(type(fault)):
            save()
    if len(calls) >= call:  # a single file is synchronised once
        assert left(tmp_path) == before
        save()
    assert left(tmp_path) != before
