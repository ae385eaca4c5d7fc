r"""What is known about a sample, imposed after every step.

A constraint corrects the state of a chain after each step, of whichever kind. That state has a
*level*: after a step from $(\alpha_t, \sigma_t)$ to $(\alpha_s, \sigma_s)$ it is a sample of $p_s$,
so known data $y$ enter as

$$\alpha_s y + \sigma_s z, \qquad z \sim \mathcal N(0, I), \tag{1}$$

and after the last step, where $\alpha_s = 1$ and $\sigma_s = 0$, as $y$ itself. The published
samplers (Song et al. 2021, appendix I) use the level $(\alpha_t, \sigma_t)$ that the state had
*before* a predictor's step: then the known part is noisier than the rest at every network call.
Both levels are given, so a constraint may do either.
"""

import abc

import equinox as eqx

from .._types import Example, Key
from .base import Step


class AbstractConstraint(eqx.Module):
    """`constraint(step, x, x0, *, key) -> x`, for one example: applied after every step."""

    @abc.abstractmethod
    def __call__(self, step: Step, x: Example, x0: Example, *, key: Key) -> Example:
        r"""Imposes what is known on the state after a step.

        **Arguments:**

        - `step`: the step that was taken: see [`eqdiff.Step`][]. `alpha_s` and `sigma_s` are the
            level that `x` has, *after* the step: 1 and 0 after the last one. `alpha_t` and
            `sigma_t` are the level it had before; they agree after a corrector's step, which stays
            at its level.
        - `x`: the state after the step.
        - `x0`: the estimate $\hat x_0$ that the step was made from.
        - `key`: for fresh noise; no step of the chain sees the same.

        **Returns:** the state that the chain goes on with, shaped like `x`.
        """
