"""stable-diffusion.cpp through its Python package, which pip compiles: some minutes, and a C++ compiler with CMake."""

import os

from peers import GUIDANCE, PROMPT


def image(size, batch, steps, dtype, preset, flash_attention, **_):
    from stable_diffusion_cpp import StableDiffusion

    model = StableDiffusion(
        preset,
        wtype={"float32": "f32", "float16": "f16"}[dtype],
        n_threads=os.cpu_count(),
        diffusion_flash_attn=flash_attention,
        verbose=False,
    )
    options = {"width": size, "height": size, "cfg_scale": GUIDANCE, "sample_steps": steps, "batch_count": batch}
    return lambda: model.generate_image(PROMPT, sample_method="euler", **options)
