r"""A process from any α(t) and σ(t).

The kernel $\mathcal N(\alpha_t x_0, \sigma_t^2 I)$ determines the SDE (equation 2 of the base). With
$\dot\lambda = 2(\dot\alpha/\alpha - \dot\sigma/\sigma)$,

$$f = \frac{\dot\alpha}{\alpha}, \qquad g^2 = 2\sigma\dot\sigma - 2f\sigma^2 = -\sigma^2\dot\lambda. \tag{1}$$

The derivatives are found by automatic differentiation. The inverse $t(\lambda)$ is found by bisection, which cannot fail for a monotone
λ, and differentiated as an implicit function of λ and of whatever parameters θ the two functions hold,

$$\mathrm dt = \frac{\mathrm d\lambda - \partial_\theta\lambda_t\,\mathrm d\theta}{\dot\lambda_t}. \tag{2}$$
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._types import Example, Scalar, Time
from .base import AbstractSDE, as_time, check_positive


class KernelSDE(AbstractSDE):
    r"""The SDE whose perturbation kernel is $\mathcal N(\alpha(t)\,x_0, \sigma(t)^2 I)$, for functions of your own.

    ```python
    def alpha(t):
        return jnp.exp(-(t**2))

    process = eqd.KernelSDE(alpha, lambda t: jnp.sqrt(-jnp.expm1(-2 * t**2)), t0=1e-3, t1=3.0)
    ```

    Drift, diffusion and $\dot\alpha, \dot\sigma$ follow by automatic differentiation, and so does the inverse of λ. They are as accurate as
    the functions: write $1 - e^{-a}$ as `-jnp.expm1(-a)`. The functions may be [Equinox](https://docs.kidger.site/equinox) modules with
    parameters; everything here is differentiable in these. A file cannot hold functions: to save a model, write the process as an
    [`eqdiff.AbstractSDE`][] of your own.
    """

    _alpha: Callable[[Scalar], Scalar]
    _sigma: Callable[[Scalar], Scalar]
    _prior_scale: float | Array | None
    _label: Callable[[Scalar], Scalar] | None
    t0: float | Array
    t1: float | Array

    def __init__(
        self,
        alpha: Callable[[Scalar], Scalar],
        sigma: Callable[[Scalar], Scalar],
        *,
        t0: float | Array,
        t1: float | Array,
        prior_scale: float | Array | None = None,
        label: Callable[[Scalar], Scalar] | None = None,
    ):
        r"""**Arguments:**

        - `alpha`, `sigma`: $\alpha(t)$ and $\sigma(t)$, functions of one 0-d array that JAX can differentiate.
        - `t0`, `t1`: the interval on which the process is used. On it α and σ must be positive and the log-SNR must fall.
        - `prior_scale`: the standard deviation of the prior that stands for $p(x_{t_1})$; by default $\sigma(t_1)$.
        - `label`: what a network is told as time; by default $1000\,t/t_1$.

        **Raises:** `ValueError` for times that are not finite and increasing, for functions that do not return one number, and where α
        or σ is not positive or the log-SNR does not fall (seen at 65 times, unless the functions hold traced values).
        """
        if all(isinstance(t, (int, float)) for t in (t0, t1)):
            if not (math.isfinite(t0) and math.isfinite(t1) and t0 < t1):
                raise ValueError(f"KernelSDE(t0={t0}, t1={t1}): expected finite times, t0 < t1.")
        if prior_scale is not None:
            check_positive("KernelSDE", prior_scale=prior_scale)
        self._alpha, self._sigma, self.t0, self.t1 = alpha, sigma, t0, t1
        self._prior_scale, self._label = prior_scale, label
        _check(self)

    def alpha(self, t: Time) -> Scalar:
        return _value("alpha", self._alpha, as_time(t))

    def sigma(self, t: Time) -> Scalar:
        return _value("sigma", self._sigma, as_time(t))

    def log_snr(self, t: Time) -> Scalar:
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def time(self, log_snr: Scalar) -> Scalar:
        r"""The inverse of `log_snr`, by bisection; beyond the ends of $[t_0, t_1]$, the nearer end."""
        return _inverse(self, jnp.asarray(log_snr))

    def label(self, t: Time) -> Scalar:
        t = as_time(t)
        return 1000 * t / self.t1 if self._label is None else _value("label", self._label, t)

    def alpha_dot(self, t: Time) -> Scalar:
        return _derivative(self.alpha, t)

    def sigma_dot(self, t: Time) -> Scalar:
        return _derivative(self.sigma, t)

    def drift(self, t: Time, x: Example) -> Example:
        return (self.alpha_dot(t) / self.alpha(t)).astype(x.dtype) * x

    def diffusion(self, t: Time) -> Scalar:
        # Both terms have the same sign, so nothing cancels, unlike in dσ²/dt − 2fσ².
        sigma = self.sigma(t)
        decay = self.sigma_dot(t) / sigma - self.alpha_dot(t) / self.alpha(t)
        return sigma * jnp.sqrt(2 * decay)

    def prior_scale(self) -> Scalar:
        return self.sigma(self.t1) if self._prior_scale is None else as_time(self._prior_scale)


def _value(name: str, function: Callable, t: Scalar) -> Scalar:
    value = jnp.asarray(function(t))
    if value.shape != ():
        raise ValueError(
            f"KernelSDE: {name}(t) returned shape {value.shape} for a 0-d t, expected one number."
        )
    return value.astype(t.dtype)


def _derivative(function: Callable[[Scalar], Scalar], t: Time) -> Scalar:
    t = as_time(t)
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


def _levels(process: KernelSDE) -> list[np.ndarray]:
    with jax.ensure_compile_time_eval():
        times = jnp.linspace(process.t0, process.t1, 65)
        levels = [jax.vmap(f)(times) for f in (process.alpha, process.sigma, process.log_snr)]
        return [np.asarray(values) for values in (times, *levels)]


def _check(process: KernelSDE) -> None:
    """Looks at the functions where they can be looked at."""
    try:
        times, alpha, sigma, log_snr = _levels(process)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
        return
    for name, values in (("alpha", alpha), ("sigma", sigma)):
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if bad.size:
            raise ValueError(
                f"KernelSDE: {name}(t) is {values[bad[0]]:g} at t = {times[bad[0]]:g}, expected a positive number on "
                "[t0, t1]. Choose t0 above the time where the noise vanishes, and t1 below the one where the signal does."
            )
    rising = np.flatnonzero(~(np.diff(log_snr) < 0))
    if rising.size:
        i = rising[0]
        raise ValueError(
            f"KernelSDE: the log-SNR log(alpha²/sigma²) must fall, but goes from {log_snr[i]:g} at t = {times[i]:g} to "
            f"{log_snr[i + 1]:g} at t = {times[i + 1]:g}. Time runs from data at t0 to noise at t1."
        )


def _bisect(process: KernelSDE, log_snr: Scalar) -> Scalar:
    """Halves [t0, t1] until no number lies between its ends: the precision of t itself, however small t is."""
    low, high = (jnp.asarray(end).astype(log_snr.dtype) for end in (process.t0, process.t1))

    def unfinished(state):
        left, middle, right = state
        return (left < middle) & (middle < right)

    def halve(state):
        left, middle, right = state
        above = process.log_snr(middle) > log_snr
        left, right = jnp.where(above, middle, left), jnp.where(above, right, middle)
        return left, 0.5 * (left + right), right

    left, _, right = jax.lax.while_loop(unfinished, halve, (low, 0.5 * (low + high), high))
    # One of two neighbours: the one that fits better.
    miss = [jnp.abs(process.log_snr(end) - log_snr) for end in (left, right)]
    return jnp.where(miss[0] <= miss[1], left, right)


@eqx.filter_custom_jvp
def _inverse(process: KernelSDE, log_snr: Scalar) -> Scalar:
    return _bisect(process, log_snr)


@_inverse.def_jvp
def _(primals, tangents):
    process, log_snr = primals
    process_dot, log_snr_dot = tangents
    t = _inverse(process, log_snr)
    rise = jnp.zeros_like(log_snr) if log_snr_dot is None else log_snr_dot
    if any(leaf is not None for leaf in jax.tree.leaves(process_dot)):
        _, moved = eqx.filter_jvp(lambda p: p.log_snr(t), (process,), (process_dot,))
        rise = rise - moved
    return t, rise / _derivative(process.log_snr, t)
