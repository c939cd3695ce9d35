"""Captions of the images of a folder, from wherever they are written."""

import json

import numpy as np
import pytest
from PIL import Image

from keras_diffusion.training.folder import records


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.jpg", "c.webp"):
        Image.fromarray(np.zeros((8, 8, 3), "uint8")).save(tmp_path / name)
    return tmp_path


def captions(*arguments):
    return {record.path.name: record.caption for record in records(*arguments)}


def test_captions_come_from_files_beside_tables_and_the_argument(folder):
    (folder / "a.txt").write_text(" a cat \n")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "b.jpg", "text": "a dog"}) + "\n\n")
    assert captions(folder, "an animal") == {"a.png": "a cat", "b.jpg": "a dog", "c.webp": "an animal"}


def test_tables_may_be_csv_and_name_images_in_folders(folder):
    (folder / "more").mkdir()
    (folder / "a.png").rename(folder / "more" / "a.png")
    (folder / "metadata.csv").write_text('file_name,text\nmore/a.png,"a, b"\nb.jpg,c\nc.webp,d\n')
    assert captions(folder) == {"a.png": "a, b", "b.jpg": "c", "c.webp": "d"}


def test_a_caption_without_an_image_is_named(folder, caplog):
    (folder / "z.txt").write_text("nothing")
    records(folder, "x")
    assert "z.txt" in caplog.text


def test_images_without_captions_are_named(folder):
    (folder / "a.txt").write_text("a cat")
    with pytest.raises(ValueError, match=r"2 images without a caption, b\.jpg, c\.webp"):
        records(folder)


@pytest.mark.parametrize(
    "row", ['{"file_name": "../x.png", "text": "x"}', '{"file_name": "no.png", "text": "x"}', "{", "3"]
)
def test_damaged_tables_are_refused(folder, row):
    Image.fromarray(np.zeros((8, 8, 3), "uint8")).save(folder.parent / "x.png")
    (folder / "metadata.jsonl").write_text(row)
    with pytest.raises(ValueError, match=r"metadata\.jsonl must have a row"):
        records(folder)


def test_what_is_no_folder_of_images_is_refused(tmp_path):
    for arguments, error in (((tmp_path,), "must hold images"), ((tmp_path / "no",), "must be a folder")):
        with pytest.raises(ValueError, match=error):
            records(*arguments)
    with pytest.raises(TypeError, match="folder"):
        records(3)
