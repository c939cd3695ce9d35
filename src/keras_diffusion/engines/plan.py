"""Says what each row of a sampler's table computes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_diffusion.engines.stages import Rows
from keras_diffusion.networks.timesteps import timestep_embedding
from keras_diffusion.sampling.samplers import Table

NOISY_ROWS = 10  # of a table with noise, run in one call: the processor draws that of the next ones meanwhile


class Plan(NamedTuple):
    """Says what each row of a sampler's table computes.

    Args:
        table: A `samplers.Table`.
        noise: Function of the indices of k rows that returns their unit noise (k, b, h, w, c); a table that adds none
            needs none.
        guided: bool (rows,), which rows follow the guidance; the others take the prompt alone, in half the time but
            with OpenVINO, which would compile for it. None guides all.
        deep: bool (rows,), which rows run the whole network; the others reuse its deep features, see
            `deep_cache.deep_and_shallow`. The first row must be deep, and each that is guided otherwise than the row
            before it. None makes all rows deep.
        scales: float32 (rows, n), the scale of each of n ControlNets in every row, or None without them.
        texts: Where prompts change between rows: a list of pairs (context, added) to take instead of those in the
            `Conditions`, of the same shapes, and int (rows,), which of them each row takes. Nothing is compiled for
            that. None changes nothing.
        last: Whether the image is finished afterwards.
    """

    table: Table
    noise: Callable | None = None
    guided: np.ndarray | None = None
    deep: np.ndarray | None = None
    scales: np.ndarray | None = None
    texts: tuple | None = None
    last: bool = True

    @property
    def all_deep(self):
        """Whether every row runs the whole network."""
        return self.deep is None or self.deep.all()

    @property
    def alike(self):
        """Whether all rows run the same network on conditions of the same shapes and values."""
        return self.all_deep and self.texts is None and (self.guided is None or self.guided.all())

    def calls(self, rows_per_call, shape, frequencies):
        """Yields a `Call` for every `rows_per_call` rows.

        Args:
            rows_per_call: How many; more than 1 only if the rows are `alike`.
            shape: That of the latents, (b, h, w, c).
            frequencies: How many the network has, see `timestep_embedding`.
        """
        table, count = self.table, len(self.table.rows)
        columns, embeddings = table.rows.astype("float32"), timestep_embedding(table.rows[:, 0], frequencies)
        levels = np.stack([table.alphas, table.sigmas], axis=-1)[1:].astype("float32")
        if self.last:
            levels[-1] = 1.0, 0.0  # what is known ends as it was, also where a sampler leaves a trace of noise
        shape = rows_per_call, *shape
        quiet = None if table.stochastic else ops.zeros(shape, "float32")
        most = min(rows_per_call, NOISY_ROWS) if table.stochastic else rows_per_call
        for first in range(0, count, most):
            index = np.arange(first, first + rows_per_call).clip(max=count - 1)
            run = min(most, count - first)
            final = index[run - 1]
            noise = np.resize(self.noise(index[:run]), shape) if table.stochastic else quiet
            scales = None if self.scales is None else self.scales[index]
            step, timestep = int(table.steps[final]), float(table.rows[final, 0])
            yield Call(
                Rows(columns[index], levels[index], embeddings[index], noise, scales),
                np.int32(run),
                self.guided is None or self.guided[first],
                self.deep is None or self.deep[first],
                self.texts[1][first] if self.texts else 0,
                step,
                timestep,
                step not in table.steps[final + 1 :],
            )


class Call(NamedTuple):
    """Some rows that one call of the stage `denoise` runs.

    Args:
        rows: The `Rows`.
        count: How many of them to run.
        guided: Whether they are guided.
        deep: Whether they run the whole network.
        text: Which of the plan's texts they take.
        step: The number of the step that the last one belongs to, from 0.
        timestep: Its timestep.
        ends_step: Whether the step ends with it: some solvers take two rows for a step.
    """

    rows: Rows
    count: np.int32
    guided: bool
    deep: bool
    text: int
    step: int
    timestep: float
    ends_step: bool
