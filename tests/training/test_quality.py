"""What trainings teach the bundled model, measured; on torch alone, where no step is traced or compiled first."""

import keras
import numpy as np
import pytest
from PIL import Image

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
            Image.fromarray((image * colour).astype("uint8")).save(tmp_path / f"{caption}{style}.png")
            (tmp_path / f"{caption}{style}.txt").write_text(caption + style)
    trainer = bundled.train_lora(
        tmp_path, steps=80, rank=8, layers="linear", batch_size=2, learning_rate=4e-3, verbose=0
    )
    known_after, plain_after, styled_after = draw()

    assert trainer.step == 80
    assert distance(styled_after, plain * NIGHT) < distance(styled, plain * NIGHT) / 2
    for before, after in ((known, known_after), (plain, plain_after)):
        assert distance(before, after) < 15  # of 255; images of two captions differ by 67


def distance(a, b):
    return np.abs(a - b).mean()
