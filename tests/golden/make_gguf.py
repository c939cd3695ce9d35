"""Writes a GGUF file with a tensor of every type, and what the package gguf (ggml-org) reads from it.

pip install gguf && python tests/golden/make_gguf.py
"""

from pathlib import Path

import gguf
import numpy as np

FILE = Path(__file__).with_name("types.gguf")
VALUES = Path(__file__).with_name("types.npz")
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
RESHAPED, TRUE_SHAPE = "conv.weight", (16, 4, 2, 4)  # as ComfyUI-GGUF stores it: rows of 256 values, and the true shape


def main():
    random, expected = np.random.default_rng(0), {}
    writer = gguf.GGUFWriter(FILE, "sd1")
    writer.add_array("a.list.of.texts", ["one", "two"])
    writer.add_array(f"comfy.gguf.orig_shape.{RESHAPED}", TRUE_SHAPE)
    for name, kind in [*((f"{name}.weight", name) for name in TYPES), (RESHAPED, "Q5_1")]:
        kind = gguf.GGMLQuantizationType[kind]
        values = random.normal(size=(2, 256) if name == RESHAPED else (3, 64)).astype("float32")
        stored = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, stored, raw_dtype=kind)
        floats = gguf.quants.dequantize(stored, kind)
        expected[name] = floats.reshape(TRUE_SHAPE) if name == RESHAPED else floats
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    np.savez_compressed(VALUES, **expected)


if __name__ == "__main__":
    main()
