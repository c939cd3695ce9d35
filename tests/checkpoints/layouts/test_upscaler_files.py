"""Upscalers: read in every spelling, computed as the published networks do, and refused by name."""

import numpy as np
import pytest
from keras import ops
from safetensors.numpy import save_file

from keras_diffusion import Upscaler
from keras_diffusion.checkpoints.layouts.upscaler_files import UpscalerFile
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError
from keras_diffusion.networks.upscalers import CompactArchitecture, RRDBArchitecture

torch = pytest.importorskip("torch")
functional = torch.nn.functional
RRDB = RRDBArchitecture(blocks=2, channels=8, growth=4)
CASES = {
    "x4": RRDB,
    "x2": RRDBArchitecture(blocks=2, channels=8, growth=4, unshuffle=2),
    "x8": RRDBArchitecture(blocks=1, channels=8, growth=4, doublings=3),
    "compact": CompactArchitecture(convs=3, channels=8),
    "compact x1": CompactArchitecture(convs=1, channels=8, scale=1),
}
IMAGES = np.random.default_rng(0).uniform(0, 1, (2, 10, 14, 3)).astype("float32")


def shapes(architecture):
    """The tensors of a network and their shapes, in BasicSR's names."""
    if isinstance(architecture, CompactArchitecture):
        a, last = architecture, 2 * architecture.convs + 2
        convs = {f"body.{2 * i}": (a.channels, 3 if i == 0 else a.channels) for i in range(a.convs + 1)}
        convs[f"body.{last}"] = (3 * a.scale**2, a.channels)
        slopes = {f"body.{2 * i + 1}.weight": (a.channels,) for i in range(a.convs + 1)}
    else:
        c, g, slopes = architecture.channels, architecture.growth, {}
        convs = {"conv_first": (c, 3 * architecture.unshuffle**2), "conv_body": (c, c)}
        for i in range(architecture.blocks):
            for j in (1, 2, 3):
                convs |= {f"body.{i}.rdb{j}.conv{k + 1}": (g if k < 4 else c, c + k * g) for k in range(5)}
        convs |= {f"conv_up{i + 1}": (c, c) for i in range(architecture.doublings)}
        convs |= {"conv_hr": (c, c), "conv_last": (3, c)}
    weights = {f"{name}.weight": (*shape, 3, 3) for name, shape in convs.items()}
    return weights | {f"{name}.bias": shape[:1] for name, shape in convs.items()} | slopes


def tensors(architecture):
    generator = np.random.default_rng(1)
    return {
        name: (generator.normal(size=shape) / np.sqrt(max(4, np.prod(shape[1:])))).astype("float32")
        for name, shape in shapes(architecture).items()
    }


def reference(architecture, weights, images):
    """What the network computes, written from the papers and the layout of the files (arXiv:1809.00219, figure 4)."""
    w = {name: torch.from_numpy(x) for name, x in weights.items()}
    x = torch.from_numpy(images).permute(0, 3, 1, 2)

    def conv(name, x):
        return functional.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)

    def relu(x):
        return functional.leaky_relu(x, 0.2)

    def larger(x, scale):
        return functional.interpolate(x, scale_factor=scale, mode="nearest")

    if isinstance(architecture, CompactArchitecture):
        h = x
        for i in range(architecture.convs + 1):
            h = functional.prelu(conv(f"body.{2 * i}", h), w[f"body.{2 * i + 1}.weight"])
        h = functional.pixel_shuffle(conv(f"body.{2 * architecture.convs + 2}", h), architecture.scale)
        return (h + larger(x, architecture.scale)).permute(0, 2, 3, 1).numpy()
    first = h = conv("conv_first", functional.pixel_unshuffle(x, architecture.unshuffle))
    for i in range(architecture.blocks):
        block = h
        for j in (1, 2, 3):
            features = [h]
            for k in range(1, 5):
                features.append(relu(conv(f"body.{i}.rdb{j}.conv{k}", torch.cat(features, 1))))
            h = h + 0.2 * conv(f"body.{i}.rdb{j}.conv5", torch.cat(features, 1))
        h = block + 0.2 * h
    h = first + conv("conv_body", h)
    for i in range(architecture.doublings):
        h = relu(conv(f"conv_up{i + 1}", larger(h, 2)))
    return conv("conv_last", relu(conv("conv_hr", h))).permute(0, 2, 3, 1).numpy()


