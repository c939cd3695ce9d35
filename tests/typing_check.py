"""Uses the public API as a user would. Pyright reads it and must agree; nobody runs it."""

from collections.abc import Mapping
from typing import assert_type

import numpy as np

from keras_diffusion import (
    SAMPLERS,
    Control,
    ControlNet,
    ImagePrompt,
    NumericalError,
    Options,
    StableDiffusion,
    Upscaler,
    pad,
)

model = StableDiffusion.from_preset("emoji", dtype="mixed_float16", jit_compile=True)
assert_type(model, StableDiffusion)

options: Options = {"sampler": "euler", "guidance_interval": (0.2, 1), "output": "pil", "verbose": 0}
model.text_to_image("a cat", "a dog", batch_size=2, num_steps=20, seed=[1, 2], **options)
model.text_to_image(["a cat", "a dog"], callback=lambda step, timestep, latents: step < 5)
model.image_to_image("cat.png", "a cat", strength=0.5, img_height=512, deep_cache=2)
model.inpaint("cat.png", np.ones((64, 64), bool), "a cat", mask_white="keep")
model.generate_image(model.encode_text("a cat"), diffusion_noise=np.zeros((8, 8, 4)), karras=True)
for step, timestep, latents in model.denoise("a cat", image="cat.png", strength=0.5):
    assert_type(step, int)
    assert_type(timestep, float)
    assert_type(latents, np.ndarray)
    assert_type(model.preview(latents), np.ndarray)

canny = model.load_controlnet("canny")
assert_type(canny, ControlNet)
model.text_to_image("a bird", control=Control(canny, "edges.png", 0.8))
assert_type(model.load_ip_adapter("plus.safetensors", image_encoder="image_encoder"), str)
model.text_to_image(
    "a bird", image_prompt=[ImagePrompt("style.png", {"up": 0.5}), ImagePrompt("face.png", mask="m.png")]
)
assert_type(model.load_lora("style.safetensors", scale=0.7), str)
assert_type(model.loras, dict[str, float | Mapping[str, float]])
model.set_lora_scale("style", {"text_encoder": 0.5, "mid_block": 0})
model.load_vae("vae.safetensors")
model.load_tiny_vae("taesd")
upscaler = Upscaler.from_file("4x.pth", dtype="mixed_float16")
assert_type(upscaler, Upscaler)
assert_type(upscaler.upscale("cat.png", 2), np.ndarray)
model.text_to_image("a bird", hires=2, hires_upscaler=upscaler, upscale=(upscaler, 2), tiny_vae=True)
assert_type(model.way, str)
images, mask = pad(np.zeros((1, 64, 64, 3), "uint8"), 8, 8, 8, 8)
assert_type(mask, np.ndarray)
print(sorted(SAMPLERS), NumericalError, model.decoder.name)

# Pyright must object to each of these; an error that is missing is an error.
model.text_to_image("a cat", num_inference_steps=20)  # pyright: ignore[reportCallIssue]
model.text_to_image("a cat", output="png")  # pyright: ignore[reportArgumentType]
model.decode("latents.npy", 3)  # pyright: ignore[reportCallIssue]
