r"""A process is (α, σ).

Everything eqdiff knows about a diffusion is its Gaussian perturbation kernel

$$p(x_t \mid x_0) = \mathcal N(\alpha_t x_0,\ \sigma_t^2 I), \tag{1}$$

with log signal-to-noise ratio $\lambda_t = \log(\alpha_t^2 / \sigma_t^2)$, decreasing in $t$. In continuous time the
kernel is that of the linear SDE

$$\mathrm dx = f(t)\,x\,\mathrm dt + g(t)\,\mathrm dw, \qquad
  f = \dot\alpha / \alpha, \qquad g^2 = \tfrac{\mathrm d}{\mathrm dt}\sigma^2 - 2 f \sigma^2 \tag{2}$$

(Särkkä & Solin 2019, section 5.5; Song et al. 2021, section 3.4). The discrete chain of DDPM is a process too: its
time is an index and only (1) holds.
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .._gaussian import standard_normal_log_prob
from .._types import Example, Key, Scalar, Time


def as_time(t: Time) -> Float[Array, ""]:
    """A time as a 0-d floating-point array; floating-point arrays keep their precision."""
    t = jnp.asarray(t)
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)


class AbstractProcess(eqx.Module):
    r"""A Gaussian perturbation kernel $p(x_t|x_0) = \mathcal N(\alpha_t x_0, \sigma_t^2 I)$."""

    @abc.abstractmethod
    def alpha(self, t: Time) -> Scalar:
        r"""The signal level $\alpha_t$."""

    @abc.abstractmethod
    def sigma(self, t: Time) -> Scalar:
        r"""The noise level $\sigma_t$ (a standard deviation)."""

    @abc.abstractmethod
    def log_snr(self, t: Time) -> Scalar:
        r"""$\lambda_t = \log(\alpha_t^2/\sigma_t^2)$, accurate where $\alpha_t$ or $\sigma_t$ is near 0."""

    @abc.abstractmethod
    def label(self, t: Time) -> Scalar:
        r"""What a network is told as time, unless a denoiser says otherwise."""

    @abc.abstractmethod
    def place(self, u: Float[Array, "..."]) -> Shaped[Array, "..."]:
        r"""Maps $u \in [0, 1)$ to a time, uniformly: uniform $u$ give uniform times."""

    @abc.abstractmethod
    def grid(self, num_steps: int) -> Shaped[Array, " num_steps"]:
        r"""`num_steps` evenly spaced decreasing times, from the noisiest to the cleanest."""

    @abc.abstractmethod
    def prior_scale(self) -> Scalar:
        r"""The standard deviation of the prior $\mathcal N(0, s^2 I)$ that stands for $p(x_{t_1})$."""

    def perturb(self, t: Time, x0: Example, noise: Example) -> Example:
        r"""$x_t = \alpha_t x_0 + \sigma_t \varepsilon$, equation (1).

        **Arguments:**

        - `t`: a time.
        - `x0`: data, of any shape.
        - `noise`: standard normal $\varepsilon$, shaped like `x0`.

        **Returns:** $x_t$, in the precision of `x0`.
        """
        alpha, sigma = self.alpha(t).astype(x0.dtype), self.sigma(t).astype(x0.dtype)
        return alpha * x0 + sigma * noise

    def transition(self, s: Time, t: Time) -> tuple[Scalar, Scalar]:
        r"""The kernel between two times, $p(x_t|x_s) = \mathcal N(a\,x_s, b^2 I)$ for $s < t$.

        $$a = \frac{\alpha_t}{\alpha_s}, \qquad b^2 = \sigma_t^2 - a^2\sigma_s^2
          = -\sigma_t^2\,\mathrm{expm1}(\lambda_t - \lambda_s).$$

        On a chain, one step has $a = \sqrt{1-\beta_t}$ and $b = \sqrt{\beta_t}$; under VE it is SMLD's
        $b = \sqrt{\sigma_t^2 - \sigma_s^2}$ (Song et al. 2021, equations 8 and 10).

        **Arguments:**

        - `s`, `t`: the earlier and the later time.

        **Returns:** $(a, b)$.
        """
        # The right-hand form of b² cannot come out negative, as a difference of squares may on a fine grid.
        gap = jnp.minimum(self.log_snr(t) - self.log_snr(s), 0)
        return self.alpha(t) / self.alpha(s), self.sigma(t) * jnp.sqrt(-jnp.expm1(gap))

    def prior_sample(self, shape: tuple[int, ...], *, key: Key) -> Example:
        r"""Draws $x_{t_1} \sim \mathcal N(0, s^2 I)$ of the given shape."""
        scale = self.prior_scale()
        return scale * jax.random.normal(key, shape, scale.dtype)

    def prior_log_prob(self, x: Example) -> Scalar:
        r"""$\log \mathcal N(x; 0, s^2 I)$ in nats."""
        scale = self.prior_scale().astype(x.dtype)
        return standard_normal_log_prob(x / scale) - x.size * jnp.log(scale)


class AbstractSDE(AbstractProcess):
    r"""A process in continuous time $t \in [t_0, t_1]$, $t_0$ at the data: the linear SDE of equation (2)."""

    t0: eqx.AbstractVar[float | Array]
    t1: eqx.AbstractVar[float | Array]

    @abc.abstractmethod
    def time(self, log_snr: Scalar) -> Scalar:
        r"""The inverse of `log_snr`: the time at which $\lambda_t$ takes this value."""

    @abc.abstractmethod
    def alpha_dot(self, t: Time) -> Scalar:
        r"""$\dot\alpha_t = \mathrm d\alpha/\mathrm dt$."""

    @abc.abstractmethod
    def sigma_dot(self, t: Time) -> Scalar:
        r"""$\dot\sigma_t = \mathrm d\sigma/\mathrm dt$."""

    @abc.abstractmethod
    def drift(self, t: Time, x: Example) -> Example:
        r"""$f(t)\,x$ of equation (2)."""

    @abc.abstractmethod
    def diffusion(self, t: Time) -> Scalar:
        r"""$g(t)$ of equation (2)."""

    def place(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""$t = t_0 + (t_1 - t_0) u$."""
        return self.t0 + (self.t1 - self.t0) * u

    def grid(self, num_steps: int) -> Float[Array, " num_steps"]:
        r"""`num_steps` equally spaced times from $t_1$ down to $t_0$, both included."""
        return jnp.linspace(self.t1, self.t0, num_steps)


