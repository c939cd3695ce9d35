"""Stage 4: puts what the stages learned into a model folder in diffusers layout.

python recipes/emoji/export.py --autoencoder autoencoder.npz --diffusion diffusion.npz --output emoji/

With --size 128, they are what grow.py and widen.py wrote. A model folder for --diffusion keeps its text encoder and
diffusion model: --autoencoder grown.npz --diffusion weights/emoji --size 128 is the bundled model at 128×128.
"""

import argparse
import os

import grow
import numpy as np

from keras_diffusion import architectures
from keras_diffusion.checkpoints.layouts import diffusers_folder
from keras_diffusion.networks.decoder import Decoder
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.image_encoder import ImageEncoder
from keras_diffusion.networks.text_encoder import TextEncoder

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
NETWORKS = {
    "text_encoder": TextEncoder,
    "diffusion_model": DiffusionModel,
    "image_encoder": ImageEncoder,
    "decoder": Decoder,
}


def trained_tokens(arrays):
    """Returns the weights with zeros for the tokens that no caption trained: zeros compress, and tell them apart."""
    weights = dict(arrays)
    embeddings = weights["text_encoder/embeddings_token_embedding/embeddings"]
    embeddings[np.setdiff1d(np.arange(len(embeddings)), weights["used_tokens"])] = 0.0
    return weights


def assign(weights, **networks):
    for name, network in networks.items():
        for variable in network.variables:
            variable.assign(weights[f"{name}/{variable.path}"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", required=True, help="what stage 2 wrote")
    parser.add_argument("--diffusion", required=True, help="what stage 3 wrote")
    parser.add_argument("--output", required=True)
    parser.add_argument("--size", type=int, choices=(64, 128), default=64)
    arguments = parser.parse_args()

    architecture = {64: architectures.EMOJI, 128: grow.LARGER}[arguments.size]
    networks = {name: network(architecture=architecture) for name, network in NETWORKS.items()}
    assign(np.load(arguments.autoencoder), image_encoder=networks["image_encoder"], decoder=networks["decoder"])
    both = {name: networks[name] for name in ("text_encoder", "diffusion_model")}
    if os.path.isdir(arguments.diffusion):
        diffusers_folder.DiffusersFolder(arguments.diffusion).load(**both)
    else:
        assign(trained_tokens(np.load(arguments.diffusion)), **both)
    diffusers_folder.save(arguments.output, architecture, dtype="float16", scheduler_config=SCHEDULER, **networks)


if __name__ == "__main__":
    main()
