"""Trains the networks of a model: `Trainer`, the data it learns from, and its losses."""

from keras_diffusion.engines.names import explaining_missing_backend

with explaining_missing_backend():
    from keras_diffusion.training.dataset import Examples
    from keras_diffusion.training.folder import records
    from keras_diffusion.training.trainer import Trainer

__all__ = ["Examples", "Trainer", "records"]
