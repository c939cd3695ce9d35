"""The command `upscale`, and upscalers in `generate`."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from keras_diffusion.checkpoints.mapping.paths import targets_by_path
from keras_diffusion.cli import generate
from keras_diffusion.cli import main as cli
from keras_diffusion.images import metadata
from keras_diffusion.networks.upscalers import CompactArchitecture, CompactNet

SETTINGS = metadata.settings(12, 9, "1.0", prompt="a cat", num_steps=7, seed=1)
PHOTO = np.random.default_rng(0).integers(0, 256, (9, 12, 3), "uint8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with an image and an upscaler."""
    network = CompactNet(CompactArchitecture(convs=0, channels=4, scale=2))
    tensors = {target.name: np.zeros(target.shape, "float32") for target in targets_by_path(network)}
    save_file(tensors, tmp_path / "2x.safetensors")  # the image itself, each pixel four times
    metadata.write(tmp_path / "photo.png", PHOTO, SETTINGS, "PNG")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_images_are_enlarged(folder, capsys):
    assert cli.main(["upscale", "photo.png", "--model", "2x.safetensors"]) == 0
    assert capsys.readouterr().out == "photo-upscaled.png\n"
    np.testing.assert_array_equal(pixels("photo-upscaled.png"), PHOTO.repeat(2, 0).repeat(2, 1))
    about = {"Postprocess upscale by": "2", "Postprocess upscaler": "2x"}
    assert metadata.read("photo-upscaled.png") == SETTINGS | about
    options = ["--output", "large.webp", "--scale", "3", "--tile", "128"]
    assert cli.main(["upscale", "photo.png", "--model", "2x.safetensors", *options]) == 0
    assert pixels("large.webp").shape == (27, 36, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere.png"], "nowhere.png"),
        (["photo.png", "--scale", "0"], "`--scale` must be"),
        (["photo.png", "--output", "x.gif"], "suffix"),
        (["photo.png", "photo.png", "--output", "x.png"], "for one image"),
    ],
)
def test_nonsense_is_refused(folder, options, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["upscale", *options, "--model", "2x.safetensors"])
    assert message in capsys.readouterr().err


class FakeModel:
    """Remembers what it was asked, and "draws" `PHOTO`."""

    defaults, sampler, img_height, img_width = (2, 7.5), "ddim", 9, 12
    architecture = SimpleNamespace(prediction_type="epsilon")

    def load_tiny_vae(self, path):
        self.tiny = path

    def text_to_image(self, **call):
        self.call = call
        return PHOTO[None]


def test_what_is_drawn_is_enlarged(folder, monkeypatch):
    model = FakeModel()
    monkeypatch.setattr(generate, "load", lambda *_: model)
    options = (
        "--seed 1 --upscale 2x.safetensors=1.5 --hires 2 --hires-upscaler 2x.safetensors --tiny-vae 2x.safetensors"
    )
    assert cli.main(["generate", "panda", "--output", "panda.png", *options.split()]) == 0
    assert (model.call["tiny_vae"], model.call["hires_upscaler"].name, model.tiny.name) == (
        True,
        "2x",
        "2x.safetensors",
    )
    assert pixels("panda.png").shape == (14, 18, 3)
    found = metadata.read("panda.png")
    assert [found[name] for name in ("Hires upscaler", "Postprocess upscaler")] == ["2x", "2x"]
    assert (found["Postprocess upscale by"], found["VAE Decoder"], found["Size"]) == ("1.5", "TAESD", "12x9")
    assert set(metadata.not_followed(found)) >= {"Hires upscaler", "Postprocess upscaler", "VAE Decoder"}
    with pytest.raises(SystemExit):
        cli.main(["generate", "panda", "--output", "panda.png", "--hires-upscaler", "2x.safetensors"])
