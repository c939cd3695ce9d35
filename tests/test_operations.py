import numpy as np
import pytest
from keras import ops

from keras_diffusion import operations
from keras_diffusion.layers import Attention
from keras_diffusion.operations import attend, attending, convolve, convolving

from .golden import networks

pytestmark = pytest.mark.backend
numpy = ops.convert_to_numpy


@pytest.mark.parametrize("scores", [1, 24, 100, 175])
@pytest.mark.parametrize("function", [operations.attend, operations.attend_at_once])
def test_every_way_to_attend_gives_the_same(function, scores, monkeypatch):
    """One query at a time, groups that divide 35 queries and groups that do not, and all at once."""
    attention, x, context = Attention(heads=3), networks.uniform("x", (2, 35, 24)), networks.uniform("c", (2, 5, 11))
    expected = numpy(attention(x, context))
    monkeypatch.setattr(operations, "SCORES", scores)
    with operations.attention(function):
        np.testing.assert_allclose(numpy(attention(x, context)), expected, rtol=0, atol=1e-6)


def test_replacements_nest_and_end():
    def first(*arguments): ...
    def second(*arguments): ...

    with operations.attention(first), operations.convolution(second):
        assert (attending(), convolving()) == (first, second)
        with operations.attention(second):
            assert attending() is second
        assert attending() is first
    assert (attending(), convolving()) == (attend, convolve)
