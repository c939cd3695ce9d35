"""Sizes for images of different shapes: which there are, who gets which, and training on them."""

import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from keras_diffusion.training import buckets
from keras_diffusion.training.dataset import Examples
from keras_diffusion.training.folder import Record
from keras_diffusion.training.trainer import Trainer

SHAPES = {"square": (20, 20), "wide": (16, 40), "wider": (16, 44), "tall": (60, 20)}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two wide images and one of each other shape; the caption is the name."""
    folder = tmp_path_factory.mktemp("images")
    for i, (name, shape) in enumerate(SHAPES.items()):
        pixels = np.random.default_rng(i).integers(0, 256, (*shape, 3), dtype="uint8")
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return [Record(folder / f"{name}.png", name) for name in SHAPES]


def test_sizes_have_nearly_the_same_area():
    """Those of kohya's `make_bucket_resolutions((512, 512))`."""
    sizes = buckets.candidates((512, 512), 64)
    halves = [(256, 1024), (320, 768), (384, 640), (448, 576)]
    assert {*halves, (512, 512)} <= set(sizes)
    assert {size[::-1] for size in sizes} == set(sizes)
    assert all(height % 64 == width % 64 == 0 and height * width <= 512 * 512 for height, width in sizes)
    assert (96, 160) in buckets.candidates((96, 160), 64)


def test_the_nearest_ratio_of_few_sizes():
    shapes = [(1000, 1000), (1080, 1920), (1920, 1080), (1000, 1900), (300, 310)]
    chosen = buckets.choose(shapes, (512, 512), 64, 100)
    assert chosen == [(512, 512), (384, 640), (640, 384), (384, 640), (512, 512)]
    for most in (1, 2, 3):
        assert len(set(buckets.choose(shapes, (512, 512), 64, most))) == most
    assert set(buckets.choose(shapes, (512, 512), 64, 1)) == {(512, 512)}
    assert buckets.choose(shapes, (512, 512), 64, 2)[2] == (512, 512)  # nearer than the other that is left


def test_two_sizes_that_differ_in_all_that_differs():
    for sizes in ([(1, 1), (1, 2), (2, 1)], [(2, 2), (2, 3), (1, 2)]):
        a, b = buckets.unlike(sizes)
        assert a[0] != b[0]
        assert a[1] != b[1]
    assert buckets.unlike([(1, 2)]) == ((1, 2), (1, 2))


def test_batches_of_one_size_from_any_step_on(model, images):
    options = {"size": (16, 16), "buckets": 3, "batch_size": 2, "seed": 5, "flip": True}
    examples = Examples(model, images, steps=8, conditions=[image.path for image in images], **options)
    assert len(examples.sizes) == 3
    names = {examples.texts[row].tobytes(): name for row, name in enumerate(["", *sorted(SHAPES)])}
    drawn, shapes = Counter(), set()
    for i in range(8):
        x, target, _ = examples[i]
        assert x["latent"].shape == target.shape
        height, width = x["latent"].shape[1:3]
        assert x["image"].shape[1:3] == (4 * height, 4 * width)
        assert (height, width) in examples.sizes
        shapes.add((height, width))
        for context in x["context"]:
            name = names[context.tobytes()]
            drawn[name] += 1
            assert (height > width) - (height < width) == np.sign(math.log(SHAPES[name][0] / SHAPES[name][1]))
    assert drawn == dict.fromkeys(SHAPES, 4)  # each as often as the others
    assert shapes == set(examples.sizes)
    later = Examples(model, images, steps=2, conditions=[image.path for image in images], first_step=5, **options)
    for key, array in later[1][0].items():
        np.testing.assert_array_equal(array, examples[6][0][key])


@pytest.mark.backend
def test_fit_takes_every_size(model, images):
    trainer = Trainer(model, "lora", rank=2, layers=["attn2.to_q"])
    trainer.compile()
    examples = Examples(model, images, size=(16, 16), buckets=2, steps=4)
    assert len({examples[i][1].shape for i in range(4)}) == 2
    trainer.fit(examples, verbose=0)
    assert trainer.step == 4


def test_wrong_options_are_named(model, images):
    with pytest.raises(ValueError, match="`buckets` must be"):
        Examples(model, images, buckets=0)
    with pytest.raises(ValueError, match="take `buckets=1`"):
        Examples(model, images, images, buckets=2)
    with pytest.raises(ValueError, match="`steps` must be"):
        Examples(model, images, size=(16, 16), buckets=2, steps=1)
