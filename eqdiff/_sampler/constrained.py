r"""Constraints for every chain, and RePaint.

A step of a chain ends at a known level, so a constraint can follow it, whatever chain it is. What
the constraint puts in and what the chain made of the rest may not fit together; going back up and
down again shows the chain both (Lugmayr et al. 2022, algorithm 1). With $U$ repeats, a step from
$t$ to $s$ is made $U$ times, each but the first from

$$x_t = \frac{\alpha_t}{\alpha_s} x_s + b z, \qquad
  b^2 = \sigma_t^2 - \frac{\alpha_t^2}{\alpha_s^2}\sigma_s^2. \tag{1}$$
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from .._check import whole
from .base import AbstractChain
from .constraint import AbstractConstraint
from .grid import Grid
from .predictor_corrector import PredictorCorrector


class Constrained(AbstractChain):
    r"""A chain with a constraint applied after every step:
    `Constrained(Ancestral(250), Inpaint(image, mask), repeats=10)`.

    For [`eqdiff.Ancestral`][], [`eqdiff.DDIM`][], [`eqdiff.StochasticHeun`][] and chains of your
    own, whose steps end at the next time and whose last ends at the data.
    [`eqdiff.PredictorCorrector`][] takes the constraint itself. For several constraints, nest it.

    **Example:**

    ```python
    constraint = eqd.Inpaint(jnp.ones(4), jnp.asarray([1, 1, 0, 0]))
    sampler = eqd.Constrained(eqd.DDIM(10, eta=1.0), constraint, repeats=2)  # RePaint
    x0 = sampler(eqd.GaussianDenoiser(eqd.VPSDE()), jnp.ones(4), key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Lugmayr et al., *RePaint: Inpainting using Denoising Diffusion Probabilistic Models*, CVPR
        2022.
    """

    chain: AbstractChain
    constraint: AbstractConstraint
    repeats: int = eqx.field(static=True)
    random: ClassVar[bool] = True

    def __init__(self, chain: AbstractChain, constraint: AbstractConstraint, *, repeats: int = 1):
        """**Arguments:**

        - `chain`: the chain.
        - `constraint`: what is known about the sample.
        - `repeats`: $U$: how many times each step is made; the cost is as many times that of the
            chain. RePaint uses 10.

        **Raises:** `ValueError` for less than one repeat, or a chain that takes the constraint
        itself.
        """
        if isinstance(chain, PredictorCorrector):
            raise ValueError(
                "Constrained: a PredictorCorrector constrains its corrector's steps too. Write "
                "PredictorCorrector(constrain=...)."
            )
        self.repeats = whole(self, "repeats", repeats)
        self.chain, self.constraint = chain, constraint

    @property
    def grid(self) -> Grid:
        """The times of the chain."""
        return self.chain.grid

    @property
    def num_calls(self) -> int | None:
        calls = self.chain.num_calls
        return None if calls is None else self.repeats * calls

    def step(self, denoiser, step, x, args, *, key):
        def once(x, key):
            move, constrain = jax.random.split(key)
            x, x0 = self.chain.step(denoiser, step, x, args, key=move)
            return self.constraint(step, x, x0, key=constrain), x0

        if self.repeats == 1:
            return once(x, key)

        def again(state, key):
            up, down = jax.random.split(key)
            a, variance = step.transition()
            noise = jax.random.normal(up, x.shape, x.dtype)
            return once(a * state[0] + jnp.sqrt(variance) * noise, down), None

        first, *others = jax.random.split(key, self.repeats)
        return jax.lax.scan(again, once(x, first), jnp.stack(others))[0]
