"""Distils a model into a LoRA that draws in few steps (Luo et al. 2023, "LCM-LoRA", arXiv:2311.05556)."""

import numpy as np
from keras import ops

from keras_diffusion import arguments
from keras_diffusion.sampling import noise
from keras_diffusion.training import losses
from keras_diffusion.training.dataset import Examples
from keras_diffusion.training.learners import quick_to_trace
from keras_diffusion.training.lora import Lora

GUIDANCE = 8  # purpose of the random numbers that guidance scales are, see `noise.uniform`; after those of `dataset`
SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # of c_skip and c_out, as in LCM's authors' code
DENOISED = {  # prediction type → the shares of a noisy latent and of the prediction in the clean latent
    "epsilon": lambda alpha, sigma: (1 / alpha, -sigma / alpha),
    "v_prediction": lambda alpha, sigma: (alpha, -sigma),
    "sample": lambda alpha, sigma: (0 * alpha, 1 + 0 * alpha),
}


class Distillation(Examples):
    """Draws examples whose timesteps are those of a sampler of few steps, and how the teacher gets to the next.

    Args:
        model: See `Examples`, as all arguments but these.
        distilled_steps: Number of timesteps, of which the drawing will choose.
        guidance: The range (least, largest) of the weight w that the teacher is guided by, uncond + (1 + w) · (cond -
            uncond).
    """

    def __init__(self, model, *given, distilled_steps=50, guidance=(3.0, 15.0), **options):
        super().__init__(model, *given, **options)
        if len(self._sources) > 1 or self._perturbation:
            raise ValueError(
                "A distillation takes neither class images nor `input_perturbation`. Received: one of them"
            )
        count = len(self._alphas_cumprod)
        self._distilled = arguments.whole_number("distilled_steps", distilled_steps, 1, count)
        if not isinstance(guidance, tuple | list) or len(guidance) != 2:
            raise TypeError(f"`guidance` must be two numbers. Received: guidance={guidance!r:.200}")
        least = arguments.number("guidance[0]", guidance[0], 0, 1000)
        self._guidance = least, arguments.number("guidance[1]", guidance[1], least, 1000)

    def _timestep(self, choice):
        return int(choice * self._distilled + 1) * (len(self._alphas_cumprod) // self._distilled) - 1

    def __getitem__(self, index):
        step, size = self.number(index), self._batch_size
        latents, fresh, text, timesteps, *_ = self.drawn(step)
        after = np.maximum(timesteps - len(self._alphas_cumprod) // self._distilled, 0)
        alpha, sigma = losses.levels(self._alphas_cumprod[timesteps])
        least, largest = self._guidance
        inputs = {
            "latent": losses.noisy(latents, fresh, alpha, sigma),
            "timestep_embedding": self._embeddings[timesteps],
            "next_timestep_embedding": self._embeddings[after],
            "context": self.texts[text],
            "unconditional": np.repeat(self.texts[:1], size, axis=0),
            "guidance": np.float32(least + (largest - least) * noise.uniform(self._seed, step, (size,), GUIDANCE)),
            "coefficients": coefficients(self._prediction_type, self._alphas_cumprod, timesteps, after),
        }
        return inputs, np.zeros_like(latents), self._weights[timesteps]


def coefficients(prediction_type, alphas_cumprod, timesteps, after):
    """Returns the shares of latents x and predictions p in three results, each share · x + share · p.

    They are the consistency function at `timesteps`, a step of DDIM (Song et al. 2020, arXiv:2010.02502) from there to
    `after`, and the consistency function there.

    Args:
        prediction_type: "epsilon", "v_prediction" or "sample".
        alphas_cumprod: (n,), the share of signal in the variance.
        timesteps: (b,) ints.
        after: (b,) ints, lower or equal.

    Returns:
        float32 (b, 6).
    """
    signal = np.asarray(alphas_cumprod, "float64")
    columns = []
    for t in (timesteps, after):
        alpha, sigma = np.sqrt(signal[t]), np.sqrt(1 - signal[t])
        own, predicted = DENOISED[prediction_type](alpha, sigma)
        scaled = TIMESTEP_SCALING * t
        skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        out = scaled / np.hypot(scaled, SIGMA_DATA)
        columns.append([skip + out * own, out * predicted])
    alpha, sigma = np.sqrt(signal[timesteps]), np.sqrt(1 - signal[timesteps])
    own, predicted = DENOISED[prediction_type](alpha, sigma)
    next_alpha, ratio = np.sqrt(signal[after]), np.sqrt(1 - signal[after]) / sigma
    # x = alpha · clean + sigma · noise, so next_alpha · clean + next_sigma · noise is:
    ddim = [ratio + (next_alpha - ratio * alpha) * own, (next_alpha - ratio * alpha) * predicted]
    return np.stack([*columns[0], *ddim, *columns[1]], axis=-1).astype("float32")


class LcmLora(Lora):
    """Trains a LoRA with which the model draws in 1 to 8 steps, without guidance; the model is its teacher.

    With the LoRA, the clean latent that a noisy one leads to shall be the same from the next timestep, to which the
    model without it takes a guided step of DDIM: algorithm 1 of Luo et al. 2023 (arXiv:2310.04378).

    Args:
        model: The `StableDiffusion`.
        rank, alpha, layers, seed: See `Lora`.
        target_ema: The momentum of the moving average of the LoRA that makes the target, such as the 0.95 of diffusers'
            train_lcm_distill_sd_wds.py. None has the LoRA itself make it, as their train_lcm_distill_lora_sd_wds.py.
    """

    takes_added = False
    drawn_from = Distillation
    loss = staticmethod(losses.pseudo_huber)

    def __init__(self, model, rank=64, alpha=None, layers="all", seed=0, target_ema=None):
        super().__init__(model, rank, alpha, layers, seed=seed)
        self.momentum = 0 if target_ema is None else arguments.number("target_ema", target_ema, 0, 1)
        self.average = None
        if self.momentum:
            start = ops.convert_to_numpy(self.values)
            options = {"name": "average", "initializer": lambda *_, **__: start, "trainable": False}
            self.average = self.add_weight(shape=start.shape, **options)

    @property
    def input_names(self):
        return [*super().input_names, "next_timestep_embedding", "unconditional", "guidance", "coefficients"]

    def target_tensors(self, training):
        """The halves that make the target; in training, after the average has followed the last step."""
        if self.average is None:
            return self.tensors()
        if training:
            self.average.assign(self.momentum * self.average + (1 - self.momentum) * self.values)
        return self.halves(ops.stop_gradient(ops.convert_to_tensor(self.average)))

    def call(self, inputs, training=False):
        """Returns what the consistency function lacks to its target, (b, h, w, c)."""
        shares = [share[:, :, None, None] for share in ops.split(inputs["coefficients"], 6, axis=-1)]
        x, timestep = inputs["latent"], inputs["timestep_embedding"]
        context = ops.concatenate([inputs["context"], inputs["unconditional"]])
        with quick_to_trace():
            twice = [ops.concatenate([ops.convert_to_tensor(given)] * 2) for given in (x, timestep)]
            guided, unguided = ops.split(ops.cast(self.model.diffusion_model([*twice, context]), "float32"), 2)
        guided = guided + inputs["guidance"][:, None, None, None] * (guided - unguided)
        later = ops.stop_gradient(shares[2] * x + shares[3] * guided)
        timestep = inputs["next_timestep_embedding"]
        after = {**inputs, "latent": later, "timestep_embedding": timestep}
        prediction = self.prediction(after, self.target_tensors(training))
        target = ops.stop_gradient(shares[4] * later + shares[5] * ops.cast(prediction, "float32"))
        return shares[0] * x + shares[1] * ops.cast(self.prediction(inputs), "float32") - target
