"""Derives adapter.npz from diffusers: what a diffusion model predicts that also attends to an image (IP-Adapter).

The reference computes in float64, so that the fixture carries no rounding but its last.

    python tests/golden/make_adapter.py             # writes the fixture
    python tests/golden/make_adapter.py --check     # compares it with what it would write

Needs diffusers and torch.
"""

import make_networks
import networks
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from make_networks import channels_first, channels_last, tensor

TOKENS, SCALE = 4, 0.7
CASES = ("sd1", "sd2")


def adapter(name, module):
    """A processor with weights drawn by its name; the plain one where the picture attends to itself."""
    if not name.endswith("attn2.processor"):
        return module.processor
    width, context = module.to_q.out_features, module.to_k.in_features
    processor = IPAdapterAttnProcessor2_0(width, context, num_tokens=(TOKENS,), scale=SCALE).double()
    for part, weights in (("to_k_ip", processor.to_k_ip), ("to_v_ip", processor.to_v_ip)):
        path = name.removesuffix("processor") + part
        weights[0].weight.data = torch.from_numpy(networks.uniform(path, (width, context))).double()
    return processor


@torch.no_grad()
def derive():
    outputs = {}
    for case in networks.cases("diffusion_model"):
        if case.name in CASES:
            unet = make_networks.diffusion_model(case.architecture).eval()
            make_networks.fill(unet)
            unet.double()
            modules = dict(unet.named_modules())
            unet.set_attn_processor(
                {name: adapter(name, modules[name.removesuffix(".processor")]) for name in unet.attn_processors}
            )
            latent, timesteps, context = map(tensor, networks.inputs(case, case.calls[0]))
            tokens = tensor(networks.uniform("image tokens", (len(context), TOKENS, context.shape[2])))
            predicted = unet(channels_first(latent), timesteps, (context, [tokens])).sample
            outputs[case.name] = channels_last(predicted).float().numpy()
    return outputs


if __name__ == "__main__":
    make_networks.main(__doc__.splitlines()[0], {"adapter": derive})
