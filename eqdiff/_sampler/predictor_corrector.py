r"""Predictor–corrector sampling.

At each of $n$ decreasing times the corrector moves $x$ at its level, then the predictor takes it to the next
(Song et al. 2021, algorithm 1, in the order of the official code),

$$x \leftarrow \mathrm{correct}(x, t_i), \qquad x \leftarrow \mathrm{predict}(x, t_i \to t_{i+1}), \qquad i = 1, \dots, n, \tag{1}$$

and after the last time comes the data, $\alpha = 1$, $\sigma = 0$. The last predictor step is replaced by what it is made from, $\hat x_0$,
unless told otherwise: its own mean, which the official code returns, still has noise of order $\sigma^2$ for some predictors.

A constraint is applied after the corrector, at the level of $t_i$, and again after the predictor, at the level of $t_{i+1}$: the
level that $x$ has *after* the step. (The official code noises known pixels to $t_i$ both times; the constraint is told both.)
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from .._process import AbstractProcess
from .._types import Example
from .base import AbstractChain, check_decreasing, check_num_steps, Levels, levels_of
from .constraint import AbstractConstraint
from .correctors import AbstractCorrector, Langevin
from .predictors import AbstractPredictor, Proposal, ReverseDiffusion, Step
from .times import check_times


class AbstractFinal(eqx.Module):
    """What a chain returns of its last predictor step."""

    needs_step: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def __call__(self, proposal: Proposal) -> Example:
        """Chooses from the last step."""


class FinalEstimate(AbstractFinal):
    r"""$\hat x_0$ at the last time: no step is taken from there."""

    needs_step: ClassVar[bool] = False

    def __call__(self, proposal):
        return proposal.x0


class FinalMean(AbstractFinal):
    """The last predictor step without its noise: the official `denoise=True`."""

    needs_step: ClassVar[bool] = True

    def __call__(self, proposal):
        return proposal.mean


class FinalSample(AbstractFinal):
    """The last predictor step as it is, with its noise: the official `denoise=False`."""

    needs_step: ClassVar[bool] = True

    def __call__(self, proposal):
        return proposal.x


class PredictorCorrector(AbstractChain):
    r"""Alternates Langevin steps at a time with a step of the reverse process to the next, equation (1).

    ```python
    sampler = eqd.PredictorCorrector(500, predictor=eqd.ReverseDiffusion(), corrector=eqd.Langevin(snr=0.16))
    x0 = sampler(denoiser, x1, key=key)
    ```

    The published sampler steps $1/N$ in $t$ from each of $N$ times spaced $(1-\epsilon)/(N-1)$ apart:
    `times = jnp.linspace(1, eps, N)`, `ends = times - 1 / N`, `final=FinalMean()`.

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*, ICLR 2021, algorithm 1
        and appendix G.
    """

    num_steps: int = eqx.field(static=True)
    predictor: AbstractPredictor | None
    corrector: AbstractCorrector | None
    times: Shaped[Array, " n"] | None
    ends: Shaped[Array, " n"] | None
    constrain: AbstractConstraint | None
    final: AbstractFinal
    random: ClassVar[bool] = True

    def __init__(
        self,
        num_steps: int = 500,
        *,
        predictor: AbstractPredictor | None = ReverseDiffusion(),
        corrector: AbstractCorrector | None = Langevin(),
        times: Shaped[Array, " n"] | None = None,
        ends: Shaped[Array, " n"] | None = None,
        constrain: AbstractConstraint | None = None,
        final: AbstractFinal = FinalEstimate(),
    ):
        r"""**Arguments:**

        - `num_steps`: the number of times, evenly spaced.
        - `predictor`: how the reverse process is stepped; `None` leaves $x$ as the corrector made it (annealed Langevin
            dynamics).
        - `corrector`: how $x$ is corrected before; `None` for predictors alone.
        - `times`: the decreasing times themselves, instead of evenly spaced ones: see [`eqdiff.karras_times`][] and others.
        - `ends`: where the predictor's steps end; by default at the next time and then at the data.
        - `constrain`: what is known about the sample, imposed after every corrector and every predictor.
        - `final`: what is returned.

        **Raises:** `ValueError` for less than one step, no predictor and no corrector, times that do not decrease, ends that
        are not one per time, or a predictor that cannot step to the data asked to; when called, for times that the process
        does not have.
        """
        check_num_steps("PredictorCorrector", num_steps)
        if predictor is None and corrector is None:
            raise ValueError(
                "PredictorCorrector: predictor and corrector are both None, so nothing would move."
            )
        if ends is not None and (times is None or len(ends) != len(times)):
            given = "none" if times is None else len(times)
            raise ValueError(
                f"PredictorCorrector: {len(ends)} ends and {given} times were given; expected one end per time."
            )
        if final.needs_step and ends is None and predictor is not None and predictor.needs_end:
            raise ValueError(
                f"PredictorCorrector: {type(final).__name__}() wants the predictor's step from the last time into the data, but "
                f"{type(predictor).__name__} steps between times. Give ends=..., or final=eqdiff.FinalEstimate()."
            )
        times = None if times is None else check_decreasing("PredictorCorrector", times)
        ends = None if ends is None else check_decreasing("PredictorCorrector(ends=...)", ends)
        self.num_steps = num_steps if times is None else len(times)
        self.predictor, self.corrector = predictor, corrector
        self.times, self.ends, self.constrain, self.final = times, ends, constrain, final

    @property
    def num_calls(self) -> int:
        """The number of network calls that make one sample."""
        corrections = 0 if self.corrector is None else self.corrector.steps * self.num_steps
        if self.predictor is None:
            return corrections + (0 if self.final.needs_step else 1)
        return corrections + self.predictor.num_calls(self.num_steps)

    def steps(self, process):
        times = self._times(process)
        levels = levels_of(process, times)
        # A step into the data has no time to end at.
        ends = jnp.append(times[1:], times[-1:])
        if self.ends is not None:
            if self.predictor is not None and not self.predictor.needs_end:
                # Steps of the others may end outside, as the published Euler–Maruyama's do.
                check_times(process, self.ends)
            ends, after = self.ends, levels_of(process, self.ends)
            levels = Levels(
                levels.alpha, levels.sigma, levels.log_snr, after.alpha, after.sigma, after.log_snr
            )
        return times, Step(ends, levels, jnp.arange(len(times)) == len(times) - 1)

    def step(self, denoiser, t, this, x, args, *, key):
        levels = jax.tree.map(lambda leaf: leaf.astype(x.dtype), this.levels)
        this = Step(this.end, levels, this.last)
        correct, predict, after_correct, after_predict = jax.random.split(key, 4)
        x0 = x
        if self.corrector is not None:
            corrected = self.corrector(denoiser, t, this, x, args, key=correct)
            x, x0 = corrected.x, corrected.x0
            if self.constrain is not None:
                x = self.constrain(_staying(levels), x, x0, key=after_correct)
        if self.predictor is None:
            proposal = self._stay(denoiser, t, this, x, x0, args)
        else:
            proposal = self.predictor(denoiser, t, this, x, args, key=predict)
        x = jnp.where(this.last, self.final(proposal), proposal.x)
        if self.constrain is not None:
            x = self.constrain(levels, x, proposal.x0, key=after_predict)
        return x, proposal.x0

    def _times(self, process: AbstractProcess) -> Shaped[Array, " n"]:
        if self.times is None:
            return process.grid(self.num_steps)
        return check_times(process, self.times)

    def _stay(self, denoiser, t, this, x, x0, args):
        """Without a predictor: the corrector's state, and a denoised one of it at the end."""
        if self.final.needs_step:
            return Proposal(x, x, x0)
        x0 = jax.lax.cond(this.last, lambda: denoiser(t, x, args).x0, lambda: x0)
        return Proposal(x, x, x0)


def _staying(levels: Levels) -> Levels:
    """The levels of a step that stays where it is."""
    here = (levels.alpha, levels.sigma, levels.log_snr)
    return Levels(*here, *here)