def check_positive(owner: str, **values: float | Array) -> None:
    """Raises `ValueError` for a concrete hyper-parameter that is not a positive finite number."""
    for name, value in values.items():
        if isinstance(value, (int, float)) and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{owner}({name}={value}): expected a positive finite number.")


def check_interval(
    owner: str, t0: float | Array, t1: float | Array, *, end: float = math.inf
) -> None:
    """Raises `ValueError` unless concrete times satisfy 0 < t0 < t1 ≤ end, t1 finite."""
    known = all(isinstance(t, (int, float)) for t in (t0, t1))
    if known and not (0 < t0 < t1 <= end and math.isfinite(t1)):
        bound = f" <= {end:g}" if math.isfinite(end) else ", finite"
        raise ValueError(
            f"{owner}(t0={t0}, t1={t1}): expected 0 < t0 < t1{bound}. The kernel is singular at t = 0, "
            f"so write for example {owner}(t0=1e-3)."
        )


def refuse_no_signal(process: AbstractSDE, t: Scalar) -> Scalar:
    r"""The time itself; at run time an error where it is 1 and α is 0, which drift and diffusion do not survive.

    Costs nothing for a process whose interval is known to end before 1.
    """
    if isinstance(process.t1, (int, float)) and process.t1 < 1:
        return t
    name = type(process).__name__
    return eqx.error_if(
        t,
        t >= 1,
        f"{name}: at t = 1 no signal is left (alpha = 0), and the drift and diffusion of its SDE are infinite. Write "
        f"{name}(t1=0.999); the probability flow with a PredictFlow() or PredictVelocity() network may start at t = 1.",
    )
