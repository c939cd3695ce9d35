"""A model and images that are quick to train on."""

import numpy as np
import pytest
from PIL import Image

from keras_diffusion import StableDiffusion

from ..golden import lora


@pytest.fixture(scope="module")
def model():
    return StableDiffusion(preset=lora.SMALL, img_height=16, img_width=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    for i in range(2):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype="uint8")).save(path / f"{i}.png")
    return path
