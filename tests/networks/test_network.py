"""Keras' global settings change nothing that a model draws, and are left as they were."""

import threading

import keras
import numpy as np
import pytest

from keras_diffusion import StableDiffusion
from keras_diffusion.networks.network import keras_settings

from ..small import SMALL


@pytest.fixture
def others():
    """Sets both settings to other values."""
    policy = keras.config.dtype_policy()
    keras.config.set_image_data_format("channels_first")
    keras.config.set_floatx("float16")
    yield ("channels_first", "float16")
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy(policy)


def draw():
    keras.utils.set_random_seed(0)
    return StableDiffusion(preset=SMALL).text_to_image("a dog", num_steps=2, seed=1, verbose=0)


def current():
    return keras.config.image_data_format(), keras.config.floatx()


@pytest.fixture(scope="module")
def expected():
    return draw()


@pytest.mark.backend
def test_global_settings_change_no_image(expected, others):
    images = draw()
    assert current() == others
    np.testing.assert_array_equal(images, expected)


def test_the_last_thread_to_leave_restores_the_settings(others):
    entered, leave = threading.Event(), threading.Event()

    def stay():
        with keras_settings():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=stay)
    thread.start()
    assert entered.wait(60)
    with keras_settings():
        assert current() == ("channels_last", "float32")
    assert current() == ("channels_last", "float32")
    leave.set()
    thread.join()
    assert current() == others
