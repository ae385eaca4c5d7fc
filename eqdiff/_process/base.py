r"""A process is (α, σ).

Everything eqdiff knows about a diffusion is its Gaussian perturbation kernel

$$p(x_t \mid x_0) = \mathcal N(\alpha_t x_0,\ \sigma_t^2 I), \tag{1}$$

with log signal-to-noise ratio $\lambda_t = \log(\alpha_t^2 / \sigma_t^2)$, decreasing in $t$. It is
the kernel of the linear SDE

$$\mathrm dx = f(t)\,x\,\mathrm dt + g(t)\,\mathrm dw, \qquad
  f = \frac{\dot\alpha}\alpha, \qquad
  g^2 = \frac{\mathrm d\sigma^2}{\mathrm dt} - 2 f \sigma^2
      = 2\sigma^2\left(\frac{\dot\sigma}\sigma - \frac{\dot\alpha}\alpha\right) \tag{2}$$

(Särkkä & Solin 2019, section 5.5; Song et al. 2021, section 3.4). In the right-hand form both terms
have the same sign, so that nothing cancels. Between two times $s < t$

$$p(x_t|x_s) = \mathcal N(a\,x_s, b^2 I), \qquad a = \frac{\alpha_t}{\alpha_s}, \qquad
  b^2 = \sigma_t^2 - a^2\sigma_s^2 = -\sigma_t^2\,\mathrm{expm1}(\lambda_t - \lambda_s). \tag{3}$$

The difference of two rounded λ has lost the digits that matter on a fine grid: in float32, steps of
$10^{-3}$ would have noise that is off by $10^{-5}$. So a process computes $\lambda_s - \lambda_t$
in closed form.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._check import is_traced
from .._gaussian import standard_normal_log_prob
from .._types import Example, Key, Scalar, Time


def as_time(t: Time) -> Float[Array, ""]:
    """A time as a 0-d floating-point array; floating-point arrays keep their precision."""
    t = jnp.asarray(t)
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)


class AbstractProcess(eqx.Module):
    r"""A Gaussian perturbation kernel $p(x_t|x_0) = \mathcal N(\alpha_t x_0, \sigma_t^2 I)$,
    $t \in [t_0, t_1]$.

    Solves run between `t0`, at the data, and `t1`, at the noise. To write your own process, define
    these two and the abstract methods below, or pass two functions to [`eqdiff.KernelSDE`][].
    """

    t0: eqx.AbstractVar[float | Array]
    t1: eqx.AbstractVar[float | Array]

    @abc.abstractmethod
    def alpha(self, t: Time) -> Scalar:
        r"""The signal level $\alpha_t$."""

    @abc.abstractmethod
    def sigma(self, t: Time) -> Scalar:
        r"""The noise level $\sigma_t$ (a standard deviation)."""

    @abc.abstractmethod
    def alpha_dot(self, t: Time) -> Scalar:
        r"""$\dot\alpha_t = \mathrm d\alpha/\mathrm dt$."""

    @abc.abstractmethod
    def sigma_dot(self, t: Time) -> Scalar:
        r"""$\dot\sigma_t = \mathrm d\sigma/\mathrm dt$."""

    @abc.abstractmethod
    def log_snr_fall(self, s: Time, t: Time) -> Scalar:
        r"""$\lambda_s - \lambda_t$, positive for $s < t$, in a form that does not cancel where
        $s \approx t$.
        """

    @abc.abstractmethod
    def time(self, log_snr: Scalar) -> Scalar:
        r"""The inverse of `log_snr`: the time at which $\lambda_t$ takes this value."""

    @abc.abstractmethod
    def c_noise(self, t: Time) -> Scalar:
        r"""The network's time input, unless the denoiser overrides it."""

    @abc.abstractmethod
    def prior_scale(self) -> Scalar:
        r"""The standard deviation of the prior $\mathcal N(0, s^2 I)$ that stands for
        $p(x_{t_1})$.
        """

    def log_snr(self, t: Time) -> Scalar:
        r"""$\lambda_t = \log(\alpha_t^2/\sigma_t^2)$."""
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def levels(self, t: Time, *, like: Example) -> tuple[Scalar, Scalar]:
        r"""$(\alpha_t, \sigma_t)$ in the precision of an example."""
        return self.alpha(t).astype(like.dtype), self.sigma(t).astype(like.dtype)

    def drift(self, t: Time, x: Example) -> Example:
        r"""$f(t)\,x$ of equation (2).

        **Raises:** a runtime error where no signal is left ($\alpha_t = 0$), as at $t = 1$ of a
        rectified flow, or the last step of zero terminal SNR: there $f$ is infinite.
        """
        t = with_signal(self, t)
        return (self.alpha_dot(t) / self.alpha(t)).astype(x.dtype) * x

    def diffusion(self, t: Time) -> Scalar:
        r"""$g(t)$ of equation (2).

        **Raises:** as `drift`. Without noise ($\sigma_t = 0$, below $t_0$) it is NaN.
        """
        t = with_signal(self, t)
        sigma = self.sigma(t)
        return sigma * jnp.sqrt(2 * (self.sigma_dot(t) / sigma - self.alpha_dot(t) / self.alpha(t)))

    def perturb(self, t: Time, x0: Example, noise: Example) -> Example:
        r"""$x_t = \alpha_t x_0 + \sigma_t \varepsilon$, equation (1).

        **Arguments:**

        - `t`: a time.
        - `x0`: data, of any shape.
        - `noise`: standard normal $\varepsilon$, shaped like `x0`.

        **Returns:** $x_t$, in the precision of `x0`.
        """
        alpha, sigma = self.levels(t, like=x0)
        return alpha * x0 + sigma * noise

    def transition(self, s: Time, t: Time) -> tuple[Scalar, Scalar]:
        r"""The kernel between two times, $p(x_t|x_s) = \mathcal N(a\,x_s, b^2 I)$ for $s < t$:
        equation (3).

        On a schedule, one step has $a = \sqrt{1-\beta_t}$ and $b = \sqrt{\beta_t}$; under VE it is
        SMLD's $b = \sqrt{\sigma_t^2 - \sigma_s^2}$ (Song et al. 2021, equations 8 and 10).

        **Arguments:**

        - `s`, `t`: the earlier and the later time.

        **Returns:** $(a, b)$.
        """
        fall = jnp.maximum(self.log_snr_fall(s, t), 0)
        return self.alpha(t) / self.alpha(s), self.sigma(t) * jnp.sqrt(-jnp.expm1(-fall))

    def prior_sample(self, shape: tuple[int, ...], *, key: Key) -> Example:
        r"""Draws $x_{t_1} \sim \mathcal N(0, s^2 I)$ of the given shape."""
        scale = self.prior_scale()
        return scale * jax.random.normal(key, shape, scale.dtype)

    def prior_log_prob(self, x: Example) -> Scalar:
        r"""$\log \mathcal N(x; 0, s^2 I)$ in nats."""
        scale = self.prior_scale().astype(x.dtype)
        return standard_normal_log_prob(x / scale) - x.size * jnp.log(scale)


