"""Puts what train.py wrote into a model folder in diffusers' layout, float16.

    python recipes/icons/export.py --weights FOLDER --output icons/ --check

With --check, the folder is loaded with the library and with diffusers, and both draw one image from one noise.
"""

import argparse
import os
from pathlib import Path

import model
import numpy as np

SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "solver_order": 2,
    "solver_type": "midpoint",
    "timestep_spacing": "linspace",
}
TOKENS = "text_encoder/embeddings_token_embedding/embeddings"
PROMPT = "a red apple"


def clear_unknown(embeddings, first):
    """Sets the rows of tokens that no caption has to zero, which compress: those that only weight decay has changed."""
    products = np.einsum("tc,tc->t", embeddings, first)
    lengths = np.linalg.norm(embeddings, axis=1) * np.linalg.norm(first, axis=1)
    unknown = products >= 0.99999 * lengths
    embeddings[unknown] = 0.0
    return int(unknown.sum())


def export(weights, output, scale, seed):
    """Writes the model folder."""
    from keras_diffusion.checkpoints.layouts import diffusers_folder

    values = {name: value for part in model.PARTS for name, value in model.read(weights, part).items()}
    channels = values["diffusion_model/conv_in/kernel"].shape[-2]
    architecture = model.with_latents(model.SHAPES[scale], channels)
    networks = model.build(architecture, "float32")
    unknown = clear_unknown(values[TOKENS], model.first_weights(networks, seed)[TOKENS])
    for name, network in networks.items():
        for variable in network.variables:
            variable.assign(values.pop(f"{name}/{variable.path}"))
    if values:
        raise ValueError(f"The files hold weights of another architecture. Received: {sorted(values)}")
    diffusers_folder.save(output, architecture, dtype="float16", scheduler_config=SCHEDULER, **networks)
    print(f"{output}: {unknown} of {architecture.text_encoder.vocabulary} tokens are unknown")


def check(folder):
    """Raises an error unless the library and diffusers draw the same image."""
    import diffusers
    import torch
    from PIL import Image

    from keras_diffusion import StableDiffusion

    ours = StableDiffusion.from_preset(folder)
    shape = ours.architecture
    side = shape.image_size // shape.autoencoder.factor
    noise = np.random.default_rng(0).standard_normal((1, side, side, shape.autoencoder.latent_channels), "float32")
    ours = ours.text_to_image(PROMPT, num_steps=10, unconditional_guidance_scale=3, diffusion_noise=noise)[0]
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    latents = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
    theirs = pipeline(PROMPT, num_inference_steps=10, guidance_scale=3, latents=latents, output_type="np").images[0]
    theirs = np.round(theirs * 255).astype("uint8")
    difference = np.abs(ours.astype("int") - theirs).max()
    Image.fromarray(np.concatenate([ours, theirs], 1)).save(Path(folder).with_name("check.png"))
    print(f"largest difference from diffusers: {difference} of 255")
    if difference > 3:
        raise ValueError(f"diffusers draws another image. Received: a difference of {difference}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=Path, help="folder that train.py wrote to")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--scale", choices=("full", "tiny"), default="full")
    parser.add_argument("--seed", type=int, default=0, help="that of train.py")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()

    os.environ.setdefault("KERAS_BACKEND", "jax")
    export(arguments.weights, arguments.output, arguments.scale, arguments.seed)
    if arguments.check:
        check(arguments.output)


if __name__ == "__main__":
    main()
