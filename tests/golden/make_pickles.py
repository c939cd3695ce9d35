"""Writes the pickle checkpoints that the reader's tests read: by torch.save, in both of its formats.

python tests/golden/make_pickles.py
"""

import sys
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

HERE = Path(__file__).parent
LIGHTNING = "pytorch_lightning.callbacks.model_checkpoint"


def tensors():
    """Tensors of every dtype and kind that checkpoints hold."""
    matrix = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 6)).astype("float32"))
    convolution = matrix.reshape(2, 3, 2, 2).clone()
    return {
        "float32": matrix,
        "float16": matrix.half(),
        "bfloat16": matrix.bfloat16(),
        "float64": matrix.double(),
        "int64": torch.tensor([-(2**60), 0, 2**60]),
        "int32": torch.tensor([-(2**30), 7], dtype=torch.int32),
        "int16": torch.tensor([-300, 300], dtype=torch.int16),
        "int8": torch.tensor([-100, 100], dtype=torch.int8),
        "uint8": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(-1.5),
        "empty": torch.empty(0, 5),
        "parameter": torch.nn.Parameter(matrix[1].clone()),
        "shared": matrix,
        "transposed": matrix.t(),
        "row": matrix[2],
        "column": matrix[:, 3],
        "inner": matrix[1:3, 2:5].half()[:, ::2],
        "channels_last": convolution.to(memory_format=torch.channels_last),
        "expanded": torch.arange(7).expand(1, -1),
    }


def checkpoint():
    """What Lightning saved beside the weights of Stable Diffusion 1."""
    callback = type("ModelCheckpoint", (), {"__module__": LIGHTNING})
    for name in accumulate(LIGHTNING.split("."), "{}.{}".format):
        sys.modules[name] = ModuleType(name)
    sys.modules[LIGHTNING].ModelCheckpoint = callback
    state_dict = OrderedDict(tensors())
    state_dict._metadata = OrderedDict({"": {"version": 1}})
    return {
        "epoch": 6,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "callbacks": {callback: {"monitor": "val/loss_simple_ema", "best_model_score": np.float64(0.25)}},
        "state_dict": state_dict,
        "lr_schedulers": [{"base_lrs": [1e-4], "last_epoch": 6, "betas": (0.9, 0.999), "on": True, "none": None}],
    }


def embedding():
    """A textual inversion."""
    vector = torch.nn.Parameter(torch.arange(8).reshape(1, 8) / 8)
    return {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": torch.nn.ParameterDict({"*": vector}),
        "name": "style",
        "step": 500,
    }


def values(tensor):
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


if __name__ == "__main__":
    torch.save(checkpoint(), HERE / "pickles_zip.ckpt")
    torch.save(checkpoint(), HERE / "pickles_legacy.ckpt", _use_new_zipfile_serialization=False)
    torch.save(embedding(), HERE / "pickles_embedding.pt")
    np.savez_compressed(HERE / "pickles.npz", **{name: values(tensor) for name, tensor in tensors().items()})
