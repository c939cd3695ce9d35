"""The words that a small model learns, and the prompts that use them."""

from pathlib import Path

from safetensors.numpy import save_file

try:
    from . import lora, networks
except ImportError:  # run as a script
    import lora
    import networks

FIXTURE = Path(__file__).parent / "textual_inversion.npz"
ARCHITECTURE = lora.ARCHITECTURE
WORDS = {"<spiky-toy>": (3, 16), "<midas>": (16,)}  # word → shape of its vectors
PROMPTS = ["a <spiky-toy> on a plate", "<midas> style, two <spiky-toy> and a cat"]


def write(folder):
    """Writes a file for each word, and yields them."""
    for i, (word, shape) in enumerate(WORDS.items()):
        save_file({word: networks.uniform(word, shape) / 50}, Path(folder) / f"{i}.safetensors")
        yield Path(folder) / f"{i}.safetensors"