def has_no_signal(process: AbstractProcess) -> bool:
    r"""Whether $\alpha = 0$ at the noisiest time. False for a process whose values are traced."""
    # Evaluated now, where it costs nothing.
    with jax.ensure_compile_time_eval():
        alpha = process.alpha(noisiest(process))
    return not is_traced(alpha) and float(alpha) == 0


def noisiest(process: AbstractProcess) -> Any:
    """$t_1$, or the last step of a schedule, which may lie beyond."""
    steps = getattr(process, "num_steps", None)
    return process.t1 if steps is None else steps - 1


def without_signal(process: AbstractProcess) -> tuple[str, str]:
    """Where no signal is left and how to leave that time out, in the words of an error."""
    name, end = type(process).__name__, noisiest(process)
    if hasattr(process, "num_steps"):
        remedy = f"Leave that step out: eqdiff.respace(schedule, range({end}))"
    else:
        remedy = f"Write {name}(t1=0.999)"
    return f"at t = {end} of {name} no signal is left (alpha = 0)", remedy


def with_signal(process: AbstractProcess, t: Time) -> Time:
    """The time itself; at run time an error where α is 0. Free for a process where it never is."""
    if not has_no_signal(process):
        return t
    where, remedy = without_signal(process)
    return eqx.error_if(
        jnp.asarray(t),
        process.alpha(t) == 0,
        f"{where}, and the drift and diffusion of its SDE are infinite. {remedy}; the probability "
        "flow or DDIM, with a PredictFlow() or PredictVelocity() network, may start there.",
    )
