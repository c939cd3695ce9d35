import json
import sys
from types import SimpleNamespace

import evaluate
import numpy as np
import pytest
from dataset import Dataset, save
from PIL import Image

NAMES = ["red", "green", "blue", "crimson", "grey", "black", "flag: azure"]
COLOURS = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 0, 0], [128] * 3, [0] * 3, [0, 1, 255]]


def plain(*colours):
    return np.broadcast_to(np.uint8(colours)[:, None, None], (len(colours), 64, 64, 3))


@pytest.fixture
def dataset():
    """Plain colours: red and crimson share a picture, the azure flag is no base picture."""
    count = len(NAMES)
    return Dataset(
        images=plain(*COLOURS),
        styles=np.zeros(count, int),
        labels=np.arange(count),
        base=np.arange(count) < count - 1,
        style_names=["noto"],
        label_names=NAMES,
        tags=[[] for _ in NAMES],
    )


class FakeModel:
    """Draws the colour that a prompt names, and remembers its arguments."""

    def __init__(self):
        self.calls = []

    def text_to_image(self, prompts, **arguments):
        self.calls.append((prompts, arguments))
        return plain(*(COLOURS[NAMES.index(p)] if p in NAMES else [9] * 3 for p in prompts))


def test_evaluation_labels_do_not_change():
    names = [f"label {i}" for i in range(20)]
    chosen = evaluate.evaluation_labels(names, count=5)
    assert chosen.tolist() == [1, 6, 8, 12, 17]
    # A label keeps its place when the vocabulary is reordered.
    reordered = evaluate.evaluation_labels(names[::-1], count=5)
    assert {names[::-1][i] for i in reordered} == {names[i] for i in chosen}


@pytest.mark.parametrize("size", [24, 48, 64, 128])
def test_area_weights(size):
    weights = evaluate.area_weights(size)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(weights.sum(axis=0), 24 / size, rtol=1e-6)
    if size == 64:  # the first interval is 2 2/3 pixels long
        np.testing.assert_allclose(weights[0, :4], [0.375, 0.375, 0.25, 0], rtol=1e-6)


def test_thumbnails_average_areas():
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    expected = images.reshape(2, 24, 2, 24, 2, 3).mean(axis=(2, 4)).reshape(2, -1) / 255
    thumbnails = evaluate.thumbnails(images)
    assert thumbnails.dtype == np.float32
    np.testing.assert_allclose(thumbnails, expected, atol=1e-6)


def test_distances_are_mean_squared_errors(dataset):
    errors = evaluate.distances(plain([255, 0, 0]), dataset)
    assert errors.shape == (1, 6)  # no azure flag
    np.testing.assert_allclose(errors[0, [0, 1, 2, 3, 5]], [0, 2 / 3, 2 / 3, 0, 1 / 3], atol=1e-6)


def test_nearest_label(dataset):
    images = plain([200, 10, 10], [0, 1, 250], [100, 120, 130])
    assert evaluate.nearest_label(images, dataset).tolist() == [0, 2, 4]


def test_measure_counts_nearest_labels(dataset):
    # A green picture's order: green, then grey, black, and red, crimson and blue as far as another.
    images = plain([0, 255, 0], [0, 255, 0], [0, 255, 0], [250, 0, 0])
    result = evaluate.measure(images, [1, 4, 0, 2], dataset)
    assert result == {
        "labels": 4,
        "top_1": 25,
        "top_5": 100,
        "misses": [["grey", "green"], ["red", "green"], ["blue", "red"]],
    }


def test_measure_counts_only_the_nearest_five(dataset):
    # Five base pictures are nearer to an almost blue red than the blue one.
    result = evaluate.measure(plain([255, 1, 0]), [2], dataset)
    assert (result["top_1"], result["top_5"]) == (0, 0)


def test_labels_that_share_a_picture_share_its_hits(dataset):
    result = evaluate.measure(plain(COLOURS[0], COLOURS[0]), [0, 3], dataset)
    assert result["top_1"] == 100
    assert result["misses"] == []


def test_generate_gives_every_prompt_its_own_noise(monkeypatch):
    monkeypatch.setattr(evaluate, "BATCH_SIZE", 2)
    model = FakeModel()
    images = evaluate.generate(model, ["red", "green", "blue"], seed=7)

    np.testing.assert_equal(images, plain(*COLOURS[:3]))
    settings = {"num_steps": 25, "unconditional_guidance_scale": 3}
    assert model.calls == [
        (["red", "green"], settings | {"seed": 7}),
        (["blue"], settings | {"seed": 9}),
    ]


def test_contact_sheet_is_a_grid():
    sheet = np.asarray(evaluate.contact_sheet(plain(*COLOURS[:3]), columns=2))
    assert sheet.shape == (128, 128, 3)
    assert sheet[63, 127].tolist() == [0, 255, 0]
    assert sheet[64, 0].tolist() == [0, 0, 255]
    assert sheet[64, 64].tolist() == [255, 255, 255]


def test_contact_sheet_with_captions():
    images = plain(*COLOURS[:2])
    sheet = evaluate.contact_sheet(images, columns=2, captions=["red", ""], scale=2)
    assert sheet.size == (2 * (128 + 8), 128 + 22)
    written = np.asarray(sheet.convert("L"))[128:] < 128
    assert written[:, :136].any()
    assert not written[:, 136:].any()


def test_prompts_are_as_described():
    assert len(evaluate.FAMILIAR_PROMPTS) == len(set(evaluate.FAMILIAR_PROMPTS)) == 32
    assert not set(evaluate.FAMILIAR_PROMPTS) & set(evaluate.UNSEEN_PROMPTS)


def test_main_writes_measure_and_sheets(dataset, tmp_path, monkeypatch, capsys):
    save(dataset, tmp_path / "emoji.npz")
    presets = {"emoji": FakeModel()}
    facade = SimpleNamespace(from_preset=presets.__getitem__)
    monkeypatch.setitem(sys.modules, "keras_diffusion", SimpleNamespace(StableDiffusion=facade))
    output = tmp_path / "evaluation"
    options = f"--preset emoji --dataset {tmp_path / 'emoji.npz'} --output {output} --seed 3"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *options.split()])
    evaluate.main()

    result = json.loads((output / "measure.json").read_text())
    assert (result["labels"], result["top_1"], result["top_5"]) == (6, 100, 100)
    assert (result["num_steps"], result["seed"]) == (25, 3)
    assert presets["emoji"].calls[0][0] == NAMES[:6]
    sizes = {"labels": (20 * 64, 64), "familiar": (8 * 136, 4 * 150), "unseen": (8 * 136, 2 * 150)}
    for name, size in sizes.items():
        with Image.open(output / f"{name}.png") as sheet:
            assert sheet.size == size
    assert "top-1 100.0 %, top-5 100.0 % of 6 labels" in capsys.readouterr().out
