"""Every saver when the file system fails or somebody interrupts: nothing is left behind, and the next try succeeds."""

import errno
import os
from contextlib import suppress

import pytest

from keras_diffusion.system.paths import new_folder

from .savers import SAVERS, left

resource = pytest.importorskip("resource")

SIZES = [0, 1, 100, 700]  # bytes of each file that can be written
FAULTS = [OSError(errno.EIO, "broken"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), MemoryError()]


@pytest.fixture(scope="module", autouse=True)
def nothing_reaches_the_disk():
    """What is synchronised is not waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(params=SAVERS)
def saver(request, tmp_path, small, networks):
    """Saves, and says what there should be after a failure."""
    row = SAVERS[request.param]
    if row.old:
        (tmp_path / row.name).write_bytes(b"what was there")
    return lambda: row.save(tmp_path / row.name, small, networks), left(tmp_path)


def test_a_disk_that_is_full(saver, tmp_path):
    save, before = saver
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in SIZES:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(OSError, match="cannot be written, nothing was left behind") as caught:
                save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(tmp_path) in str(caught.value)
        assert left(tmp_path) == before
    save()
    assert left(tmp_path) != before


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_call_that_fails(saver, tmp_path, monkeypatch, function):
    """The first call of a function fails, the second, and so on until one try succeeds."""
    (save, before), original = saver, getattr(os, function)
    for call in range(1, 100):
        calls, fault = [], FAULTS[call % len(FAULTS)]

        def fail(*arguments, calls=calls, call=call, fault=fault, **options):
            calls.append(arguments)
            if len(calls) == call:
                raise fault
            return original(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with suppress(type(fault)):
                save()
        if len(calls) < call:
            break
        assert left(tmp_path) == before, (call, fault)
    assert left(tmp_path) != before


def test_an_empty_folder_stays(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="cannot be written"), new_folder(tmp_path / "out"):
        pass
    assert left(tmp_path) == {"out": None}
