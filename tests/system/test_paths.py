"""The paths that people give."""

import os
import time

import pytest

from keras_diffusion import StableDiffusion
from keras_diffusion.checkpoints.formats import tensor_index
from keras_diffusion.system import paths

NOWHERE = ["a" * 5000, "\ud800", "a\0b", "folder/" * 2000 + "x"]


@pytest.fixture
def loop(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return tmp_path / "loop"


@pytest.mark.parametrize("path", NOWHERE)
@pytest.mark.parametrize("read", [paths.existing_file, tensor_index.index])
def test_a_file_that_cannot_be_is_not_there(read, path):
    with pytest.raises(FileNotFoundError, match="There is no such file"):
        read(path)


@pytest.mark.parametrize("path", NOWHERE)
def test_nor_is_a_model(path):
    with pytest.raises(ValueError, match="no such model"):
        StableDiffusion.from_preset(path)


@pytest.mark.parametrize("path", NOWHERE)
@pytest.mark.parametrize("write", [paths.new_file, paths.new_folder])
def test_nothing_can_be_written_there(write, path):
    with pytest.raises(ValueError, match="cannot be written"), write(path):
        pass


def test_links_in_a_circle(loop):
    with pytest.raises(FileNotFoundError, match="no such file"):
        paths.existing_file(loop)
    for write in (paths.new_file, paths.new_folder):
        with pytest.raises(ValueError, match=r"cannot be written.*loop"), write(loop):
            pass


@pytest.mark.parametrize("path", [None, 1, b"bytes", ["list"]])
@pytest.mark.parametrize("check", [paths.existing_file, paths.absolute])
def test_what_is_no_path(check, path):
    with pytest.raises(TypeError, match="`path` must be a path"):
        check(path)


@pytest.mark.parametrize(("path", "kind"), [("/dev/zero", "a device"), ("/", "a folder")])
@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="there are no devices")
def test_a_file_is_a_file(path, kind):
    with pytest.raises(FileNotFoundError, match=f"This is {kind} and no file"):
        paths.existing_file(path)


def test_what_killed_saves_left_is_swept_after_a_day(tmp_path):
    old = time.time() - 2 * paths.ABANDONED
    left, recent = (paths.beside(tmp_path / "model") for _ in range(2))
    left.mkdir()
    (left / "unet").mkdir()
    (left / "unet" / "weights").touch()
    others = [tmp_path / name for name in (".model.0123456789abcdef", "model.0123456789abcdef.part", ".cache")]
    file = paths.beside(tmp_path / ("n" * 250))
    for path in (recent, file, *others):
        path.touch()
    for path in (left, file, *others):
        os.utime(path, (old, old))
    with paths.new_file(tmp_path / "new"):
        pass
    assert {*tmp_path.iterdir()} == {recent, tmp_path / "new", *others}
