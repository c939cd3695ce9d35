"""One module for each peer, one function for each question.

A function builds its networks for the options of the race and returns the function that is timed. What a peer has no
function for it does not race in.
"""

import numpy as np

FACTOR, CHANNELS, LENGTH, WIDTH = 8, 4, 77, 768  # of Stable Diffusion 1.5: latents and context
GUIDANCE = 7.5
RANK, TRAINING_STEPS = 4, 10
PROMPT = "a photograph of an astronaut riding a horse"


def arrays(size, batch):
    """Latents (b, h, w, c) and context (2b, n, d), the negative prompts first."""
    generator = np.random.default_rng(0)
    latents = generator.standard_normal((batch, size // FACTOR, size // FACTOR, CHANNELS), "float32")
    return latents, generator.standard_normal((2 * batch, LENGTH, WIDTH), "float32")
