"""Tiny autoencoders: read from every layout, computed as diffusers does, written back, and refused by name."""

import json

import numpy as np
import pytest
from keras import ops
from safetensors.numpy import load_file, save_file

from keras_diffusion import StableDiffusion
from keras_diffusion.architectures import EMOJI, TINY
from keras_diffusion.checkpoints.layouts.tiny_vae_files import TinyVaeFiles
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError
from keras_diffusion.networks.tiny_autoencoder import TAESD_DECODER, TAESD_ENCODER, TinyDecoder, TinyImageEncoder
from keras_diffusion.sampling.noise import starting_noise

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
WEIGHTS = "diffusion_pytorch_model.safetensors"
LATENTS = 2 * starting_noise([1, 2], (3, 5, 4))  # beyond what the decoder's clip leaves alone


@pytest.fixture(scope="module")
def peer():
    torch.manual_seed(0)
    shape = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (12,) * 4}
    return diffusers.AutoencoderTiny(**shape, scaling_factor=0.5).eval()


@pytest.fixture(scope="module")
def folder(peer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "taesd"
    peer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def shared():
    return StableDiffusion(preset=TINY, img_height=32, img_width=32)


@pytest.fixture
def model(shared):
    shared.tiny_decoder = shared.tiny_image_encoder = None
    return shared


def original(folder):
    """The tensors of the encoder and of the decoder by the names that madebyollin/taesd gives them."""
    halves = {"encoder": {}, "decoder": {}}
    for name, tensor in load_file(folder / WEIGHTS).items():
        half, _, place, rest = name.split(".", 3)
        halves[half][f"{int(place) + (half == 'decoder')}.{rest}"] = tensor
    return halves


@pytest.mark.backend
def test_computes_what_diffusers_computes(peer, folder):
    files = TinyVaeFiles(folder, TINY)
    decoder = TinyDecoder(architecture=files.architectures["tiny_decoder"], initialize=False)
    encoder = TinyImageEncoder(architecture=files.architectures["tiny_image_encoder"], initialize=False)
    files.load(tiny_decoder=decoder, tiny_image_encoder=encoder)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 24, 40, 3)).astype("float32")
    with torch.no_grad():
        drawn = peer.decode(torch.from_numpy(LATENTS / 0.5).permute(0, 3, 1, 2)).sample.permute(0, 2, 3, 1).numpy()
        encoded = peer.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).latents.permute(0, 2, 3, 1).numpy()
    assert np.abs(drawn).max() > 0.5
    assert np.abs(ops.convert_to_numpy(decoder(LATENTS)) - drawn).max() < 1e-5
    assert np.abs(ops.convert_to_numpy(encoder(images)) - 0.5 * encoded).max() < 1e-5


