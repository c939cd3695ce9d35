"""Turns the blocks of values in GGUF files into floats. Source: ggml-quants.c of ggml-org/ggml."""

import numpy as np

BLOCK = 32  # values that share a scale


def _halves(block):
    """Yields the numbers of blocks that are stored as float16."""
    return (block[name].astype("f4")[:, None] for name in ("d", "m") if name in block.dtype.names)


def _q8_0(block):
    (scale,) = _halves(block)
    return block["q"] * scale


def _codes(block):
    """Returns the low halves of the bytes, then the high ones, with a fifth bit where there is one."""
    codes = np.concatenate([block["q"] & 15, block["q"] >> 4], axis=1)
    if "high" in block.dtype.names:
        codes |= np.unpackbits(block["high"], axis=1, bitorder="little") << 4
    return codes


def _symmetric(middle):
    def decode(block):
        (scale,) = _halves(block)
        return (_codes(block).astype("i1") - np.int8(middle)) * scale

    return decode


def _affine(block):
    scale, least = _halves(block)
    return _codes(block) * scale + least


QUANTISED = {  # type of GGUF → (a block of 32 values, the float32 values (n, 32) of n blocks)
    "Q8_0": ([("d", "<f2"), ("q", "i1", 32)], _q8_0),
    "Q4_0": ([("d", "<f2"), ("q", "u1", 16)], _symmetric(8)),
    "Q4_1": ([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)], _affine),
    "Q5_0": ([("d", "<f2"), ("high", "u1", 4), ("q", "u1", 16)], _symmetric(16)),
    "Q5_1": ([("d", "<f2"), ("m", "<f2"), ("high", "u1", 4), ("q", "u1", 16)], _affine),
}


def values_of(blocks, kind):
    """Returns the float32 values of blocks of a kind in `QUANTISED`, one after the other."""
    with np.errstate(invalid="ignore"):  # what is not finite is refused by its magnitude
        return QUANTISED[kind][1](blocks).ravel()
