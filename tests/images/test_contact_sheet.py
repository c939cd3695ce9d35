"""Sheets of several images."""

import numpy as np
import pytest
from PIL import Image

from keras_diffusion import contact_sheet

IMAGES = np.arange(5 * 2 * 3 * 3, dtype="uint8").reshape(5, 2, 3, 3)


def test_puts_images_row_by_row():
    sheet = np.array(contact_sheet(IMAGES, gap=1))
    assert sheet.shape == (5, 11, 3)  # 2 rows and 3 columns
    for i, image in enumerate(IMAGES):
        top, left = i // 3 * 3, i % 3 * 4
        assert (sheet[top : top + 2, left : left + 3] == image).all()
        sheet[top : top + 2, left : left + 3] = 255
    assert (sheet == 255).all()


def test_takes_columns_and_every_form_of_images():
    assert contact_sheet(IMAGES, columns=5, gap=0).size == (15, 2)
    assert contact_sheet([Image.fromarray(image) for image in IMAGES], columns=1, gap=0).size == (3, 10)
    assert (np.asarray(contact_sheet(IMAGES[:1], columns=9)) == IMAGES[0]).all()


@pytest.mark.parametrize("wrong", [{"columns": 0}, {"columns": 1025}, {"gap": -1}, {"images": []}])
def test_refuses_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        contact_sheet(**{"images": IMAGES} | wrong)
