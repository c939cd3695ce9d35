"""Defines the optimiser that a training takes unless it is given another."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_diffusion")
class AdamW(keras.optimizers.AdamW):
    """Takes steps as torch's AdamW, which diffusers trains with; its moving averages follow closely at first.

    Keras adds `epsilon` before it corrects the bias of the second moment, torch after it (algorithm 1 of Kingma and Ba
    2015, arXiv:1412.6980). That decides how far weights with tiny gradients move in the first steps.

    With `use_ema`, the momentum of step n, counted from 0, is min(`ema_momentum`, (1 + n) / (10 + n)), as in `LitEma`
    of CompVis/latent-diffusion and `EMAModel` of diffusers. `fit` ends with the averages in the place of the weights.
    """

    @property
    def epsilon(self):
        step = ops.cast(self.iterations + 1, "float32")
        return self._epsilon_at_last * ops.sqrt(1 - ops.power(self.beta_2, step))

    @epsilon.setter
    def epsilon(self, value):
        self._epsilon_at_last = value

    @property
    def ema_momentum(self):
        step = ops.cast(self.iterations, "float32")
        return ops.minimum(self._largest_momentum, (1 + step) / (10 + step))

    @ema_momentum.setter
    def ema_momentum(self, value):
        self._largest_momentum = value

    def finalize_variable_values(self, var_list):
        """Puts the averages in the place of the variables, unless no step was taken: they are still zero then."""
        if self.use_ema and int(ops.convert_to_numpy(self.iterations)):
            super().finalize_variable_values(var_list)

    def get_config(self):
        own = {"epsilon": self._epsilon_at_last, "ema_momentum": self._largest_momentum}
        return {**super().get_config(), **own}


def default_optimizer(learning_rate, ema=None):
    """Makes AdamW as diffusers' training scripts do, see `Trainer.compile`.

    Args:
        learning_rate: The learning rate.
        ema: The largest momentum of the moving averages of the weights, such as 0.9999; None has no averages.
    """
    averages = {} if ema is None else {"use_ema": True, "ema_momentum": ema}
    return AdamW(learning_rate, weight_decay=1e-2, epsilon=1e-8, global_clipnorm=1.0, **averages)
