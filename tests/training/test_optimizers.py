"""The optimiser of a training: its moving averages, and that it survives saving."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_diffusion.training.optimizers import AdamW, default_optimizer

pytestmark = pytest.mark.backend


def test_averages_follow_closely_at_first():
    variable = keras.Variable([1.0, -2.0])
    optimizer = default_optimizer(0.1, ema=0.25)
    optimizer.build([variable])
    optimizer.finalize_variable_values([variable])
    np.testing.assert_array_equal(ops.convert_to_numpy(variable), [1, -2])
    expected = None
    for n in range(6):
        optimizer.apply([ops.convert_to_tensor([0.5, -0.25])])
        value = np.array(ops.convert_to_numpy(variable))
        momentum = min(0.25, (1 + n) / (10 + n)) if n else 0
        expected = value if not n else momentum * expected + (1 - momentum) * value
    assert not np.allclose(value, expected, atol=1e-3)
    optimizer.finalize_variable_values([variable])
    np.testing.assert_allclose(ops.convert_to_numpy(variable), expected, rtol=1e-5)


def test_its_configuration_is_its_own():
    optimizer = default_optimizer(0.1, ema=0.99)
    again = AdamW.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert again.get_config()["ema_momentum"] == 0.99
    assert default_optimizer(0.1).use_ema is False
