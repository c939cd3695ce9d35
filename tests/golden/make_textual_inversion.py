"""Derives textual_inversion.npz from diffusers: contexts of a small model that has learned words.

    python tests/golden/make_textual_inversion.py

Needs diffusers, transformers and torch.
"""

import tempfile

import make_networks
import numpy as np
import textual_inversion
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer

from keras_diffusion.checkpoints.presets import find


def contexts(folder):
    """What diffusers makes of the prompts after it has learned the words, (prompts, 77, width)."""
    text_encoder = make_networks.text_encoder(textual_inversion.ARCHITECTURE).eval()
    with torch.no_grad():
        make_networks.fill(text_encoder)
    pipeline = StableDiffusionPipeline(
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(find("emoji") / "tokenizer"),
        unet=make_networks.diffusion_model(textual_inversion.ARCHITECTURE),
        vae=make_networks.autoencoder(textual_inversion.ARCHITECTURE),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for path in textual_inversion.write(folder):
        pipeline.load_textual_inversion(path.parent, weight_name=path.name)
    text_encoder.double()
    for prompt in textual_inversion.PROMPTS:
        yield pipeline.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)[0][0].detach().float().numpy()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        np.savez_compressed(textual_inversion.FIXTURE, context=np.stack(list(contexts(folder))))
