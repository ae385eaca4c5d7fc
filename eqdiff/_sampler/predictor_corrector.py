r"""Predictor–corrector sampling.

At each of $n$ decreasing times the corrector moves $x$ at its level, then the predictor takes it to
the next (Song et al. 2021, algorithm 1, in the order of the official code),

$$x \leftarrow \mathrm{correct}(x, t_i), \qquad
  x \leftarrow \mathrm{predict}(x, t_i \to t_{i+1}), \qquad
  i = 1, \dots, n, \tag{1}$$

and after the last time comes the data, $\alpha = 1$, $\sigma = 0$. The last predictor step is
replaced by what it is made from, $\hat x_0$: its own mean, which the official code returns, still
has noise of order $\sigma^2$ for some predictors.

A constraint is applied after the corrector, at the level of $t_i$, and again after the predictor,
at the level of $t_{i+1}$: the level that $x$ has *after* the step. (The official code noises known
pixels to $t_i$ both times.)
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from .base import AbstractChain
from .constraint import AbstractConstraint
from .correctors import AbstractCorrector, Langevin
from .grid import Grid, grid_of, Spacing
from .predictors import AbstractPredictor, ReverseDiffusion


class PredictorCorrector(AbstractChain):
    r"""Alternates Langevin steps at a time with a step of the reverse process to the next, equation
    (1).

    **Example:**

    ```python
    sampler = eqd.PredictorCorrector(20, corrector=eqd.Langevin(snr=0.16))
    x0 = sampler(eqd.GaussianDenoiser(eqd.VPSDE()), jnp.ones(3), key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*,
        ICLR 2021, algorithm 1 and appendix G.
    """

    grid: Grid
    predictor: AbstractPredictor | None
    corrector: AbstractCorrector | None
    constrain: AbstractConstraint | None
    random: ClassVar[bool] = True

    def __init__(
        self,
        num_steps: int | None = None,
        *,
        predictor: AbstractPredictor | None = ReverseDiffusion(),
        corrector: AbstractCorrector | None = Langevin(),
        constrain: AbstractConstraint | None = None,
        spacing: Spacing | None = None,
        times: Any = None,
    ):
        r"""**Arguments:**

        - `num_steps`, `spacing`, `times`: the times, as for [`eqdiff.Grid`][]; 500 evenly spaced
            ones by default.
        - `predictor`: how the reverse process is stepped; `None` leaves $x$ as the corrector made
            it (annealed Langevin dynamics).
        - `corrector`: how $x$ is corrected before that; `None` for predictors alone.
        - `constrain`: what is known about the sample, imposed after every corrector and every
            predictor.

        **Raises:** `ValueError` for neither predictor nor corrector, and as [`eqdiff.Grid`][].
        """
        if predictor is None and corrector is None:
            raise ValueError(
                "PredictorCorrector: predictor and corrector are both None, so nothing would move."
            )
        self.grid = grid_of(self, num_steps, spacing, times, default=500)
        self.predictor, self.corrector, self.constrain = predictor, corrector, constrain

    @property
    def num_calls(self) -> int | None:
        num_steps = self.grid.num_steps
        if num_steps is None:
            return None
        corrections = 0 if self.corrector is None else self.corrector.steps * num_steps
        # Without a predictor, one call at the end to denoise.
        return corrections + (1 if self.predictor is None else self.predictor.num_calls(num_steps))

    def step(self, denoiser, step, x, args, *, key):
        correct, predict, after_correct, after_predict = jax.random.split(key, 4)
        x0 = x
        if self.corrector is not None:
            x, _, x0 = self.corrector(denoiser, step, x, args, key=correct)
            if self.constrain is not None:
                x = self.constrain(step.staying(), x, x0, key=after_correct)
        if self.predictor is None:
            x0 = jax.lax.cond(step.last, lambda: denoiser(step.t, x, args).x0, lambda: x0)
        else:
            x, _, x0 = self.predictor(denoiser, step, x, args, key=predict)
        x = jnp.where(step.last, x0, x)
        if self.constrain is not None:
            x = self.constrain(step, x, x0, key=after_predict)
        return x, x0
