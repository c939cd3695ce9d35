"""What trainings teach the bundled model, measured; on torch alone, where no step is traced or compiled first."""

import keras
import numpy as np
import pytest
from PIL import Image, ImageDraw

from keras_diffusion import StableDiffusion

pytestmark = [
    pytest.mark.backend,
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="a training of 30 s, once"),
]

KNOWN = ["red apple", "pizza", "dog face", "sun", "rocket", "cat face"]
UNSEEN = ["birthday cake", "banana"]
NIGHT = np.array([0.3, 0.5, 1.0])  # the shares of red, green and blue that the style leaves of an image


def test_a_lora_learns_a_style(bundled, one_bundled_model, tmp_path):
    """Images of captions that it has not seen come near those of the style; others stay as they are."""
    captions = [*KNOWN, *UNSEEN, *(f"{caption}, night style" for caption in UNSEEN)]

    def draw():
        options = {"num_steps": 6, "unconditional_guidance_scale": 3.0, "seed": 1, "verbose": 0}
        images = bundled.text_to_image(captions, **options).astype("float64")
        return np.split(images, [len(KNOWN), len(KNOWN) + len(UNSEEN)])

    known, plain, styled = draw()
    for caption, image in zip(KNOWN, known, strict=True):
        for style, colour in (("", 1.0), (", night style", NIGHT)):
            path = tmp_path / f"{caption}{style}.png"
            save(path, Image.fromarray((image * colour).astype("uint8")), caption + style)
    trainer = bundled.train_lora(
        tmp_path, steps=80, rank=8, layers="linear", batch_size=2, learning_rate=4e-3, verbose=0
    )
    known_after, plain_after, styled_after = draw()

    assert trainer.step == 80
    assert distance(styled_after, plain * NIGHT) < distance(styled, plain * NIGHT) / 2
    for before, after in ((known, known_after), (plain, plain_after)):
        assert distance(before, after) < 15  # of 255; images of two captions differ by 67


def test_dreambooth_learns_an_object(tmp_path):
    """Images of its word come near the object's own; those of other captions, also of none of the class, stay alike."""
    model, captions = StableDiffusion.from_preset("emoji"), ["zwx toy", "zwx toy", *KNOWN, *UNSEEN]

    def draw():
        images = model.text_to_image(captions, num_steps=6, unconditional_guidance_scale=3.0, seed=1, verbose=0)
        return np.split(images.astype("float64"), [2])

    word, others = draw()
    for i, image in enumerate(others[: len(KNOWN)]):
        save(tmp_path / "class" / f"{i}.png", Image.fromarray(image.astype("uint8")), KNOWN[i])
    for i, (x, y, radius) in enumerate([(32, 32, 20), (28, 34, 18), (36, 30, 22), (33, 36, 19)]):
        save(tmp_path / "object" / f"{i}.png", gem(x, y, radius), "zwx toy")
    own = [np.array(Image.open(tmp_path / "object" / f"{i}.png")) for i in range(4)]
    options = {"class_folder": tmp_path / "class", "class_images": 1, "batch_size": 2, "verbose": 0}
    model.train_diffusion_model(tmp_path / "object", None, "toy", steps=25, learning_rate=3e-4, **options)
    word_after, others_after = draw()

    nearest, nearest_after = (np.mean([min(distance(o, x) for o in own) for x in of]) for of in (word, word_after))
    assert nearest_after < nearest / 2
    assert distance(others, others_after) < 25  # of 255; images of two captions differ by 67


def gem(x, y, radius):
    image = Image.new("RGB", (64, 64), "white")
    draw, half = ImageDraw.Draw(image), radius // 2
    draw.polygon([(x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y)], fill=(150, 40, 200))
    draw.ellipse((x - half, y - half, x + half, y + half), fill=(40, 220, 90))
    return image


def save(path, image, caption):
    path.parent.mkdir(exist_ok=True)
    image.save(path)
    path.with_suffix(".txt").write_text(caption)


def distance(a, b):
    return np.abs(a - b).mean()
