"""The table of names against the networks and, at full size, against diffusers and transformers."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from keras_diffusion.architectures import ARCHITECTURES
from keras_diffusion.checkpoints.layouts.diffusers_configs import to_diffusers
from keras_diffusion.checkpoints.mapping.layer_tables import LAYOUTS
from keras_diffusion.checkpoints.mapping.loading import stored
from keras_diffusion.checkpoints.mapping.names import NETWORKS, rows

DIFFERENT = ["sd14", "sd21", "emoji", "tiny"]  # the others of Stable Diffusion 1 and 2 have the same names
SDXL = ["sdxl", "sdxl_refiner", "ssd_1b", "vega", "tiny_sd"]
PAIRS = [(name, network) for name in (*DIFFERENT, *SDXL) for network in ARCHITECTURES[name].networks]


def narrow(architecture):
    """The architecture with few channels, changing where they changed."""
    unet, vae = architecture.diffusion_model, architecture.autoencoder
    texts = {name: replace(x, width=8, heads=1, vocabulary=10) for name, x in architecture.text_encoders.items()}
    levels = tuple(level._replace(channels=level.channels // 8, heads=1) for level in unet.levels)
    return replace(
        architecture,
        **texts,
        diffusion_model=replace(unet, levels=levels, context=8, groups=2),
        autoencoder=replace(vae, channels=tuple(channels // 8 for channels in vae.channels), groups=1),
    )


@pytest.mark.parametrize(("name", "network"), PAIRS)
def test_every_variable_has_one_row(full_size, network, name):
    architecture, variables = ARCHITECTURES[name], full_size(name)[network].variables
    for column in ("path", "diffusers", "ldm"):
        names = [getattr(row, column) for row in rows(network, architecture)]
        assert len(set(names)) == len(names)
        if column == "path":
            assert set(names) == {variable.path for variable in variables}


@pytest.mark.parametrize(
    ("name", "count"),
    [("sdxl", 2_567_463_684), ("sdxl_refiner", 2_259_526_660), ("ssd_1b", 1_331_334_404), ("vega", 745_225_604)],
)
def test_parameters_of_sdxl_are_those_published(full_size, name, count):
    assert sum(math.prod(variable.shape) for variable in full_size(name)["diffusion_model"].variables) == count


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*DIFFERENT, *SDXL])
def test_every_tensor_of_the_originals_has_one_row(name):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    architecture = ARCHITECTURES[name]
    configs = to_diffusers(architecture)
    with torch.device("meta"):
        originals = {
            **{
                part: getattr(transformers, configs[part]["architectures"][0])(
                    transformers.CLIPTextConfig(**configs[part])
                )
                for part in architecture.text_encoders
            },
            "unet": diffusers.UNet2DConditionModel.from_config(configs["unet"]),
            "vae": diffusers.AutoencoderKL.from_config(configs["vae"]),
        }
    for part, original in originals.items():
        networks = [network for network in architecture.networks if NETWORKS[network][0] == part]
        ours = {row.diffusers: row.layout for network in networks for row in rows(network, architecture)}
        shapes = {key.removeprefix("text_model."): tensor.shape for key, tensor in original.state_dict().items()}
        shapes.pop("embeddings.position_ids", None)
        assert ours.keys() == shapes.keys()
        for name, layout in ours.items():
            assert len(shapes[name]) in {"same": (1, 2), "matrix": (2,), "pointwise": (4,), "conv": (4,)}[layout]
            assert (shapes[name][2:] == (1, 1)) == (layout == "pointwise")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DIFFERENT)
def test_diffusers_converts_the_original_names_alike(name):
    """Every tensor has a value of its own: the number of its row."""
    torch, utils = pytest.importorskip("torch"), pytest.importorskip("diffusers.loaders.single_file_utils")
    architecture = narrow(ARCHITECTURES[name])
    configs = to_diffusers(architecture)
    table = [row for network in architecture.networks for row in rows(network, architecture)]
    shapes = {"same": (8,), "matrix": (8, 1), "pointwise": (8, 1, 1, 1), "conv": (8, 1, 3, 3)}
    original = {row.ldm: torch.full(shapes[row.ldm_layout], number) for number, row in enumerate(table)}
    for third in [row for row in original if row.endswith("[0]")]:
        whole = third.removesuffix("[0]")
        original[whole] = torch.cat([original.pop(f"{whole}[{i}]") for i in range(3)])
    if "cond_stage_model.model.ln_final.weight" in original:
        config = SimpleNamespace(config=SimpleNamespace(hidden_size=8))
        text_encoder = utils.convert_open_clip_checkpoint(config, original)
    else:
        text_encoder = utils.convert_ldm_clip_checkpoint(original)
    converted = {
        **{key.removeprefix("text_model."): tensor for key, tensor in text_encoder.items()},
        **utils.convert_ldm_unet_checkpoint(original, configs["unet"]),
        **utils.convert_ldm_vae_checkpoint(original, configs["vae"]),
    }
    assert converted.keys() == {row.diffusers for row in table}
    for number, row in enumerate(table):
        assert (converted[row.diffusers] == number).all(), row
        assert converted[row.diffusers].shape == shapes[row.layout]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_and_back(layout):
    ours, _ = LAYOUTS[layout]
    values = np.arange(24.0).reshape({"conv": (1, 2, 3, 4), "patches": (12, 2)}.get(layout, (4, 6)))
    there = stored(values, layout)
    np.testing.assert_array_equal(ours(there), values)


def test_layouts_are_those_of_the_formats():
    """Stored are (out, in) and (out, in, height, width); ours are (in, out) and (height, width, in, out)."""
    ours = dict.fromkeys(LAYOUTS, (5, 7)) | {"conv": (2, 3, 5, 7), "patches": (2 * 2 * 3, 7)}
    shape = {layout: stored(np.zeros(ours[layout]), layout).shape for layout in LAYOUTS}
    theirs = {"same": (5, 7), "matrix": (7, 5), "pointwise": (7, 5, 1, 1), "conv": (7, 5, 2, 3)}
    assert shape == {**theirs, "window": (1, 1, 5, 7), "patches": (7, 3, 2, 2)}
