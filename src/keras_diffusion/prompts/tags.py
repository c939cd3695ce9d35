r"""Reads tags in prompts: <lora:name:0.8>, the LoRAs that images are drawn with.

    <lora:name>                     with weight 1
    <lora:name:0.8>                 with weight 0.8
    <lora:name:0.5:0.8>             0.5 for the text encoder, 0.8 for the diffusion model
    <lora:name:te=0.5:unet=0.8>     the same
    <lyco:name:0.8>                 as lora

The definition is that of AUTOMATIC1111's stable-diffusion-webui 1.10, `extra_networks.py` and
`extra_networks_lora.py`: tags are taken out of the prompt, the spaces around them stay, and in a negative prompt they
are words.
"""

import math
import re

TAG = re.compile(r"<(\w+):([^>]+)>")
KINDS = ("lora", "lyco")
WEIGHTS = {"te": "text_encoder", "unet": "diffusion_model"}  # A1111's name → network, in the order of the weights


def take_loras(name, prompts):
    """Takes the LoRAs out of prompts.

    Args:
        name: What error messages call the prompts.
        prompts: A str or a list of them, which must all name the same LoRAs. Anything else is returned as it is.

    Returns:
        The prompts without tags, and a dict from names of LoRAs to scales, see `StableDiffusion.load_lora`.

    Raises:
        ValueError: If a tag is of another kind, a weight is not a finite number, a LoRA is named twice, or prompts name
            different LoRAs.
    """
    texts = [prompts] if isinstance(prompts, str) else prompts
    if not (isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts)):
        return prompts, {}
    loras = [_loras(name, text) for text in texts]
    if any(named != loras[0] for named in loras):
        raise ValueError(
            f"All of `{name}` must name the same LoRAs, because the images of a call are drawn together; draw them "
            f"one at a time. Received: {loras!r:.200}"
        )
    without = [TAG.sub("", text) for text in texts]
    return (without[0] if isinstance(prompts, str) else without), (loras[0] if loras else {})


def _loras(name, text):
    loras = {}
    for kind, content in TAG.findall(text):
        received = f"Received: <{kind}:{content}> in {name}={text!r:.200}"
        if kind not in KINDS:
            raise ValueError(f"A tag in a prompt must be <lora:name:weight>; other kinds are not supported. {received}")
        lora, *rest = content.split(":")
        if lora in loras:
            raise ValueError(f"A prompt may name a LoRA once; give the sum of its weights. {received}")
        weights = dict(zip(WEIGHTS, (x for x in rest if "=" not in x), strict=False))
        weights |= dict(x.split("=", 1) for x in rest if "=" in x)
        try:
            weights = {key: float(weight) for key, weight in weights.items()}
        except ValueError:
            weights = {None: 0}
        if not weights.keys() <= WEIGHTS.keys() or len(rest) > 2 or not all(map(math.isfinite, weights.values())):
            raise ValueError(
                f"The weight of a LoRA must be a number, or one for the text encoder and one for the diffusion model "
                f"(te=, unet=). {received}"
            )
        first = weights.get("te", 1.0)
        loras[lora] = {network: weights.get(key, first) for key, network in WEIGHTS.items()}
    return loras
