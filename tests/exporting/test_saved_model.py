import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_diffusion import StableDiffusion
from keras_diffusion.exporting.inputs import export_inputs

from ..small import SMALL

# What a server does: it knows TensorFlow alone.
SERVE = """
import sys
import numpy as np
import tensorflow as tf

folder, *files = sys.argv[1:]
functions = tf.saved_model.load(folder).signatures
for file in files:
    inputs = {name: tf.constant(array) for name, array in np.load(file).items()}
    function = functions["serving_default" if "tokens" in inputs else "encode_image"]
    np.savez(file, **{name: tensor.numpy() for name, tensor in function(**inputs).items()})
assert "keras_diffusion" not in sys.modules
"""
OPTIONS = {"num_steps": 3, "unconditional_guidance_scale": [3.0, 1.0], "seed": 5}
CALLS = (  # two images with prompts of their own; a sampler that draws noise
    {"prompt": ["a cat", "a dog"], "negative_prompt": "blue", **OPTIONS},
    {"prompt": "a cat", "batch_size": 2, "sampler": "euler_ancestral", **OPTIONS},
)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the test of `export` does it on other backends")
def test_it_draws_the_same_without_keras(tmp_path):
    keras.utils.set_random_seed(0)
    model, folder = StableDiffusion(16, 12, preset=SMALL), tmp_path / "model"
    model.export(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 12, 3), "uint8")
    files = [tmp_path / f"{i}.npz" for i in range(3)]
    for file, inputs in zip(
        files, [*(export_inputs(folder, **call) for call in CALLS), {"images": pixels}], strict=True
    ):
        np.savez(file, **inputs)
    subprocess.run([sys.executable, "-c", SERVE, folder, *files], check=True)
    for file, call in zip(files, CALLS, strict=False):
        images = model.text_to_image(**call, verbose=0)
        assert images.std() > 10
        np.testing.assert_allclose(np.load(file)["images"], images.astype(int), atol=1)
    latents = keras.ops.convert_to_numpy(model.image_encoder(np.float32(pixels) / 127.5 - 1))
    np.testing.assert_allclose(np.load(files[2])["latents"], latents, atol=1e-5)
