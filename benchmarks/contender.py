"""One contender of a race, in its own process: builds its stage on random weights at full size, then runs it on demand.

    python benchmarks/contender.py ours step '{"size": 512, "batch": 1, "jit_compile": "auto"}'

Prints a line of JSON when it is built and another after every line it reads; `run.py` is at the other end.
"""

import json
import resource
import sys
import time

import numpy as np

FACTOR, CHANNELS, LENGTH, WIDTH = 8, 4, 77, 768  # of Stable Diffusion 1.5: latents and context
GUIDANCE = 7.5


def arrays(size, batch):
    """Latents (b, h, w, c) and context (2b, n, d), the negative prompts first."""
    generator = np.random.default_rng(0)
    latents = generator.standard_normal((batch, size // FACTOR, size // FACTOR, CHANNELS), "float32")
    return latents, generator.standard_normal((2 * batch, LENGTH, WIDTH), "float32")


# ---- Ours


def ours_step(size, batch, jit_compile):
    from keras_diffusion import DiffusionModel
    from keras_diffusion.engine import Conditions, Engine
    from keras_diffusion.samplers import build

    latents, context = arrays(size, batch)
    conditions = Conditions(context, np.full(batch, GUIDANCE, "float32"))
    steps = Engine(jit_compile).denoise(DiffusionModel(), latents, conditions, build("ddim", 1000), None)
    return lambda: next(steps)


def ours_decode(size, batch, jit_compile):
    from keras_diffusion import Decoder
    from keras_diffusion.engine import Engine

    engine, decoder, (latents, _) = Engine(jit_compile), Decoder(), arrays(size, batch)
    return lambda: engine.decode(decoder, latents)


def ours_encode(size, batch, jit_compile):
    from keras_diffusion import TextEncoder
    from keras_diffusion.engine import Engine

    engine, encoder = Engine(jit_compile), TextEncoder()
    return lambda: engine.encode(encoder, np.zeros((batch, LENGTH), "int32"))


# ---- diffusers and transformers, in torch and converted to OpenVINO with static shapes


def diffusers_step(size, batch, convert):
    import torch
    from diffusers import DDIMScheduler, UNet2DConditionModel

    latents, context = (torch.from_numpy(x) for x in arrays(size, batch))
    latents = latents.permute(0, 3, 1, 2).contiguous()
    unet = randomized(lambda: UNet2DConditionModel(sample_size=size // FACTOR, cross_attention_dim=WIDTH))
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(1000)
    timesteps = iter(scheduler.timesteps)
    predict = convert(
        lambda x, t, context: unet(x, t, context, return_dict=False)[0],
        unet,
        (torch.cat([latents] * 2), torch.tensor(1), context),
    )

    def step():
        nonlocal latents
        timestep = next(timesteps)
        negative, positive = predict(torch.cat([latents] * 2), timestep, context).chunk(2)
        latents = scheduler.step(negative + GUIDANCE * (positive - negative), timestep, latents).prev_sample

    return step


def diffusers_decode(size, batch, convert):
    import torch
    from diffusers.models.autoencoders.vae import Decoder

    latents = torch.from_numpy(arrays(size, batch)[0]).permute(0, 3, 1, 2).contiguous()
    shape = {"up_block_types": ("UpDecoderBlock2D",) * 4, "block_out_channels": (128, 256, 512, 512)}
    decoder = randomized(lambda: Decoder(in_channels=CHANNELS, layers_per_block=2, **shape))
    decode = convert(decoder, decoder, (latents,))
    return lambda: ((decode(latents) + 1) * 127.5).clip(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def diffusers_encode(size, batch, convert):
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    tokens = torch.zeros((batch, LENGTH), dtype=torch.int64)
    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 12}
    model = randomized(lambda: CLIPTextModel(CLIPTextConfig(**shape)))
    encode = convert(lambda tokens: model(tokens)[0], model, (tokens,))
    return lambda: encode(tokens)


def eager(function, module, inputs):
    return function


def compiled(function, module, inputs):
    import torch

    return torch.compile(function, dynamic=False)


def openvino(function, module, inputs):
    import openvino as ov
    import torch

    class Traced(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, *inputs):
            return function(*inputs)

    model = ov.convert_model(Traced(), example_input=inputs, input=[tuple(x.shape) for x in inputs])
    network = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda *inputs: torch.from_numpy(network([x.numpy() for x in inputs])[0])


def randomized(build):
    """A module with small random weights, without the minute that its own initialisation takes."""
    import torch

    for name in ("kaiming_uniform_", "uniform_", "normal_"):
        setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
    module = build().eval()
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.uniform_(-0.03, 0.03)
    return module


def diffusers(stage, size, batch, convert):
    import torch

    torch.set_grad_enabled(False)
    return globals()[f"diffusers_{stage}"](size, batch, globals()[convert])


def ours(stage, **options):
    return globals()[f"ours_{stage}"](**options)


def main(contender, stage, options):
    def timed(function):
        seconds, processor = time.perf_counter(), time.process_time()
        result = function()
        figures = {"seconds": time.perf_counter() - seconds, "cpu": time.process_time() - processor}
        figures["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(json.dumps({name: round(figure, 3) for name, figure in figures.items()}), file=channel, flush=True)
        return result

    channel, sys.stdout = sys.stdout, sys.stderr
    run = timed(lambda: {"ours": ours, "diffusers": diffusers}[contender](stage, **json.loads(options)))
    for _ in sys.stdin:
        timed(run)


if __name__ == "__main__":
    main(*sys.argv[1:])
