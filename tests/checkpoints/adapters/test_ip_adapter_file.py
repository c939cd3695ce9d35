"""Files of IP-Adapters and of image encoders: what is read, what is found, and what is refused by name."""

from copy import deepcopy
from dataclasses import replace
from shutil import copy

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_diffusion import CheckpointMismatchError, CorruptCheckpointError, StableDiffusion
from keras_diffusion.architectures import TINY, VISION_ENCODERS
from keras_diffusion.checkpoints.adapters.ip_adapter_file import load_ip_adapter
from keras_diffusion.checkpoints.layouts.vision_files import VisionFiles
from keras_diffusion.checkpoints.mapping.image_prompt_names import ip_adapter, vision_encoder
from keras_diffusion.checkpoints.mapping.loading import stored, targets
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.ip_adapter import ImagePrompts, attend_to_images
from keras_diffusion.networks.operations import replace_operations
from keras_diffusion.networks.vision_encoder import VisionEncoder

from ...golden import ip_adapters

SHAPE = TINY.diffusion_model
IMAGE = np.zeros((8, 8, 3), "uint8")


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("transformers")
    return ip_adapters.image_encoder("quick_gelu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encoder):
    """A folder with adapters and an image encoder."""
    path = tmp_path_factory.mktemp("adapters")
    encoder.save_pretrained(path / "image_encoder")
    for kind in ("plain", "plus"):
        save_file(ip_adapters.tensors(kind, SHAPE), path / f"{kind}.safetensors")
    return path


@pytest.fixture(scope="module")
def model():
    return StableDiffusion(preset=TINY)


def adapters(model):
    return list(model._ip_adapters.values())


def test_an_image_encoder_computes_what_transformers_computes(encoder, folder):
    import torch

    files = VisionFiles(folder)
    network = VisionEncoder(files.shape)
    files.load(network)
    image = np.random.default_rng(0).standard_normal((2, ip_adapters.SIDE, ip_adapters.SIDE, 3), "float32")
    with torch.no_grad():
        wanted = encoder(torch.tensor(image.transpose(0, 3, 1, 2)), output_hidden_states=True)
    hidden, embedding = map(keras.ops.convert_to_numpy, network(image))
    np.testing.assert_allclose(hidden, wanted.hidden_states[-2], rtol=0, atol=2e-5)
    np.testing.assert_allclose(embedding, wanted.image_embeds, rtol=0, atol=2e-5)
    contents = load_file(folder / "image_encoder/model.safetensors")
    for target in targets(network, vision_encoder(files.shape)):
        values = stored(keras.ops.convert_to_numpy(target.variable), target.layout)
        np.testing.assert_array_equal(values, contents[target.name])


def test_a_pickle_is_the_same(folder, tmp_path):
    import torch

    model = StableDiffusion(preset=TINY)
    torch.save(ip_adapters.nested(ip_adapters.tensors("plus", SHAPE)), tmp_path / "plus.bin")
    model.load_ip_adapter(folder / "plus.safetensors")
    model.load_ip_adapter(tmp_path, name="pickle")  # takes the image encoder that is loaded
    assert model.ip_adapters == ["plus", "pickle"]
    first, second = adapters(model)
    assert first.encoder is second.encoder
    copied, _ = adapters(deepcopy(model))
    for network, its_copy in zip(first[:2], copied[:2], strict=True):
        assert its_copy.get_config() == network.get_config()
        np.testing.assert_array_equal(its_copy.get_weights()[1], network.get_weights()[1])
    contents = ip_adapters.tensors("plus", SHAPE)
    for network in (first.network, second.network):
        found = targets(network, ip_adapter(first.network.architecture))
        assert {target.name for target in found} == contents.keys()
        for target in found:
            values = stored(keras.ops.convert_to_numpy(target.variable), target.layout)
            np.testing.assert_array_equal(values, contents[target.name])


def test_adapters_are_let_go(folder):
    model = StableDiffusion(preset=TINY)
    for kind in ("plain", "plus"):
        model.load_ip_adapter(folder / f"{kind}.safetensors")
    with pytest.raises(ValueError, match="An IP-Adapter of this name is loaded"):
        model.load_ip_adapter(folder / "plain.safetensors")
    model._engine.encode_image_prompt(adapters(model)[0].network, np.zeros((1, ip_adapters.EMBEDDING)))
    assert model._engine._compiled
    model.unload_ip_adapter("plain")
    assert not model._engine._compiled
    assert model.ip_adapters == ["plus"]
    with pytest.raises(ValueError, match=r"are \['plus'\]. Received: name='plain'"):
        model.unload_ip_adapter("plain")
    with pytest.raises(ValueError, match=r"would lose .*the IP-Adapters \['plus'\]"):
        model.unload()
    model.unload_ip_adapter()
    assert model.ip_adapters == []


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "float32_from_float16"])
def test_half_precision(folder, dtype):
    """Everything is computed in the model's dtype, from the image to the prediction."""
    drawn, weights = [], None
    for policy in ("float32", dtype):
        network = DiffusionModel(architecture=TINY, dtype=policy)
        network.set_weights(weights or (weights := network.get_weights()))
        attend, encode, *_ = load_ip_adapter(folder / "plus.safetensors", None, TINY, policy, [])
        pairs = attend(encode(np.ones((1, ip_adapters.SIDE, ip_adapters.SIDE, 3), "float32"))[0])
        masks = [np.ones((1, 1, positions), "float32") for positions in (64, 16)]
        images = ImagePrompts([pairs], np.full((1, 4), 2.0, "float32"), masks)
        with replace_operations(attend=attend_to_images(SHAPE.crossings, images)):
            prediction = network([np.ones(sides, "float32") for sides in ((1, 8, 8, 4), (1, 16), (1, 5, 16))])
        drawn.append(keras.ops.convert_to_numpy(keras.ops.cast(prediction, "float32")))
    np.testing.assert_allclose(drawn[1], drawn[0], rtol=0, atol=0.1)


