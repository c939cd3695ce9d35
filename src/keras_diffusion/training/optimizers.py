"""Defines the optimiser that a training takes unless it is given another."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_diffusion")
class AdamW(keras.optimizers.AdamW):
    """Takes steps as Keras' AdamW; with `use_ema`, its moving averages follow closely at first.

    The momentum of step n, counted from 0, is min(`ema_momentum`, (1 + n) / (10 + n)), as in the `LitEma` of
    CompVis/latent-diffusion and in diffusers' `EMAModel`. `fit` ends with the averages in the place of the weights.
    """

    @property
    def ema_momentum(self):
        step = ops.cast(self.iterations, "float32")
        return ops.minimum(self._largest_momentum, (1 + step) / (10 + step))

    @ema_momentum.setter
    def ema_momentum(self, value):
        self._largest_momentum = value

    def get_config(self):
        return {**super().get_config(), "ema_momentum": self._largest_momentum}


def default_optimizer(learning_rate, ema=None):
    """Makes AdamW as diffusers' training scripts do, see `Trainer.compile`.

    Args:
        learning_rate: The learning rate.
        ema: The largest momentum of the moving averages of the weights, such as 0.9999; None has no averages.
    """
    averages = {} if ema is None else {"use_ema": True, "ema_momentum": ema}
    return AdamW(learning_rate, weight_decay=1e-2, epsilon=1e-8, global_clipnorm=1.0, **averages)
