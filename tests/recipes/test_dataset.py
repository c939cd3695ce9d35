import hashlib
import io
import json
import sys
import tarfile
from types import SimpleNamespace

import dataset
import numpy as np
import pytest
from PIL import Image

EMOJI = [
    {"label": "Waving Hand", "hexcode": "1F44B", "group": 1, "tags": ["Bye", "hello"]}
    | {"skins": [{"label": "waving hand: light skin tone", "hexcode": "1F44B-1F3FB"}]},
    {"label": "flag: Wales", "hexcode": "1F3F4-E0067", "group": 9},
    {"label": "keycap: 0", "hexcode": "0030-FE0F-20E3", "group": 8, "tags": ["zero"]},
    {"label": "drawn by nobody", "hexcode": "1FFFF", "group": 8},
]
RED, HALF_RED, BLUE = (255, 0, 0, 255), (255, 0, 0, 128), (0, 0, 255, 255)


def picture(colour, size, extension):
    file = io.BytesIO()
    options = {"lossless": True} if extension == "webp" else {}
    Image.new("RGBA", (size, size), colour).save(file, extension, **options)
    return file.getvalue()


def pack(folder, name, files, style=None, part="package/img/"):
    package = dataset.Package(name, "1.0.0", "MIT", "", part, style)
    with tarfile.open(folder / package.archive, "w:gz") as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    sha256 = hashlib.sha256((folder / package.archive).read_bytes()).hexdigest()
    return package._replace(sha256=sha256)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(dataset, "subprocess", None)


@pytest.fixture
def packages(tmp_path):
    part = "package/en/data.json"
    labels = pack(tmp_path, "labels", {part: json.dumps(EMOJI).encode()}, part=part)
    first = {
        "package/img/1f44b.png": picture(RED, 64, "png"),
        "package/img/1f44b-1f3fb.png": picture(BLUE, 64, "png"),
        "package/img/1f3f4-e0067.png": picture(BLUE, 64, "png"),
        "package/img/0030-fe0f-20e3.png": picture(HALF_RED, 64, "png"),
        "package/other/1fffe.png": b"not read",
    }
    second = {
        "package/img/30-fe0f-20e3.webp": picture(RED, 256, "webp"),
        "package/img/0030-20e3.webp": picture(BLUE, 256, "webp"),
    }
    pictures = [
        pack(tmp_path, "flat", first, "flat"),
        pack(tmp_path, "@scope/round", second, "round"),
    ]
    return tmp_path, labels, pictures


def test_build(packages):
    built = dataset.build(*packages)

    # Base vocabulary first; what no style draws is left out.
    assert built.label_names == [
        "waving hand",
        "keycap: 0",
        "waving hand: light skin tone",
        "flag: wales",
    ]
    assert built.tags == [["bye", "hello"], ["zero"], ["bye", "hello"], []]
    assert built.style_names == ["flat", "round"]
    assert built.styles.tolist() == [0, 0, 0, 0, 1]
    assert built.labels.tolist() == [0, 1, 2, 3, 1]
    assert built.base.tolist() == [True, True, False, False, True]


def test_pictures_are_composited_on_white_and_scaled(packages):
    images = dataset.build(*packages).images

    assert images.shape == (5, 64, 64, 3)
    assert images.dtype == np.uint8
    assert (images[0] == [255, 0, 0]).all()
    assert (images[1] == [255, 127, 127]).all()  # half red on white
    assert (images[4] == [0, 0, 255]).all()  # of two spellings the first


def test_save_and_load(packages, tmp_path):
    built = dataset.build(*packages)
    dataset.save(built, tmp_path / "emoji.npz")
    loaded = dataset.load(tmp_path / "emoji.npz")

    for name, expected in built._asdict().items():
        np.testing.assert_equal(getattr(loaded, name), expected)
    assert not list(tmp_path.glob("*.unfinished"))


def test_main_writes_data_set_and_sources(packages, monkeypatch, capsys):
    folder, labels, pictures = packages
    monkeypatch.setattr(dataset, "LABELS", labels)
    monkeypatch.setattr(dataset, "PICTURES", pictures)
    output = folder / "emoji.npz"
    monkeypatch.setattr(sys, "argv", ["dataset.py", "--packages", str(folder), "--output", str(output)])
    dataset.main()

    sources = json.loads((folder / "emoji.sources.json").read_text())
    assert [source["name"] for source in sources] == ["labels", "flat", "@scope/round"]
    assert sources[1] == {
        "name": "flat",
        "version": "1.0.0",
        "licence": "MIT",
        "sha256": pictures[0].sha256,
    }
    assert "base: 3 pictures of 2 labels" in capsys.readouterr().out
    assert len(dataset.load(output).images) == 5


def test_missing_archive_is_packed_by_npm(packages, monkeypatch):
    folder, _, (_, package) = packages
    data = (folder / "scope-round-1.0.0.tgz").read_bytes()
    (folder / "scope-round-1.0.0.tgz").unlink()

    def run(command, check):
        assert command == ["npm", "pack", "@scope/round@1.0.0", "--pack-destination", folder]
        (folder / package.archive).write_bytes(data)

    monkeypatch.setattr(dataset, "subprocess", SimpleNamespace(run=run))
    assert dataset.fetch(package, folder).read_bytes() == data


def test_changed_archive_is_refused(packages):
    folder, labels, _ = packages
    (folder / labels.archive).write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"labels-1\.0\.0\.tgz is not the archive.*sha256="):
        dataset.fetch(labels, folder)


def test_code_point():
    assert dataset.code_point("0030-fe0f-20e3") == dataset.code_point("30-20E3") == "30-20E3"
    assert dataset.code_point("1f3f4-e0067_e0062") == "1F3F4-E0067-E0062"


def test_captions():
    weights = dict(dataset.captions("red apple", ["fruit", "red", "ripe"], "noto"))

    assert set(weights) == {
        "",
        "red apple",
        "red apple, noto style",
        *("a red apple", "a picture of a red apple"),
        *("fruit", "red", "ripe", "fruit, red", "red, ripe"),
        *("fruit red apple", "red red apple", "ripe red apple"),
        *("a fruit of red apple", "a red of red apple", "a ripe of red apple"),
    }
    assert weights[""] == pytest.approx(0.1)
    assert weights["red apple"] == pytest.approx(0.4)
    assert weights["a red apple"] == weights["a picture of a red apple"] == pytest.approx(0.05)
    assert weights["red apple, noto style"] == pytest.approx(0.2)
    assert weights["fruit"] == weights["red, ripe"] == pytest.approx(0.02)
    assert weights["ripe red apple"] == weights["a ripe of red apple"] == pytest.approx(0.1 / 6)


@pytest.mark.parametrize("tags", [[], ["a"], ["a", "b", "c"]])
@pytest.mark.parametrize("style_weight", [0.0, 0.05, 0.2])
def test_caption_weights_are_probabilities(tags, style_weight):
    weights = [weight for _, weight in dataset.captions("label", tags, "noto", style_weight)]
    assert min(weights) >= 0
    assert sum(weights) == pytest.approx(1)
