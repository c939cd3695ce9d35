"""Derives keras_cv.npz: how KerasCV 0.9 names and orders the weights of its networks in files.

    pip download --no-deps keras-cv==0.9.0 tf_keras && unzip -q 'keras_cv-*.whl' -d /tmp/kcv
    unzip -q 'tf_keras-*.whl' -d /tmp/kcv && PYTHONPATH=/tmp/kcv python tests/golden/make_keras_cv.py
    PYTHONPATH=/tmp/kcv python tests/golden/make_keras_cv.py --full-size     # compares, and writes no fixture

Every network is built from KerasCV's own source, in which only the widths are replaced by small ones, on Keras 2
(tf_keras) and on Keras 3, and writes its weights: Keras 2 an .h5, where order counts, and a .weights.h5; Keras 3 a
.weights.h5. The values number the variables, so that the files tell which name in one is which in the other.

On Keras 3 the file is then loaded into our network, whose output must be KerasCV's, and written back. There KerasCV's
GELU and its epsilons are replaced by those of the original networks, from which they deviate.
"""

import importlib.util
import re
import sys
import tempfile
import types
from dataclasses import replace
from pathlib import Path

import h5py
import keras
import numpy as np
import tensorflow as tf
import tf_keras

import keras_diffusion
from keras_diffusion.architectures import SD14, SD21_BASE
from keras_diffusion.checkpoints.layouts import keras_files

FIXTURE = Path(__file__).parent / "keras_cv.npz"
PACKAGE = "keras_cv.src.models.stable_diffusion"
NETWORKS = {  # name in the fixture → KerasCV's module, class and arguments
    "sd14/text_encoder": ("text_encoder", "TextEncoder", (77, 1000)),
    "sd14/diffusion_model": ("diffusion_model", "DiffusionModel", (64, 64, 77)),
    "sd14/image_encoder": ("image_encoder", "ImageEncoder", ()),
    "sd14/decoder": ("decoder", "Decoder", (64, 64)),
    "sd21_base/text_encoder": ("text_encoder", "TextEncoderV2", (77, 1000)),
    "sd21_base/diffusion_model": ("diffusion_model", "DiffusionModelV2", (64, 64, 77)),
}
NARROW = {  # what is replaced in the sources
    "diffusion_model": {
        r"\b320\b": "32",
        r"\b640\b": "64",
        r"\b1280\b": "128",
        r"\b768\b": "48",
        r"\b1024\b": "64",
        r"Transformer\(\d+, \d+": lambda m: f"Transformer(4, {HEADS[m[0]]}",
    },
    "text_encoder": {r"\b768\b": "48", r"\b1024\b": "64"},
    "autoencoder": {r"\b128\b": "32", r"\b256\b": "64", r"\b512\b": "96"},
}
HEADS = {
    f"Transformer({heads}, {size}": heads * size // 40
    for heads, size in ((8, 40), (8, 80), (8, 160), (5, 64), (10, 64), (20, 64))
}
# As much of `keras.ops` as KerasCV's networks need on Keras 2, to be built and not to be run.
KERAS_2 = {"softmax": tf.nn.softmax, "gelu": tf.nn.gelu, "triu": lambda x, k: x}
KERAS_2_OPS = types.SimpleNamespace(**{**vars(tf), **KERAS_2})
CHANNELS = (32, 64, 128, 128)


def narrow(architecture):
    """The architecture of the networks that are built."""
    text, unet, vae = architecture.text_encoder, architecture.diffusion_model, architecture.autoencoder
    if not NARROW:
        return replace(architecture, text_encoder=replace(text, vocabulary=1000))
    width = text.width // 16
    levels = zip(unet.levels, CHANNELS, strict=True)
    levels = tuple(level._replace(channels=channels, heads=4) for level, channels in levels)
    return replace(
        architecture,
        text_encoder=replace(text, width=width, vocabulary=1000),
        diffusion_model=replace(unet, levels=levels, context=width),
        autoencoder=replace(vae, channels=(32, 64, 96, 96)),
    )