@pytest.mark.backend
@pytest.mark.parametrize("case", CASES)
def test_computes_what_is_published(case, tmp_path):
    weights = tensors(CASES[case])
    save_file(weights, tmp_path / "some.safetensors")
    upscaler = Upscaler.from_file(tmp_path / "some.safetensors")
    assert upscaler.network.architecture == CASES[case]
    expected = reference(CASES[case], weights, IMAGES)
    assert expected.std() > 0.1
    computed = ops.convert_to_numpy(upscaler.network(IMAGES))
    assert np.abs(computed - expected).max() < 1e-5 * np.abs(expected).max()
    assert upscaler.scale == {"x4": 4, "x2": 2, "x8": 8}.get(case, CASES[case].scale)


FIRST = {  # a layer → its place in the files of 2018, if there are two residual blocks and two doublings
    "conv_first": "0",
    "conv_body": "1.sub.2",
    "conv_up1": "3",
    "conv_up2": "6",
    "conv_hr": "8",
    "conv_last": "10",
}
SECOND = {  # what a name contains → what it contains in the files of 2019
    "body.": "RRDB_trunk.",
    "conv_RRDB_trunk.": "trunk_conv.",
    "conv_up": "upconv",
    ".rdb": ".RDB",
    "conv_hr": "HRconv",
}


def first_names(name):
    layer, rest = name.split(".", 1)
    if layer != "body":
        return f"model.{FIRST[layer]}.{rest}"
    i, block, convolution, kind = rest.split(".")
    return f"model.1.sub.{i}.RDB{block[-1]}.{convolution}.0.{kind}"


def second_names(name):
    for new, old in SECOND.items():
        name = name.replace(new, old)
    return name


SPELLINGS = {
    "of 2018": first_names,
    "of 2019": second_names,
    "in a wrapper": lambda name: f"model.{name}",
    "of parallel training": lambda name: f"params_ema.module.{name}",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_reads_every_spelling(spelling, tmp_path):
    stored = {SPELLINGS[spelling](name): x for name, x in tensors(RRDB).items()}
    save_file(stored, tmp_path / "some.safetensors")
    file = UpscalerFile(tmp_path / "some.safetensors")
    assert file.architecture == RRDB
    assert {name: tensor.name for name, tensor in file.tensors.items()} == {
        name: SPELLINGS[spelling](name) for name in shapes(RRDB)
    }


def test_takes_the_averages_of_a_pickle(tmp_path):
    weights = {name: torch.from_numpy(x) for name, x in tensors(CASES["compact"]).items()}
    torch.save({"params": {name: 0 * x for name, x in weights.items()}, "params_ema": weights}, tmp_path / "some.pth")
    (first, *_) = Upscaler.from_file(tmp_path / "some.pth").network.get_weights()
    np.testing.assert_array_equal(first, weights["body.0.weight"].numpy().transpose(2, 3, 1, 0))


def test_wrong_files_are_refused_by_name(tmp_path):
    def saved(weights):
        save_file(weights, tmp_path / "some.safetensors")
        return tmp_path / "some.safetensors"

    compact, zeros = tensors(CASES["compact"]), np.zeros(3, "float32")
    for weights, message in (
        ({"layers.0.residual_group.blocks.0.norm1.weight": zeros}, "looks like SwinIR"),
        ({"model.diffusion_model.out.0.bias": zeros}, "looks like a single file in the original"),
        ({}, "looks like nothing known"),
        (compact | {"body.1.weight": np.zeros((8, 1), "float32")}, "no upscaler that is supported"),
        (compact | {"body.99999999999.weight": zeros}, "unexpected: upscaler/body.99999999999.weight"),
        ({name: x for name, x in compact.items() if name != "body.2.bias"}, "missing: upscaler/body.2.bias"),
        (compact | {"body.2.bias": np.full(8, np.inf, "float32")}, "body.2.bias: holds inf"),
        (tensors(RRDB) | {"body.0.rdb1.conv1x1.weight": zeros}, "unexpected: upscaler/body.0.rdb1.conv1x1.weight"),
        (compact | {"model.body.0.weight": compact["body.0.weight"]}, "Several tensors have one name"),
    ):
        with pytest.raises(CheckpointMismatchError, match=message):
            Upscaler.from_file(saved(weights))
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04cut")
    with pytest.raises(CorruptCheckpointError):
        Upscaler.from_file(tmp_path / "cut.pth")
    with pytest.raises(FileNotFoundError):
        Upscaler.from_file(tmp_path / "none.pth")
    with pytest.raises(TypeError, match="given as a file"):
        Upscaler.from_file(3)
