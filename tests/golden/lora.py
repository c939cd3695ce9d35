"""The small model that LoRAs are tried on, its inputs, and the LoRAs."""

from dataclasses import replace
from pathlib import Path

from keras_diffusion.architectures import EMOJI, DiffusionModelShape, Level, TextEncoderShape

try:
    from . import networks
except ImportError:  # run as a script
    import networks

HERE = Path(__file__).parent
FIXTURE = HERE / "lora.npz"
FILES = {name: HERE / f"lora_{name}.safetensors" for name in ("peft", "kohya")}
CASES = {  # name → the scale of each LoRA
    "none": {},
    "peft": {"peft": 1.0},
    "kohya": {"kohya": 1.0},
    "both": {"peft": 0.7, "kohya": -0.4},
}
ARCHITECTURE = replace(
    EMOJI,
    name="custom",
    text_encoder=TextEncoderShape(width=16, layers=2, heads=4),
    diffusion_model=DiffusionModelShape(levels=(Level(16, 2, 1), Level(32, 2, 0)), blocks=1, context=16, groups=8),
)
# The same with one level alone, for what needs steps of training and no particular network.
SMALL = replace(ARCHITECTURE, diffusion_model=replace(ARCHITECTURE.diffusion_model, levels=(Level(16, 2, 1),)))


def inputs(part):
    """The inputs of the reference; a timestep is still a number."""
    if part == "text_encoder":
        return networks.text_encoder_inputs(ARCHITECTURE, batch=1, words=6)
    return networks.diffusion_model_inputs(ARCHITECTURE, size=(4, 6), timesteps=(981, 1), length=7)
