"""T2I-adapters: what diffusers computes with random weights, in every layout, and what is refused."""

import re
from dataclasses import replace

import numpy as np
import pytest
from keras import ops
from safetensors.numpy import load_file, save_file

from keras_diffusion.architectures import TINY, Level
from keras_diffusion.checkpoints.layouts.t2i_adapter_files import T2IAdapterFiles
from keras_diffusion.errors import CheckpointError, CheckpointMismatchError, CorruptCheckpointError
from keras_diffusion.networks.t2i_adapter import T2IAdapter

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = (40, 104)  # 5 by 13 latents: odd sides


def architecture(*widths):
    levels = tuple(Level(width, 2, 1) for width in widths)
    return replace(TINY, diffusion_model=replace(TINY.diffusion_model, levels=levels))


KINDS = {  # kind → (a model for it, options of the adapter in diffusers)
    "full_adapter": (architecture(16, 16, 32, 32), {"channels": [16, 16, 32, 32], "num_res_blocks": 2}),
    "full_adapter_xl": (
        architecture(8, 16, 32),
        {"channels": [8, 16, 32, 32], "num_res_blocks": 2, "downscale_factor": 16},
    ),
    "light_adapter": (architecture(8, 16, 16), {"channels": [8, 16], "num_res_blocks": 3, "in_channels": 1}),
}


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory):
    """A model, the folder of an adapter, an image, and the features of diffusers."""
    torch, diffusers = (pytest.importorskip(name) for name in ("torch", "diffusers"))
    torch.manual_seed(0)
    model, options = KINDS[request.param]
    adapter = diffusers.T2IAdapter(adapter_type=request.param, **options)
    folder = tmp_path_factory.mktemp(request.param)
    adapter.save_pretrained(folder)
    size = (48, 112) if request.param == "full_adapter_xl" else SIZE
    image = np.random.default_rng(0).random((2, *size, options.get("in_channels", 3)), "float32")
    with torch.no_grad():
        features = adapter(torch.tensor(image.transpose(0, 3, 1, 2)))
    return model, folder, image, [x.numpy().transpose(0, 2, 3, 1) for x in features]


def tensors(folder):
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def original(name):
    """The name of a tensor in the files of TencentARC: both blocks of a feature map in one list."""
    found = re.fullmatch(r"adapter\.body\.(\d)\.(?:resnets\.(\d)\.)?(.+)", name)
    return f"body.{2 * int(found[1]) + int(found[2] or 0)}.{found[3]}" if found else name.removeprefix("adapter.")


def original_light(name):
    return name.removeprefix("adapter.").replace("resnets", "body")


def read(source):
    network = T2IAdapter(source.shape, initialize=False)
    source.load(network)
    return network


@pytest.mark.backend
def test_computes_what_diffusers_computes(case):
    model, folder, image, expected = case
    source = T2IAdapterFiles(folder, model)
    network = T2IAdapter.from_config(read(source).get_config())
    source.load(network)
    for ours, theirs in zip(network(image), expected, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(ours), theirs, rtol=0, atol=1e-5)
    assert [x.shape[-1] for x in expected] == list(source.shape.outputs)


def test_every_layout_is_the_same(case, tmp_path):
    model, folder, *_ = case
    expected = read(T2IAdapterFiles(folder, model)).get_weights()
    rename = original_light if "light" in folder.name else original
    for name in (rename, lambda name: name):
        save_file({name(key): x for key, x in tensors(folder).items()}, tmp_path / "file.safetensors")
        for ours, theirs in zip(
            read(T2IAdapterFiles(tmp_path / "file.safetensors", model)).get_weights(), expected, strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_refuses_what_does_not_fit(case, tmp_path):
    model, folder, *_ = case
    with pytest.raises(CheckpointMismatchError, match=r"\((full|light)_adapter\w*\) does not fit the model.*widths"):
        T2IAdapterFiles(folder, architecture(8, 24))
    path = tmp_path / "file.safetensors"
    for name, array in list(tensors(folder).items())[::12]:
        wrong = {**tensors(folder), name: np.zeros((7, *array.shape[1:]), "float32")}
        save_file(wrong, path)
        with pytest.raises(CheckpointError, match=r"T2I-adapter"):
            read(T2IAdapterFiles(path, model))
        save_file({key: x for key, x in wrong.items() if key != name}, path)
        with pytest.raises(CheckpointError, match=r"T2I-adapter"):
            read(T2IAdapterFiles(path, model))


def test_says_what_a_file_is(tmp_path):
    save_file({"input_blocks.0.0.weight": np.zeros(3, "float32")}, tmp_path / "unet.safetensors")
    with pytest.raises(CheckpointMismatchError, match="no T2I-adapter, it looks like a UNet alone"):
        T2IAdapterFiles(tmp_path / "unet.safetensors", TINY)
    with pytest.raises(CorruptCheckpointError, match="no such folder"):
        T2IAdapterFiles(tmp_path / "nothing", TINY)
    with pytest.raises(TypeError, match="as a folder or a file"):
        T2IAdapterFiles(3, TINY)
