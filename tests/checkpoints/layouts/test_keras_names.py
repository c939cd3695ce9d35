"""Names and order of weights in Keras' files, against KerasCV's own in golden/keras_cv.npz and against Keras itself."""

from ast import literal_eval
from dataclasses import replace
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from keras_diffusion.architectures import SD14, SD21_BASE, TINY
from keras_diffusion.checkpoints.layouts import keras_names
from keras_diffusion.checkpoints.mapping.loading import stored

FIXTURE = Path(__file__).parents[2] / "golden" / "keras_cv.npz"
NETWORKS = ["text_encoder", "diffusion_model", "image_encoder", "decoder"]
ARCHITECTURES = {"sd14": SD14, "sd21_base": SD21_BASE}
THEIRS = [f"sd14/{name}" for name in NETWORKS] + ["sd21_base/text_encoder", "sd21_base/diffusion_model"]


def narrow(architecture):
    """The architecture that golden/make_keras_cv.py builds."""
    text, unet, vae = architecture.text_encoder, architecture.diffusion_model, architecture.autoencoder
    width, channels = text.width // 16, (32, 64, 128, 128)
    levels = tuple(level._replace(channels=wide, heads=4) for level, wide in zip(unet.levels, channels, strict=True))
    return replace(
        architecture,
        text_encoder=replace(text, width=width, vocabulary=1000),
        diffusion_model=replace(unet, levels=levels, context=width),
        autoencoder=replace(vae, channels=(32, 64, 96, 96)),
    )


@pytest.mark.parametrize("name", THEIRS)
def test_names_shapes_and_order_are_kerascvs(build, name):
    """In both kinds of file; the fixture's two columns speak of the same weights."""
    preset, network = name.split("/")
    architecture = narrow(ARCHITECTURES[preset])
    with keras.StatelessScope(initialize_variables=False):
        variables = build(architecture, [network])[network].variables
    shapes = {variable.path: tuple(variable.shape) for variable in variables}
    rows = keras_names.keras_cv(network, architecture)
    found = [(row.name, stored(np.broadcast_to(0, shapes[row.path]), row.layout).shape) for row in rows]
    with np.load(FIXTURE) as fixture:
        by_name, by_order = fixture[f"{name}/weights_h5"].tolist(), fixture[f"{name}/h5"].tolist()
    assert found == [(line.partition(" ")[0], literal_eval(line.partition(" ")[2])) for line in by_name]
    assert [row.path.rpartition("/")[2] for row in rows] == [
        line.partition(":")[0].rpartition("/")[2] for line in by_order
    ]


@pytest.mark.parametrize("network", NETWORKS)
def test_own_names_are_what_keras_writes(build, tmp_path, network):
    model = build(TINY, [network])[network]
    for number, variable in enumerate(model.variables):
        variable.assign(np.full(variable.shape, number))
    path, names = tmp_path / "a.weights.h5", {}
    model.save_weights(path)
    with h5py.File(path) as file:
        file.visititems(lambda name, item: names.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        numbers = {name: int(item[(0,) * item.ndim]) for name, item in names.items()}
    expected = {row.name: row.path for row in keras_names.own(network, TINY)}
    assert {name: model.variables[number].path for name, number in numbers.items()} == expected
