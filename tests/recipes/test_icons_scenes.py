"""The data of the model "icons": captions, colours, the pack and the scenes made of it."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

FOLDER = Path(__file__).parents[2] / "recipes" / "icons"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_articles_and_plurals():
    from captions import phrase, plural, with_article

    names = ("cat", "owl", "unicorn", "moon", "grapes", "rice", "glass of milk", "bus")
    assert [with_article(name) for name in names] == [
        *("a cat", "an owl", "a unicorn", "the moon", "grapes", "rice", "a glass of milk", "a bus")
    ]
    assert [phrase("moon", "blue"), phrase("grapes", "red"), phrase("cat", "orange")] == [
        *("a blue moon", "red grapes", "an orange cat")
    ]
    names = ("cat", "cherry", "box", "mouse", "glass of milk", "computer mouse", "sheep", "boy")
    assert [plural(name) for name in names] == [
        *("cats", "cherries", "boxes", "mice", "glasses of milk", "computer mice", "sheep", "boys")
    ]


def test_captions_have_weights_and_all_names():
    from captions import Concept, captions

    weights = dict(captions(Concept(("rabbit", "bunny"), "animal", 1.0, ("animal",))))
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["a rabbit"] > weights["a bunny"] > weights["an animal"] > 0


def test_every_colour_is_recognised_after_recolouring():
    from colours import COLOURS, recolour, tone

    image = np.full((16, 16, 4), 255, np.uint8)
    image[..., :3] = [60, 110, 200]
    image[8:, :, :3] = [90, 140, 230]  # a lighter half, which stays lighter
    own = tone(image)
    assert own.name == "blue"
    for word in set(COLOURS) - {"white", "black"}:
        changed = recolour(image, own, word)
        assert tone(changed).name == word
        assert changed[12, 0, :3].max() > changed[4, 0, :3].max()
    image[:, :8, :3] = [230, 40, 40]
    assert tone(image) is None


def shape(draw_shape, colour):
    """Returns uint8 (128, 128, 4) of a shape inside the margin."""
    image = Image.new("RGBA", (128, 128))
    getattr(ImageDraw.Draw(image), draw_shape)((6, 6, 121, 121), fill=colour)
    return np.asarray(image)


@pytest.fixture
def pictures():
    from captions import Concept, captions
    from pack import Pictures

    names = ("ball", "box", "horse", "sunglasses", "cat face", "cardboard box")
    kinds = ("object", "object", "animal", "clothing", "animal", "object")
    shapes = ("ellipse", "rectangle", "ellipse", "ellipse", "ellipse", "ellipse")
    tints = ((200, 30, 30), (40, 90, 210), (120, 70, 30), (20, 20, 20), (240, 160, 40), (130, 90, 50))
    concepts = [Concept((name,), kind, 1.0, ()) for name, kind in zip(names, kinds, strict=True)]
    return Pictures(
        rgba=np.stack([shape(one, tint) for one, tint in zip(shapes, tints, strict=True)]),
        captions=[captions(concept) for concept in concepts],
        names=list(names),
        styles=["noto"] * len(names),
        kinds=list(kinds),
        weights=np.ones(len(names)),
        concepts=concepts,
    )


def test_scenes_show_what_they_say_and_nothing_held_out(pictures):
    import scenes
    from stock import Stock, describe, held_out

    pictures = pictures._replace(rgba=np.where(pictures.rgba[..., 3:] > 0, pictures.rgba, 0))
    stock = Stock(pictures.rgba, describe(pictures) | {"objects": [True] * len(pictures.names)})
    rng = np.random.default_rng(0)
    for recipe in scenes.RECIPES:
        made = [recipe(rng, stock) for _ in range(40)]
        made = [scene for scene in made if scene is not None]
        assert made, recipe
        assert all(canvas.size == (128, 128) and caption for canvas, caption in made)
    captions = [scenes.scene(rng, stock)[1] for _ in range(200)]
    for caption in captions:
        words = caption.split()
        if len(words) == 3 and words[1] in ("red", "green", "blue", "purple") and words[2] in ("ball", "box", "horse"):
            assert not held_out("colour", *words[1:])


def test_make_gives_the_same_scenes_for_the_same_seed(pictures):
    import scenes

    images, captions = scenes.make(pictures, 5, seed=3, workers=2)
    again, same = scenes.make(pictures, 5, seed=3, workers=2)
    assert images.shape == (5, 128, 128, 3)
    assert images.dtype == np.uint8
    assert captions == same
    np.testing.assert_array_equal(images, again)


def test_pack_keeps_images_and_captions(tmp_path):
    import pack
    from captions import Concept

    picture = Image.new("RGBA", (300, 200))
    ImageDraw.Draw(picture).rectangle((100, 50, 199, 99), fill=(10, 200, 30, 255))
    file = io.BytesIO()
    picture.save(file, "png")
    concepts = {
        "brick": Concept(("green brick", "brick"), "object", 1.0, ()),
        "unused": Concept(("x",), "object", 1, ()),
    }
    pack.save(concepts, [("brick", "3d", pack.pack_raster(file.getvalue()))], tmp_path / "pack")
    loaded = pack.load(tmp_path / "pack", workers=1)
    assert loaded.names == ["green brick"]
    assert loaded.weights.tolist() == [3.0]  # a lone image is shown more often
    assert loaded.rgba.shape == (1, 128, 128, 4)
    assert pack.visible_box(loaded.rgba[0]) == (6, 35, 122, 93)  # twice as wide as high, inside the margin
    np.testing.assert_allclose(loaded.rgba[0, 64, 64], [10, 200, 30, 255], atol=12)


def test_emoji_and_icons_are_chosen_by_name():
    from captions import Concept
    from choose import choose_emoji, choose_icons, read_icon_names
    from packages import ICONS

    concepts = {"cat": Concept(("cat",), "animal", 2.0, ()), "rabbit": Concept(("rabbit",), "animal", 2.0, ())}
    box = [0, 0, 16, 16]
    icons = {"cat": ("<a/>", box), "cat-2": ("<b/>", box), "bunnyside": ("<c/>", box), "cat-again": ("<a/>", box)}
    assert choose_emoji(icons, concepts) == [("cat", "<a/>", box), ("cat", "<b/>", box), ("rabbit", "<c/>", box)]

    styles = {package.style: list(read_icon_names(package.style)) for package in ICONS}
    assert all(styles.values())
    found = {icon: ('<g fill="currentColor"/>', box) for _, icon, _ in styles["solid"]}
    chosen = choose_icons(found, "solid", concepts)
    assert "currentColor" not in chosen[0][1]
    assert concepts["lighthouse"].kind == "building"
    assert sum(label == "cat" for label, _, _ in chosen) == 1


def test_prompts_for_the_measure_are_held_out():
    from stock import held_out
    from unseen import prompts

    first = prompts("above", 20)
    assert first == prompts("above", 20)
    assert all(held_out("above", item["first"], item["second"]) for item in first)
    assert all(held_out("colour", item["colour"], item["noun"]) for item in prompts("colour", 20))
    assert {item["count"] for item in prompts("count", 40)} == {2, 3, 4, 5}


def test_judge_names_places_and_colours(pictures):
    from judge import Judge, colour_share
    from stock import Stock, describe
    from unseen import compose

    pictures = pictures._replace(names=["star", "box", *pictures.names[2:]])
    pictures.concepts[0] = pictures.concepts[0]._replace(names=("star",))
    stock = Stock(pictures.rgba, describe(pictures) | {"objects": [True] * len(pictures.names)})
    judge = Judge(stock)
    items = [
        {"prompt": f"{first} to the left of {second}", "first": first, "second": second}
        for first, second in (("star", "horse"), ("horse", "cat"))
    ]
    images = np.stack([compose(np.random.default_rng(0), stock, item) for item in items])
    assert judge.measure(images, items) == {"both": 100, "places": 100}
    swapped = [item | {"first": item["second"], "second": item["first"]} for item in items]
    assert judge.measure(images, swapped) == {"both": 100, "places": 0}
    stacked = [item | {"prompt": f"{item['first']} above {item['second']}"} for item in items]
    images = np.stack([compose(np.random.default_rng(0), stock, item) for item in stacked])
    assert judge.measure(images, stacked) == {"both": 100, "places": 100}

    image = np.full((128, 128, 3), 255, np.uint8)
    image[20:60, 20:60] = [30, 60, 220]
    image[60:80, 20:60] = [220, 30, 30]
    assert colour_share(image, "blue") == pytest.approx(2 / 3, abs=0.02)


def test_prompts_of_strangers():
    texts = (FOLDER / "prompts.txt").read_text().splitlines()
    assert len(texts) == len(set(texts)) == 200
