"""Stage 4: puts what the stages learned into a model folder in diffusers layout.

python recipes/emoji/export.py --autoencoder autoencoder.npz --diffusion diffusion.npz --output emoji/

With --size 128, they are what grow.py and widen.py wrote.
"""

import argparse

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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", required=True, help="what stage 2 wrote")
    parser.add_argument("--diffusion", required=True, help="what stage 3 wrote")
    parser.add_argument("--output", required=True)
    parser.add_argument("--size", type=int, choices=(64, 128), default=64)
    arguments = parser.parse_args()

    architecture = {64: architectures.EMOJI, 128: grow.ICONS}[arguments.size]
    weights = {**np.load(arguments.autoencoder), **np.load(arguments.diffusion)}
    embeddings = weights["text_encoder/embeddings_token_embedding/embeddings"]
    unused = np.setdiff1d(np.arange(len(embeddings)), weights["used_tokens"])
    embeddings[unused] = 0.0  # no caption trained them, and zeros compress
    networks = {name: network(architecture=architecture) for name, network in NETWORKS.items()}
    for name, network in networks.items():
        for variable in network.variables:
            variable.assign(weights[f"{name}/{variable.path}"])
    diffusers_folder.save(arguments.output, architecture, dtype="float16", scheduler_config=SCHEDULER, **networks)


if __name__ == "__main__":
    main()
