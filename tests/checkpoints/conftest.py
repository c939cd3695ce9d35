"""Small models and their folders."""

import shutil

import keras
import numpy as np
import pytest

from keras_diffusion.architectures import (
    Architecture,
    AutoencoderShape,
    DiffusionModelShape,
    Level,
    TextEncoderShape,
)
from keras_diffusion.checkpoints import folder
from keras_diffusion.decoder import Decoder
from keras_diffusion.diffusion_model import DiffusionModel
from keras_diffusion.image_encoder import ImageEncoder
from keras_diffusion.text_encoder import TextEncoder

CLASSES = {
    "text_encoder": TextEncoder,
    "diffusion_model": DiffusionModel,
    "image_encoder": ImageEncoder,
    "decoder": Decoder,
}


@pytest.fixture(scope="session")
def build():
    """Builds the four networks of an architecture, or those named, by name; all their kernels are zero."""
    return lambda architecture, names=CLASSES, **options: {
        name: CLASSES[name](architecture=architecture, initialize=False, **options) for name in names
    }


@pytest.fixture(scope="session")
def values():
    """Copies the values of networks: by network, a dict from paths to arrays."""
    return lambda networks: {
        name: {variable.path: np.array(keras.ops.convert_to_numpy(variable)) for variable in network.variables}
        for name, network in networks.items()
    }


@pytest.fixture(scope="session")
def small():
    return Architecture(
        "custom",
        TextEncoderShape(width=8, layers=1, heads=2, vocabulary=50),
        DiffusionModelShape(levels=(Level(8, 2, 1), Level(16, 2, 0)), blocks=1, context=8, groups=4),
        AutoencoderShape(channels=(8, 16), blocks=1, groups=4),
        image_size=16,
    )


@pytest.fixture(scope="session")
def networks(small, build):
    """The networks of `small` with random values, not to be changed."""
    networks, random = build(small), np.random.default_rng(0)
    for network in networks.values():
        for variable in network.variables:
            variable.assign(random.normal(size=tuple(variable.shape)).astype("float32"))
    return networks


@pytest.fixture(scope="session")
def saved(networks, small, tmp_path_factory):
    """Their folder, not to be changed."""
    path = tmp_path_factory.mktemp("saved") / "small"
    folder.save(path, small, **networks)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the folder."""
    return shutil.copytree(saved, tmp_path / "small")