class Source(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Finds KerasCV's modules on the path and makes them narrow."""

    def find_spec(self, name, path=None, target=None):
        if name.startswith(f"{PACKAGE}."):
            return importlib.util.spec_from_loader(name, self)

    def get_filename(self, name):
        files = (Path(folder) / f"{name.replace('.', '/')}.py" for folder in sys.path)
        return str(next(file for file in files if file.is_file()))

    def get_data(self, path):
        source, module = Path(path).read_text(), Path(path).stem
        for old, new in NARROW.get(module if module in NARROW else "autoencoder", {}).items():
            source = re.sub(old, new, source)
        return source.encode()

    def path_stats(self, path):
        raise OSError


def build(name, which, ops):
    """A network of KerasCV, whose package is imported only as far as it is needed."""
    for module in [module for module in sys.modules if module.startswith("keras_cv.")]:
        del sys.modules[module]
    packages = "keras_cv", "keras_cv.src", "keras_cv.src.backend", "keras_cv.src.api_export", "keras_cv.src.models"
    for module in (*packages, PACKAGE):
        sys.modules[module] = types.ModuleType(module)
        sys.modules[module].__path__ = []
    vars(sys.modules["keras_cv.src.backend"]).update(keras=which, ops=ops)
    sys.modules["keras_cv.src.api_export"].keras_cv_export = lambda name: lambda cls: cls
    module, cls, arguments = NETWORKS[name]
    which.backend.clear_session()
    module = importlib.import_module(f"{PACKAGE}.{module}")
    if which is keras and hasattr(module, "GEGLU"):
        module.GEGLU.call = geglu
    return getattr(module, cls)(*arguments, download_weights=False)


def geglu(self, x):
    x, gate = keras.ops.split(self.dense(x), 2, axis=-1)
    return x * keras.ops.gelu(gate, approximate=False)


def saved(network, suffix):
    """Writes numbered weights, returns the lines "name shape" in the order of the numbers."""
    for number, variable in enumerate(network.weights):
        variable.assign(np.full(variable.shape, number, "float32"))
    numbers = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            numbers[int(item[(0,) * item.ndim])] = f"{name} {item.shape}"

    with tempfile.TemporaryDirectory() as folder:
        network.save_weights(f"{folder}/file{suffix}")
        with h5py.File(f"{folder}/file{suffix}") as file:
            file.visititems(visit)
            layers = [name for name in file.attrs.get("layer_names", ()) if len(file[name].attrs["weight_names"])]
            ordered = [f"{layer}/{weight}" for layer in layers for weight in file[layer].attrs["weight_names"]]
    lines = [numbers[number] for number in range(len(network.weights))]
    assert not ordered or [line.partition(" ")[0] for line in lines] == ordered
    return lines


def deviation(name, network):
    """How far our network is from KerasCV's, with the same file; and files of ours must load there, exactly."""
    random, architecture = np.random.default_rng(0), narrow(SD14 if name.startswith("sd14") else SD21_BASE)
    unet = architecture.diffusion_model
    for variable in network.weights:
        values = random.normal(size=variable.shape)
        scale = {"gamma": 0.1, "beta": 0.1, "bias": 0.1}.get(variable.name, np.prod(variable.shape[:-1]) ** -0.5)
        variable.assign((variable.name == "gamma") + scale * values)
    for layer in network._flatten_layers():
        if type(layer).__name__ == "SpatialTransformer":
            layer.norm.epsilon = 1e-6
        if isinstance(layer, keras.layers.GroupNormalization) and name in ("sd14/image_encoder", "sd14/decoder"):
            layer.epsilon = 1e-6
        if type(layer).__name__ == "CLIPEncoderLayer" and "sd21" in name:
            layer.activation = lambda x: keras.ops.gelu(x, approximate=False)
    ours = getattr(keras_diffusion, "".join(word.title() for word in name.partition("/")[2].split("_")))
    ours = ours(architecture=architecture, initialize=False)
    values = [keras.ops.convert_to_numpy(variable) for variable in network.weights]
    with tempfile.TemporaryDirectory() as folder:
        network.save_weights(f"{folder}/theirs.weights.h5")
        ours.load_weights(f"{folder}/theirs.weights.h5")
        inputs = {
            "text_encoder": [random.integers(0, 1000, (2, 77)), np.tile(np.arange(77), (2, 1))],
            "diffusion_model": [
                random.normal(size=(1, 8, 8, 4)),
                random.normal(size=(1, unet.frequencies)),
                random.normal(size=(1, 77, unet.context)),
            ],
            "image_encoder": random.uniform(-1, 1, size=(1, 64, 64, 3)),
            "decoder": random.normal(size=(1, 8, 8, 4)),
        }[name.partition("/")[2]]
        expected, found = (keras.ops.convert_to_numpy(model(inputs)) for model in (network, ours))
        for file in ("ours.weights.h5", "ours.h5"):
            keras_files.write(f"{folder}/{file}", ours)
            for variable in network.weights:
                variable.assign(np.zeros(variable.shape))
            network.load_weights(f"{folder}/{file}")
            for variable, value in zip(network.weights, values, strict=True):
                np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)
    return np.abs(found - expected).max() / np.abs(expected).max()


def main():
    sys.meta_path.insert(0, Source())
    if "--full-size" in sys.argv:
        NARROW.clear()
        for name in NETWORKS:
            print(f"{name}: deviation {deviation(name, build(name, keras, keras.ops)):.1e}", flush=True)
        return
    fixture = {}
    for name in NETWORKS:
        network = build(name, tf_keras, KERAS_2_OPS)
        fixture[f"{name}/h5"], fixture[f"{name}/weights_h5"] = saved(network, ".h5"), saved(network, ".weights.h5")
        network = build(name, keras, keras.ops)
        assert sorted(saved(network, ".weights.h5")) == sorted(fixture[f"{name}/weights_h5"])
        print(f"{name}: {len(fixture[f'{name}/h5'])} weights, deviation {deviation(name, network):.1e}", flush=True)
    np.savez_compressed(FIXTURE, **fixture)


if __name__ == "__main__":
    main()
