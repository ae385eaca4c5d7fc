r"""Correctors: Langevin steps that stay at one noise level.

$$x \leftarrow x + \epsilon\,s(x) + \sqrt{2\epsilon}\,z, \qquad z \sim \mathcal N(0, I), \tag{1}$$

leaves $p_t$ invariant up to $O(\epsilon)$, so it repairs what the predictor before it got wrong.
Song et al. (2021, algorithms 4 and 5) set the step by a signal-to-noise ratio $r$,
$\|\epsilon s\| \approx r\,\|\sqrt{2\epsilon}z\|$,

$$\epsilon = 2a^2\left(r\,\frac{\|z\|}{\|s\|}\right)^2 \quad\text{(Langevin)}, \qquad
  \epsilon = 2a^2 (r\,\sigma_t)^2 \quad\text{(annealed Langevin)}, \tag{2}$$

which agree where $\|s\| \approx \sqrt D/\sigma_t$. Their factor is $\alpha_i = 1 - \beta_i$ under
VP and 1 under VE: the square of the transition's $a = \alpha_t/\alpha_s$, which is how it is
defined here for every process (the official code has none for sub-VP).

The published norms are means over the batch, so that a sample depends on the others. Here each
example takes its own by default: $\|z\|$ becomes its expectation $\sqrt D$ — a step that depended
on its own noise would bias it — and $\|s\|$ at least a quarter of $\sqrt D/\sigma_t$: near a mode
the score vanishes, and a step without a bound would throw the sample out of it. For
$r \le \sqrt2/8$ the bound keeps $\epsilon \le \sigma_t^2$, the largest step that contracts under
the greatest curvature a noisy density can have, $-\nabla^2\log p_t \le \sigma_t^{-2}$.

One default serves all processes: in $x/\alpha$ the steps are the same for VP, sub-VP and VE at the
same $\sigma/\alpha$, but for $a$. It is $r = 0.08$, half of what is published for VE on CIFAR-10
(0.16; 0.075 on larger images), because with exact denoisers a corrector has its own bias to pay
for. Measured energy distances to the data (VP, mixtures, 2000 samples; without a corrector, 0.08,
0.16): 0.0010, 0.0025, 0.0055 in 2 dimensions at 100 times, where two samples of the data are 0.0010
apart; in 64 dimensions 0.0070, 0.0060, 0.0103 at 100 times (noise 0.0077) and 0.047, 0.041, 0.030
at 30.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp

from .._check import check_positive, whole
from .._denoiser import AbstractDenoiser
from .._types import Args, Example, Key, Scalar
from .base import Step
from .predictors import Proposal


# ‖s‖ of one example is taken to be at least this part of √D/σ.
_LEAST = 0.25


def _norm(x: Example) -> Scalar:
    return jnp.sqrt(jnp.sum(x**2))


class AbstractCorrector(eqx.Module):
    """Langevin steps at one time: `corrector(denoiser, step, x, args, *, key) -> (x, mean, x0)`."""

    steps: eqx.AbstractVar[int]

    @abc.abstractmethod
    def size(self, step: Step, noise: Example, score: Example) -> Scalar:
        r"""$\epsilon$ of equation (2)."""

    def __call__(
        self, denoiser: AbstractDenoiser, step: Step, x: Example, args: Args, *, key: Key
    ) -> Proposal:
        r"""`steps` times equation (1) at `step.t`, one network call each. Arguments as for a
        predictor.
        """

        def langevin(state, step_key):
            x, _, _ = state
            estimate = denoiser(step.t, x, args)
            score = -estimate.noise / step.sigma_t
            noise = jax.random.normal(step_key, x.shape, x.dtype)
            size = self.size(step, noise, score)
            mean = x + size * score
            return (mean + jnp.sqrt(2 * size) * noise, mean, estimate.x0), None

        return jax.lax.scan(langevin, (x, x, x), jax.random.split(key, self.steps))[0]


class Langevin(AbstractCorrector):
    r"""Langevin steps of size $\epsilon = 2a^2(r\|z\|/\|s\|)^2$.

    **Example:**

    ```python
    sampler = eqd.PredictorCorrector(20, corrector=eqd.Langevin(snr=0.16))
    x0 = sampler(eqd.GaussianDenoiser(eqd.VESDE()), jnp.ones(3), key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*,
        ICLR 2021, algorithms 4 and 5.
    """

    snr: float
    steps: int = eqx.field(static=True)

    def __init__(self, snr: float = 0.08, steps: int = 1):
        r"""**Arguments:**

        - `snr`: the ratio $r$.
        - `steps`: Langevin steps at each time.

        **Raises:** `ValueError` for a ratio that is not positive or less than one step.
        """
        self.snr, self.steps = _checked(self, snr, steps)

    def size(self, step, noise, score):
        root = jnp.sqrt(jnp.asarray(noise.size, noise.dtype))
        ratio = root / jnp.maximum(_norm(score), _LEAST * root / step.sigma_t)
        a, _ = step.transition()
        return 2 * a**2 * (self.snr * ratio) ** 2


class AnnealedLangevin(AbstractCorrector):
    r"""Langevin steps of size $\epsilon = 2a^2(r\sigma_t)^2$, which depends on the noise level
    alone.

    With many steps per level and `predictor=None` this is annealed Langevin dynamics, the sampler
    of NCSN.

    **Example:**

    ```python
    corrector = eqd.AnnealedLangevin(steps=5)  # NCSN's sampler
    sampler = eqd.PredictorCorrector(10, predictor=None, corrector=corrector)
    x0 = sampler(eqd.GaussianDenoiser(eqd.VESDE()), jnp.ones(3), key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Song & Ermon, *Generative Modeling by Estimating Gradients of the Data Distribution*,
        NeurIPS 2019, algorithm 1; Song et al., *Score-Based Generative Modeling through Stochastic
        Differential Equations*, ICLR 2021, appendix G.
    """

    snr: float
    steps: int = eqx.field(static=True)

    def __init__(self, snr: float = 0.08, steps: int = 1):
        r"""**Arguments:**

        - `snr`: the ratio $r$; below $1/\sqrt2$, where a step contracts under the curvature
            $\sigma_t^{-2}$.
        - `steps`: Langevin steps at each time.

        **Raises:** `ValueError` for a ratio that is not positive or less than one step.
        """
        self.snr, self.steps = _checked(self, snr, steps)

    def size(self, step, noise, score):
        a, _ = step.transition()
        return 2 * (a * self.snr * step.sigma_t) ** 2


def _checked(owner: AbstractCorrector, snr: float, steps: int) -> tuple[float, int]:
    check_positive(owner, snr=snr)
    return snr, whole(owner, "steps", steps, remedy=" For no corrector write corrector=None.")
