"""Derives controlnet.npz from diffusers: what ControlNets say, and what a steered diffusion model predicts.

The references compute in float64, so that a fixture carries no rounding but its last.

    python tests/golden/make_controlnet.py             # writes the fixture
    python tests/golden/make_controlnet.py --check     # compares it with what it would write

Needs diffusers and torch.
"""

import controlnets
import make_networks
import networks
import torch
from diffusers import ControlNetModel
from make_networks import channels_first, channels_last, tensor


def build(case, name):
    """diffusers' ControlNet of a case, with the weights of its name."""
    model = ControlNetModel.from_config(controlnets.config(case)).eval()
    for weight, values in model.state_dict().items():
        values.copy_(torch.from_numpy(controlnets.weight(name, weight, tuple(values.shape))))
    return model.double()


@torch.no_grad()
def derive():
    outputs = {}
    for case in controlnets.CASES:
        latent, timesteps, context = map(tensor, networks.inputs(case.unet, case.unet.calls[0]))
        totals = [0] * len(controlnets.places(case))
        for name, scale in controlnets.SCALES.items():
            image = channels_first(tensor(controlnets.image(case, name)))
            call = (channels_first(latent)[:, : case.in_channels], timesteps, context, image)
            down, middle = build(case, name)(*call, return_dict=False)
            residuals = [*down, middle]
            for place, residual in zip(controlnets.places(case), residuals, strict=True):
                outputs[f"{case.name}_{name}_{place}"] = channels_last(residual)[..., :: controlnets.EVERY]
            totals = [total + scale * x for total, x in zip(totals, residuals, strict=True)]
        unet = make_networks.diffusion_model(case.unet.architecture).eval()
        make_networks.fill(unet)
        predict = unet.double()
        call = (channels_first(latent), timesteps, context)
        outputs[f"{case.name}_steered"] = channels_last(
            predict(*call, down_block_additional_residuals=totals[:-1], mid_block_additional_residual=totals[-1]).sample
        )
        features = [channels_first(tensor(x)) for x in controlnets.features(case)]
        outputs[f"{case.name}_adapted"] = channels_last(
            predict(*call, down_intrablock_additional_residuals=features).sample
        )
    return {name: output.float().numpy() for name, output in outputs.items()}


if __name__ == "__main__":
    make_networks.main(__doc__.splitlines()[0], {"controlnet": derive})