def test_is_written_back_bit_for_bit(folder, model, tmp_path):
    model.load_tiny_vae(folder)
    model.save_tiny_vae(tmp_path / "again")
    ours, theirs = load_file(tmp_path / "again" / WEIGHTS), load_file(folder / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert diffusers.AutoencoderTiny.from_pretrained(tmp_path / "again").config.scaling_factor == 0.5

    model.tiny_image_encoder = None
    with pytest.raises(ValueError, match="a folder holds both"):
        model.save_tiny_vae(tmp_path / "half")
    model.save_tiny_vae(tmp_path / "taesd_decoder.safetensors")
    assert load_file(tmp_path / "taesd_decoder.safetensors").keys() == original(folder)["decoder"].keys()


@pytest.mark.parametrize("kind", ["original", "pickle", "prefixed", "diffusers file", "pipeline"])
def test_reads_every_layout(folder, model, tmp_path, kind):
    halves, path = original(folder), tmp_path / "some.pth"
    if kind == "original":
        for half, tensors in halves.items():
            save_file(tensors, path)
            model.load_tiny_vae(path)
            assert (model.tiny_decoder is None) == (half == "encoder")
    elif kind == "pickle":
        torch.save({name: torch.from_numpy(x) for name, x in halves["decoder"].items()}, path)
    elif kind == "prefixed":
        save_file({f"taesd_{half}.{name}": x for half, rest in halves.items() for name, x in rest.items()}, path)
    elif kind == "pipeline":
        path = tmp_path / "whole"
        (path / "vae").mkdir(parents=True)
        for file in folder.iterdir():
            (path / "vae" / file.name).write_bytes(file.read_bytes())
    else:
        path = folder / WEIGHTS
    model.load_tiny_vae(path)
    stored = load_file(folder / WEIGHTS)
    for name, network in (("decoder", model.tiny_decoder), ("encoder", model.tiny_image_encoder)):
        if kind == "pickle" and name == "encoder":
            continue
        for variable in network.variables:
            if variable.path.endswith("conv_2/kernel"):
                place = variable.path.split("/")[0].replace("_", ".")
                expected = stored[f"{name}.{place}.conv.2.weight"].transpose(2, 3, 1, 0)
                np.testing.assert_array_equal(ops.convert_to_numpy(variable), expected)


def test_has_as_many_parameters_as_published():
    def count(network):
        return sum(int(np.prod(variable.shape)) for variable in network.variables)

    assert count(TinyDecoder(architecture=TAESD_DECODER, initialize=False)) == 1_222_531
    assert count(TinyImageEncoder(architecture=TAESD_ENCODER, initialize=False)) == 1_222_532


def test_wrong_files_are_refused_by_name(folder, model, tmp_path):
    def changed(**tensors):
        save_file({**load_file(folder / WEIGHTS), **tensors}, tmp_path / "changed.safetensors")
        return tmp_path / "changed.safetensors"

    def zeros(name):
        return changed(**{name: np.zeros((12, 16, 3, 3), "float32")})

    bad = {"decoder.layers.2.conv.0.bias": np.full(12, np.nan, "float32")}
    for make, message in (
        (lambda: tmp_path / "nothing", "no such folder"),
        (lambda: zeros("decoder.layers.0.weight"), "latent channels 16, not 4"),
        (lambda: zeros("decoder.mid_block.attentions.0.to_q.weight"), "no tiny autoencoder"),
        (lambda: zeros("decoder.layers.2.conv.7.weight"), "unexpected: tiny_decoder/layers.2.conv.7.weight"),
        (lambda: changed(**bad), "layers.2.conv.0.bias: holds nan"),
    ):
        with pytest.raises((CheckpointMismatchError, CorruptCheckpointError), match=message):
            model.load_tiny_vae(make())
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", "act_fn": "silu"}))
    with pytest.raises(CheckpointMismatchError, match=r"AutoencoderKL.*\n.*silu"):
        model.load_tiny_vae(tmp_path)
    with pytest.raises(CheckpointMismatchError, match="pixels per latent 8, not 4"):
        StableDiffusion(preset=EMOJI).load_tiny_vae(folder)
    assert model.tiny_decoder is model.tiny_image_encoder is None
    for path in (folder, folder / WEIGHTS):
        with pytest.raises(CheckpointMismatchError, match="load_tiny_vae"):
            model.load_vae(path)


def test_a_call_and_previews_take_it(folder, model):
    quick = {"num_steps": 1, "seed": 3, "verbose": 0}
    with pytest.raises(ValueError, match="call load_tiny_vae"):
        model.text_to_image("a cat", tiny_vae=True, **quick)
    model.load_tiny_vae(folder)
    latents = model.text_to_image("a cat", output="latents", **quick)
    tiny = model.text_to_image("a cat", tiny_vae=True, **quick)
    np.testing.assert_array_equal(model.preview(latents), tiny)
    expected = 127.5 * (ops.convert_to_numpy(model.tiny_decoder(latents)).clip(-1, 1) + 1)
    assert np.abs(tiny - expected).max() < 0.51
    assert (model.decode(latents) != tiny).any()

    start = {"image": tiny[0], "prompt": "a cat", "strength": 1.0}
    encoded = ops.convert_to_numpy(model.tiny_image_encoder(tiny / np.float32(127.5) - 1))
    expected = model.image_to_image(**start | {"image": encoded}, tiny_vae=True, **quick)
    redrawn = model.image_to_image(**start, tiny_vae=True, **quick)
    assert np.abs(redrawn.astype(int) - expected).max() <= 1
    model.unload(discard=True)
    assert model.tiny_decoder is not None


def test_warns_where_the_name_says_another_model(folder, model, tmp_path, caplog):
    save_file(load_file(folder / WEIGHTS), tmp_path / "taesdxl.safetensors")
    model.load_tiny_vae(folder)
    assert not caplog.messages
    model.load_tiny_vae(tmp_path / "taesdxl.safetensors")
    assert "taesdxl is for SDXL" in caplog.text
