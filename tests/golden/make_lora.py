"""Derives lora_peft.safetensors, lora_kohya.safetensors and lora.npz from diffusers and peft.

peft makes a LoRA for every layer of a small model that can have one, and diffusers writes the first file. The second
one holds another LoRA under the names of kohya's sd-scripts (networks/lora.py): what diffusers makes of it shows that
the names are right. lora.npz holds what the networks compute with either and with both.

    python tests/golden/make_lora.py             # writes the fixtures
    python tests/golden/make_lora.py --check     # compares the outputs with what it would write

Needs diffusers, peft, transformers and torch.
"""

import argparse

import lora
import make_networks
import networks
import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

TRANSFORMERS = r".*attentions\.\d\.(proj_in|proj_out|.*(to_[qkv]|to_out\.0|ff\.net\.0\.proj|ff\.net\.2))"
CONVOLUTIONS = r".*(conv1|conv2|conv_shortcut|time_emb_proj|samplers\.0\.conv)"
ENDS = r"conv_in|conv_out|time_embedding\.linear_[12]"
CONFIGS = {  # file → part → what peft is told
    "peft": {
        "unet": LoraConfig(
            r=2,
            lora_alpha=3,
            rank_pattern={"to_v": 3},
            alpha_pattern={"attn2.to_q": 5, "conv1": 1},
            target_modules="|".join([TRANSFORMERS, CONVOLUTIONS, ENDS]),
        ),
        "text_encoder": LoraConfig(r=2, lora_alpha=1, use_rslora=True, target_modules=r".*(_proj|fc1|fc2)"),
    },
    "kohya": {
        "unet": LoraConfig(r=3, target_modules="|".join([TRANSFORMERS, CONVOLUTIONS])),
        "text_encoder": LoraConfig(r=1, target_modules=r".*(_proj|fc1|fc2)"),
    },
}
JOINED = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}  # kohya's prefixes
ALPHAS = {"unet": 1.5, "text_encoder": 1.0}


def pipeline():
    """The small model, as diffusers builds it."""
    parts = {
        "unet": make_networks.diffusion_model(lora.ARCHITECTURE),
        "text_encoder": make_networks.text_encoder(lora.ARCHITECTURE),
    }
    for part in parts.values():
        make_networks.fill(part)
    return StableDiffusionPipeline(
        **parts,
        vae=make_networks.autoencoder(lora.ARCHITECTURE),
        tokenizer=None,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def random(file):
    """The tensors of a random LoRA, by part, as peft names them."""
    model, tensors = pipeline(), {}
    for part, config in CONFIGS[file].items():
        getattr(model, part).add_adapter(config)
        tensors[part] = {
            name.replace("text_model.", ""): torch.from_numpy(networks.uniform(file + name, tuple(tensor.shape)) / 10)
            for name, tensor in get_peft_model_state_dict(getattr(model, part)).items()
        }
    return tensors


def write_peft(folder):
    """Lets diffusers write a LoRA."""
    tensors = random("peft")
    StableDiffusionPipeline.save_lora_weights(
        folder,
        weight_name=lora.FILES["peft"].name,
        unet_lora_layers=tensors["unet"],
        text_encoder_lora_layers=tensors["text_encoder"],
        unet_lora_adapter_metadata=CONFIGS["peft"]["unet"].to_dict(),
        text_encoder_lora_adapter_metadata=CONFIGS["peft"]["text_encoder"].to_dict(),
    )


def write_kohya(folder):
    """Writes a LoRA as sd-scripts does: layers with "_" for ".", halves down and up, an alpha beside them."""
    renamed = {}
    for part, tensors in random("kohya").items():
        for name, tensor in tensors.items():
            layer, half = name.removesuffix(".weight").rsplit(".", 1)
            layer = JOINED[part] + layer.replace(".", "_")
            renamed[f"{layer}.{'lora_down' if half == 'lora_A' else 'lora_up'}.weight"] = tensor
            renamed[f"{layer}.alpha"] = torch.tensor(ALPHAS[part])
    save_file(renamed, folder / lora.FILES["kohya"].name)


@torch.no_grad()
def outputs(scales):
    """What diffusers' networks compute with LoRAs of some scales."""
    model = pipeline()
    for file in scales:
        model.load_lora_weights(lora.FILES[file].parent, weight_name=lora.FILES[file].name, adapter_name=file)
    if scales:
        model.set_adapters(list(scales), list(scales.values()))
    calls = {"unet": make_networks.predict, "text_encoder": make_networks.encode_text}
    for part, call in calls.items():
        yield part, call(getattr(model, part).double(), *map(make_networks.tensor, lora.inputs(part))).float().numpy()


def derive():
    return {f"{case}_{part}": array for case, scales in lora.CASES.items() for part, array in outputs(scales)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the fixtures instead of writing them")
    if parser.parse_args().check:
        with np.load(lora.FIXTURE) as fixture:
            error = max(np.abs(fixture[name] - array).max() for name, array in derive().items())
        print(f"maximum difference {error:.1e}")
        assert error < 1e-5
    else:
        write_peft(lora.HERE)
        write_kohya(lora.HERE)
        np.savez_compressed(lora.FIXTURE, **derive())
