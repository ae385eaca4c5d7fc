r"""The discrete chain of DDPM.

A schedule is its rates $\beta_0, \dots, \beta_{T-1}$ (time is 0-based: $t = 0$ is one noising step). With
$\bar\alpha_t = \prod_{s \le t} (1 - \beta_s)$ and $\bar\alpha_{-1} = 1$,

$$q(x_t \mid x_0) = \mathcal N(\sqrt{\bar\alpha_t}\, x_0,\ (1 - \bar\alpha_t) I), \tag{1}$$

$$q(x_{t-1} \mid x_t, x_0) = \mathcal N(\tilde\mu_t, \tilde\beta_t I), \qquad
  \tilde\beta_t = \frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t}\beta_t, \tag{2}$$

$$\tilde\mu_t = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1 - \bar\alpha_t} x_0
  + \frac{\sqrt{1 - \beta_t}\,(1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t} x_t \tag{3}$$

(Nichol & Dhariwal 2021, equations 8–12). All tables are float64 NumPy, computed once, and cast once where they are used:
$\log(1 - \bar\alpha)$ and the cumulative product in float32 would lose the first steps, which carry most of the bound.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from .._process import AbstractProcess
from .._types import Example, Scalar, Time
from ._table import Table
from .continuous import ContinuousSchedule
from .spacing import section_timesteps


# The official clip of β: it keeps the last step of the cosine schedule from erasing everything.
MAX_BETA = 0.999


class Schedule(AbstractProcess):
    r"""The discrete chain $q(x_t|x_{t-1}) = \mathcal N(\sqrt{1-\beta_t}\,x_{t-1}, \beta_t I)$, $t = 0, \dots, T-1$.

    As a process it has $\alpha_t = \sqrt{\bar\alpha_t}$ and $\sigma_t = \sqrt{1-\bar\alpha_t}$, at integer times. A time given
    as a floating-point number is rounded to the nearest index.

    The tables are static (hashed by content): they are never traced, differentiated, averaged or decayed, and stay
    float64 whatever the precision of the computation.

    ??? cite "Reference"

        Ho et al., *Denoising Diffusion Probabilistic Models*, NeurIPS 2020; Nichol & Dhariwal, *Improved Denoising
        Diffusion Probabilistic Models*, ICML 2021.
    """

    _betas: Table = eqx.field(static=True)
    _labels: Table = eqx.field(static=True)
    _timesteps: Table = eqx.field(static=True)

    def __init__(
        self,
        betas: Float[np.ndarray, " T"],
        *,
        labels: Shaped[np.ndarray, " T"] | None = None,
        timesteps: Int[np.ndarray, " T"] | None = None,
    ):
        r"""**Arguments:**

        - `betas`: the rates $\beta_t$, each in $(0, 1)$.
        - `labels`: what the network is told at each step; by default $1000\,t/T$ (the official
            `rescale_timesteps=True`). Networks trained without rescaling want `labels=np.arange(T)`.
        - `timesteps`: the index of each step in the chain that this one was respaced from; by default $0, \dots, T-1$.

        **Raises:** `ValueError` for rates outside $(0, 1)$ or tables of unequal length.
        """
        betas = np.asarray(betas, np.float64)
        if betas.ndim != 1 or betas.size == 0:
            raise ValueError(f"Schedule: expected a vector of rates, got shape {betas.shape}.")
        bad = np.flatnonzero(~((betas > 0) & (betas < 1)))
        if bad.size:
            raise ValueError(
                f"Schedule: every rate must lie in (0, 1), but betas[{bad[0]}] = {betas[bad[0]]:g} "
                f"({bad.size} of {betas.size} are outside). A linear schedule needs more than 20 steps."
            )
        steps = np.arange(betas.size)
        labels = steps * (1000 / betas.size) if labels is None else np.asarray(labels, np.float64)
        timesteps = steps if timesteps is None else np.asarray(timesteps)
        for name, table in (("labels", labels), ("timesteps", timesteps)):
            if table.shape != betas.shape:
                raise ValueError(
                    f"Schedule: {name} has shape {table.shape}, expected one per rate, {betas.shape}."
                )
        self._betas, self._labels, self._timesteps = Table(betas), Table(labels), Table(timesteps)

    @property
    def num_steps(self) -> int:
        """The number of steps $T$."""
        return self.betas.size

    @property
    def betas(self) -> Float[np.ndarray, " T"]:
        r"""$\beta_t$, float64."""
        return self._betas.array

    @property
    def labels(self) -> Float[np.ndarray, " T"]:
        """What the network is told at each step, float64."""
        return self._labels.array

    @property
    def timesteps(self) -> Int[np.ndarray, " T"]:
        """The index of each step in the chain that this one was respaced from."""
        return self._timesteps.array

    @property
    def alpha_bar(self) -> Float[np.ndarray, " T"]:
        r"""$\bar\alpha_t = \prod_{s\le t}(1-\beta_s)$, float64."""
        return self._betas.derived(_alpha_bar)

    @property
    def alpha_bar_previous(self) -> Float[np.ndarray, " T"]:
        r"""$\bar\alpha_{t-1}$, with $\bar\alpha_{-1} = 1$, float64."""
        return self._betas.derived(_alpha_bar_previous)

    @property
    def posterior_variance(self) -> Float[np.ndarray, " T"]:
        r"""$\tilde\beta_t$ of equation (2): 0 at $t = 0$. float64."""
        return self._betas.derived(_posterior_variance)

    @property
    def posterior_log_variance(self) -> Float[np.ndarray, " T"]:
        r"""$\log\tilde\beta_t$, its first entry (which is $-\infty$) replaced by the second, float64."""
        return self._betas.derived(_posterior_log_variance)

    def index(self, t: Time) -> Int[Array, ""]:
        """The nearest integer time."""
        t = jnp.asarray(t)
        return t if jnp.issubdtype(t.dtype, jnp.integer) else jnp.rint(t).astype(jnp.int32)

    def lookup(self, table: Float[np.ndarray, " T"], t: Time) -> Scalar:
        """One entry of a float64 table in the default precision."""
        return jnp.asarray(table, float)[self.index(t)]

    def alpha(self, t: Time) -> Scalar:
        return self.lookup(np.sqrt(self.alpha_bar), t)

    def sigma(self, t: Time) -> Scalar:
        return self.lookup(np.sqrt(1 - self.alpha_bar), t)

    def log_snr(self, t: Time) -> Scalar:
        return self.lookup(self._betas.derived(_log_snr), t)

    def label(self, t: Time) -> Scalar:
        return self.lookup(self.labels, t)

    def place(self, u: Float[Array, "..."]) -> Int[Array, "..."]:
        # Rounding may carry u·T up to T for u just below 1.
        return jnp.minimum((u * self.num_steps).astype(jnp.int32), self.num_steps - 1)

    def grid(self, num_steps: int) -> Int[Array, " num_steps"]:
        """`num_steps` evenly spaced indices from $T-1$ down to 0: the official spacing, one section."""
        return jnp.asarray(self.spaced(num_steps)[::-1].copy(), jnp.int32)

    def spaced(self, num_steps: int) -> Int[np.ndarray, " num_steps"]:
        """Evenly spaced increasing indices; the argument of [`eqdiff.respace`][] that samplers use."""
        return section_timesteps(self.num_steps, (num_steps,))

    def prior_scale(self) -> Scalar:
        return jnp.ones(())

    def posterior_mean(self, t: Time, x0: Example, x: Example) -> Example:
        r"""$\tilde\mu_t(x_t, x_0)$ of equation (3)."""
        on_x0, on_x = self.posterior_mean_coefficients(t)
        return on_x0.astype(x.dtype) * x0 + on_x.astype(x.dtype) * x

    def posterior_mean_coefficients(self, t: Time) -> tuple[Scalar, Scalar]:
        r"""The coefficients of $x_0$ and of $x_t$ in equation (3)."""
        on_x0, on_x = self._betas.derived(_posterior_mean_coefficients)
        return self.lookup(on_x0, t), self.lookup(on_x, t)

    def continuous(self) -> ContinuousSchedule:
        r"""The chain as a VP process in continuous time: see [`eqdiff.ContinuousSchedule`][].

        Its time is still the index, so `denoiser(t, x)` is the same call in both views. A last step whose rate was
        clipped (the cosine schedule's) is left out: there $\alpha \approx 5\cdot10^{-5}$, and a coarse grid would spend
        itself on that one step.

        **Raises:** `ValueError` for a chain of fewer than three steps.
        """
        if self.num_steps < 3:
            raise ValueError(
                f"Schedule.continuous: expected a chain of at least 3 steps, got {self.num_steps}."
            )
        clipped = self.betas[-1] >= MAX_BETA
        end = float(self.num_steps - 1 - clipped)
        return ContinuousSchedule(self._betas.derived(_log_snr), self.labels, t1=end)


def _alpha_bar(betas):
    return np.cumprod(1 - betas)


def _alpha_bar_previous(betas):
    return np.append(1.0, _alpha_bar(betas)[:-1])


def _log_snr(betas):
    alpha_bar = _alpha_bar(betas)
    return np.log(alpha_bar) - np.log1p(-alpha_bar)


def _posterior_variance(betas):
    return betas * (1 - _alpha_bar_previous(betas)) / (1 - _alpha_bar(betas))


def _posterior_log_variance(betas):
    variance = _posterior_variance(betas)
    # The first is 0 because x_0 is known given x_0. The official code gives it the second entry; a chain of one step
    # has none, and its own β is then the only variance there is.
    variance[0] = variance[1] if variance.size > 1 else betas[0]
    return np.log(variance)


def _posterior_mean_coefficients(betas):
    alpha_bar, previous = _alpha_bar(betas), _alpha_bar_previous(betas)
    on_x0 = betas * np.sqrt(previous) / (1 - alpha_bar)
    on_x = (1 - previous) * np.sqrt(1 - betas) / (1 - alpha_bar)
    return on_x0, on_x
