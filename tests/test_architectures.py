import json
from dataclasses import FrozenInstanceError, replace

import pytest

from keras_diffusion.architectures import (
    ARCHITECTURES,
    EMOJI,
    PREDICTION_TYPES,
    SD14,
    SD15,
    SD21,
    SD21_BASE,
    Architecture,
    AutoencoderShape,
    Level,
)

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)


def test_the_table_knows_every_architecture_by_its_name():
    of_sdxl = {"sdxl", "sdxl_refiner", "sdxl_inpainting", "sdxl_turbo", "ssd_1b", "vega"}
    others = {"sd14", "sd15", "sd20_base", "sd20", "sd21_base", "sd21", "tiny_sd", "lcm", "emoji", "tiny"}
    assert set(ARCHITECTURES) == of_sdxl | others
    assert all(architecture.name == name for name, architecture in ARCHITECTURES.items())


@every_architecture
def test_configuration_survives_json(architecture):
    again = Architecture.from_config(json.loads(json.dumps(architecture.get_config())))
    assert again == architecture
    assert isinstance(again.diffusion_model.levels[0], Level)
    assert hash(again) == hash(architecture)


@every_architecture
def test_its_parts_fit(architecture):
    unet, autoencoder = architecture.diffusion_model, architecture.autoencoder
    texts = architecture.text_encoders.values()
    assert unet.context == sum(text.width for text in texts)
    assert unet.out_channels == autoencoder.latent_channels
    assert unet.in_channels == (9 if "inpainting" in architecture.name else 4)
    assert all(text.width % text.heads == 0 and text.pad_token < text.vocabulary for text in texts)
    assert bool(architecture.size_ids) == bool(architecture.text_encoder_2) == bool(unet.added)
    assert architecture.prediction_type in PREDICTION_TYPES
    assert architecture.image_size % (autoencoder.factor * 2 ** (len(unet.levels) - 1)) == 0
    for level in unet.levels:
        assert level.channels % unet.groups == level.channels % level.heads == 0
    for channels in autoencoder.channels:
        assert channels % autoencoder.groups == 0


def test_an_architecture_cannot_change():
    with pytest.raises(FrozenInstanceError):
        SD14.prediction_type = "sample"


def test_derived_sizes_of_stable_diffusion_1():
    unet = SD14.diffusion_model
    assert (unet.frequencies, unet.time_width, unet.middle) == (320, 1280, (1, 0))
    assert SD14.text_encoder.hidden == 3072
    assert SD14.autoencoder.factor == 8
    assert replace(SD15, name="sd14") == SD14


def test_versions_differ_as_published():
    assert [level.heads for level in SD14.diffusion_model.levels] == [8, 8, 8, 8]
    # Version 2 has heads of 64 channels.
    assert all(level.channels == 64 * level.heads for level in SD21.diffusion_model.levels)
    assert replace(SD21_BASE, name="sd21", prediction_type="v_prediction", image_size=768) == SD21
    assert (SD14.text_encoder.activation, SD14.text_encoder.pad_token) == ("quick_gelu", 49407)
    assert (SD21.text_encoder.activation, SD21.text_encoder.pad_token) == ("gelu", 0)
    assert SD14.autoencoder == SD21.autoencoder


@pytest.mark.parametrize(
    ("architecture", "size", "expected"),
    [
        (SD14, (512, 768), (64, 96)),
        (SD14, (None, 512), (None, 64)),
        (EMOJI, (64, 128), (16, 32)),
        (EMOJI, (None, None), (None, None)),
    ],
)
def test_latent_size(architecture, size, expected):
    assert architecture.autoencoder.latent_size(*size) == expected


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_the_factor_counts_the_levels(levels):
    assert AutoencoderShape(channels=(32,) * levels).factor == 2 ** (levels - 1)


@pytest.mark.parametrize(("height", "width"), [(100, 64), (64, 4), (None, 60)])
def test_sizes_that_latents_cannot_have_are_refused(height, width):
    with pytest.raises(ValueError, match=f"multiples of 8. Received: {height} × {width}"):
        SD14.autoencoder.latent_size(height, width)


def test_depths_of_blocks():
    assert Level(8, 1, 2).down(2) == (2, 2)
    assert Level(8, 1, 2).up(3) == (2, 2, 2)
    assert Level(8, 1, (1, 2), (0, 1, 2)).up(3) == (0, 1, 2)
    assert Level(8, 1, 0, 1).down(2) == (0, 0)
