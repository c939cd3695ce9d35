import numpy as np
import pytest
from keras import ops

from keras_diffusion.networks import operations
from keras_diffusion.networks.layers import Attention
from keras_diffusion.networks.operations import attend, convolve, feed, operation, replace_operations

from ..golden import networks

pytestmark = pytest.mark.backend
numpy = ops.convert_to_numpy


@pytest.mark.parametrize("scores", [1, 25, 60, 75])
def test_attention_in_parts_gives_the_same(scores, monkeypatch):
    """One query at a time, groups that divide 15 queries and groups that do not, and all at once."""
    attention, x, context = Attention(heads=3), networks.uniform("x", (2, 15, 24)), networks.uniform("c", (2, 5, 11))
    expected = numpy(attention(x, context))
    monkeypatch.setattr(operations, "SCORES", scores)
    np.testing.assert_allclose(numpy(attention(x, context)), expected, rtol=0, atol=1e-6)


def test_replacements_nest_and_end():
    def first(*arguments): ...
    def second(*arguments): ...

    with replace_operations(attend=first, convolve=second):
        with replace_operations(attend=second):
            assert (operation("attend"), operation("convolve"), operation("feed")) == (second, second, feed)
        assert operation("attend") is first
    assert (operation("attend"), operation("convolve")) == (attend, convolve)


def test_what_layers_do_not_compute_is_refused():
    refused = pytest.raises(TypeError, match=r"attend, convolve.* Received: attention")
    with refused, replace_operations(attention=attend):
        pass
