"""Tiles: where they lie, and that they leave no trace."""

import numpy as np
import pytest

from keras_diffusion.images.tiles import BLEND, Axis, enlarge

IMAGE = np.random.default_rng(0).uniform(0, 1, (211, 150, 3)).astype("float32")


def blurred(reach, scale=2):
    """A function that averages what is at most `reach` pixels away, zero beyond the edges, and enlarges it."""

    def run(tile):
        for axis in (0, 1):
            widths = [(reach, reach) if i == axis else (0, 0) for i in range(3)]
            sums = np.cumsum(np.pad(tile, widths), axis, "float64")
            ends, starts = (np.delete(sums, range(cut, cut + n), axis) for cut, n in ((0, 2 * reach), (0, 0)))
            starts = np.concatenate([np.zeros_like(ends.take([0], axis)), starts], axis)
            tile = (ends - starts.take(range(ends.shape[axis]), axis)) / (2 * reach + 1)
        return tile.repeat(scale, 0).repeat(scale, 1).astype("float32")

    return run


def test_tiles_equal_the_whole_where_the_context_is_all_that_matters():
    sizes = []

    def run(tile):
        sizes.append(tile.shape)
        return blurred(10)(tile)

    joined = enlarge(IMAGE, run, scale=2, tile=96, context=10)
    assert len(sizes) > 4
    assert len(set(sizes)) == 1
    assert max(sizes[0][:2]) <= 96
    np.testing.assert_allclose(joined, blurred(10)(IMAGE), atol=1e-6)
    assert np.abs(enlarge(IMAGE, run, scale=2, tile=96, context=2) - blurred(10)(IMAGE)).max() > 1e-3


def test_neighbours_pass_into_each_other():
    """Tiles that differ by a constant make a ramp instead of a step."""
    calls = []

    def run(tile):
        calls.append(None)
        return np.full(tile.shape, len(calls), "float32")

    ramp = enlarge(np.zeros((8, 100, 3), "float32"), run, scale=1, tile=70, context=4)[0, :, 0]
    assert (ramp[0], ramp[-1]) == (1, 2)
    assert 0 < np.diff(ramp).max() < 1.5 / BLEND


@pytest.mark.parametrize("multiple", [1, 4])
def test_tiles_cover_every_length(multiple):
    for length in range(multiple, 700, 5 * multiple):
        axis = Axis(length, 96, 16, multiple)
        assert not np.remainder([*axis.starts, axis.tile], multiple).any()
        assert axis.starts[-1] + axis.tile == length
        assert axis.tile <= max(96, min(length, 96))
        total = axis.total(2)
        assert total.min() > 0.5
        assert total.max() < 2.5


def test_an_image_is_extended_to_multiples():
    seen = []

    def run(tile):
        seen.append(tile)
        return tile

    np.testing.assert_array_equal(enlarge(IMAGE[:7, :6], run, 1, 96, 4, multiple=4), IMAGE[:7, :6])
    np.testing.assert_array_equal(seen[0][6:, 5:8], IMAGE[[6, 6]][:, [5, 5, 4]])