# ---- Files that are refused


def without(name):
    return lambda contents: {key: array for key, array in contents.items() if key != name}


def of_shape(name, *shape):
    return lambda contents: {**contents, name: np.zeros(shape, "float32")}


def of_another_base(contents):
    return ip_adapters.tensors("plain", replace(SHAPE, context=768))


def face_id(contents):
    face = {f"image_proj.proj.{i}.weight": np.zeros((4, 4), "float32") for i in (0, 2)}
    return face | {"image_proj.norm.weight": np.zeros(4, "float32"), "ip_adapter.1.to_k_ip.weight": np.zeros(4)}


WRONG = {
    "a tensor missing": (without("ip_adapter.3.to_v_ip.weight"), "missing: IP-Adapter/ip_adapter.3.to_v_ip.weight"),
    "one too many": (of_shape("ip_adapter.9.to_k_ip.weight", 16, 16), "unexpected: IP-Adapter/ip_adapter.9.to_k_ip"),
    "another width": (of_shape("ip_adapter.1.to_k_ip.weight", 8, 16), r"1.to_k_ip.weight: shape \(8, 16\), not"),
    "no norm": (without("image_proj.norm.weight"), "lacks a tensor, or has one of another shape: 'norm.weight'"),
    "another base": (of_another_base, r"made for Stable Diffusion 1 \(context 768\), not another model \(context 16\)"),
    "a face": (face_id, "no IP-Adapter of a kind in plain, full, plus.*looks like an IP-Adapter FaceID"),
    "a LoRA": (lambda _: {"unet.lora_up.weight": np.zeros((2, 2), "float32")}, "looks like a LoRA"),
    "not finite": (of_shape("image_proj.norm.bias", 16), None),
    "another encoder": (of_shape("image_proj.proj.weight", 64, 1024), r"gives 1024 features \(ViT-H\).*with 20"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_by_name(case, folder, model, tmp_path):
    change, message = WRONG[case]
    contents = change(ip_adapters.tensors("plain", SHAPE))
    if message is None:
        contents["image_proj.norm.bias"][3], message = np.nan, "image_proj.norm.bias: holds nan"
    save_file(contents, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointMismatchError, match=f"(?s){message}") as error:
        model.load_ip_adapter(tmp_path / "bad.safetensors", folder)
    assert "bad.safetensors" in str(error.value)
    assert model.ip_adapters == []


def test_what_is_not_there_is_named(folder, model, tmp_path):
    with pytest.raises(CorruptCheckpointError, match=r"give a file instead. Received: plain.safetensors, plus.safet"):
        model.load_ip_adapter(folder)
    with pytest.raises(FileNotFoundError, match=r"none.bin"):
        model.load_ip_adapter(folder / "none.bin")
    with pytest.raises(CorruptCheckpointError, match=r"There is no image encoder. Received: image_encoder='nowhere'"):
        model.load_ip_adapter(folder / "plain.safetensors", "nowhere")
    with pytest.raises(CheckpointMismatchError, match="no vision encoder of CLIP"):
        model.load_ip_adapter(folder / "plain.safetensors", folder / "plus.safetensors")
    with pytest.raises(CheckpointMismatchError, match=r"must be one of ViT-H .1280 wide, 32 layers., ViT-bigG"):
        model.load_ip_adapter(folder / "plain.safetensors", folder / "image_encoder/model.safetensors")
    copy(folder / "plain.safetensors", tmp_path)
    with pytest.raises(CheckpointMismatchError, match=r"as `image_encoder`. Received: none"):
        model.load_ip_adapter(tmp_path)
    for argument in ({"path": 3}, {"path": "a", "image_encoder": 3}, {"path": "a", "name": 3}):
        with pytest.raises(TypeError, match="Received"):
            model.load_ip_adapter(**argument)


def test_the_published_encoders_have_their_sizes():
    pytest.importorskip("transformers")
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    for shape in VISION_ENCODERS.values():
        with keras.StatelessScope(initialize_variables=False):
            network = VisionEncoder(replace(shape, layers=2), initialize=False)
        config = CLIPVisionConfig(
            hidden_size=shape.width,
            intermediate_size=shape.hidden,
            projection_dim=shape.projection,
            num_hidden_layers=2,
            num_attention_heads=shape.heads,
            patch_size=14,
            hidden_act="gelu",
        )
        with torch.device("meta"):
            theirs = CLIPVisionModelWithProjection(config)
        assert sum(np.prod(x.shape) for x in network.variables) == sum(x.numel() for x in theirs.parameters())
