r"""A process from any α(t) and σ(t).

The kernel $\mathcal N(\alpha_t x_0, \sigma_t^2 I)$ determines the SDE (equation 2 of the base).
With $\dot\lambda = 2(\dot\alpha/\alpha - \dot\sigma/\sigma)$,

$$f = \frac{\dot\alpha}{\alpha}, \qquad
  g^2 = 2\sigma\dot\sigma - 2f\sigma^2 = -\sigma^2\dot\lambda. \tag{1}$$

The derivatives are found by automatic differentiation. The inverse $t(\lambda)$ is found by
bisection and differentiated as an implicit function (`_inverse.py`).

Only values of λ are known, and over a short step their difference cancels. There

$$\lambda_s - \lambda_t = -\int_s^t \dot\lambda_\tau\,\mathrm d\tau \tag{2}$$

is computed by Gauss–Legendre quadrature instead.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._check import check_positive, is_traced, known_number
from .._types import Scalar, Time
from ._inverse import Curve, derivative, inverse
from .base import AbstractProcess, as_time


# Gauss–Legendre on [−1, 1].
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(5)


class KernelSDE(AbstractProcess):
    r"""The SDE with the perturbation kernel $\mathcal N(\alpha(t)\,x_0, \sigma(t)^2 I)$, for your
    own functions.

    Drift, diffusion and $\dot\alpha, \dot\sigma$ follow by automatic differentiation, and so does
    the inverse of λ. They are as accurate as the functions: write $1 - e^{-a}$ as `-jnp.expm1(-a)`.
    The functions may be closures over parameters, or [Equinox](https://docs.kidger.site/equinox)
    modules that hold them; everything here is differentiable in these. A file cannot hold
    functions: to save a model, write the process as your own subclass of
    [`eqdiff.AbstractProcess`][].

    **Example:**

    ```python
    alpha, sigma = lambda t: jnp.exp(-(t**2)), lambda t: jnp.sqrt(-jnp.expm1(-2 * t**2))
    process = eqd.KernelSDE(alpha, sigma, t0=1e-3, t1=3.0)
    ```
    """

    _alpha: Callable[[Scalar], Scalar]
    _sigma: Callable[[Scalar], Scalar]
    _prior_scale: float | Array | None
    _c_noise: Callable[[Scalar], Scalar] | None
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
        c_noise: Callable[[Scalar], Scalar] | None = None,
    ):
        r"""**Arguments:**

        - `alpha`, `sigma`: $\alpha(t)$ and $\sigma(t)$, functions of one 0-d array that JAX can
            differentiate.
        - `t0`, `t1`: the interval on which the process is used. On it α and σ must be positive and
            the log-SNR must fall.
        - `prior_scale`: the standard deviation of the prior that stands for $p(x_{t_1})$; by
            default $\sigma(t_1)$.
        - `c_noise`: the network's time input, a function of $t$; by default $1000\,t/t_1$.

        **Raises:** `ValueError` for times that are not finite and increasing, for functions that do
        not return one number, and where α or σ is not positive or the log-SNR does not fall (seen
        at 65 times, unless the functions hold traced values).
        """
        low, high = known_number(t0), known_number(t1)
        if low is not None and high is not None:
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"KernelSDE(t0={t0}, t1={t1}): expected finite times, t0 < t1.")
        check_positive(self, prior_scale=prior_scale)
        self._alpha, self._sigma, self.t0, self.t1 = alpha, sigma, t0, t1
        self._prior_scale, self._c_noise = prior_scale, c_noise
        _check(self)

    def alpha(self, t: Time) -> Scalar:
        return _value("alpha", self._alpha, as_time(t))

    def sigma(self, t: Time) -> Scalar:
        return _value("sigma", self._sigma, as_time(t))

    def log_snr_fall(self, s: Time, t: Time) -> Scalar:
        s, t = as_time(s), as_time(t)
        signal, noise = self.alpha(s) / self.alpha(t), self.sigma(t) / self.sigma(s)
        direct = 2 * (jnp.log(signal) + jnp.log(noise))
        # Equation (2). Where it is used (a fall of 0.45 in float32, 0.17 in float64) five nodes are
        # exact to rounding, and the difference has lost no more than a digit elsewhere.
        middle, half = 0.5 * (s + t), 0.5 * (t - s)
        slopes = jax.vmap(self._log_snr_dot)(middle + half * jnp.asarray(_NODES, t.dtype))
        integral = -half * jnp.sum(jnp.asarray(_WEIGHTS, t.dtype) * slopes)
        return jnp.where(jnp.abs(direct) < float(jnp.finfo(t.dtype).eps) ** 0.05, integral, direct)

    def _log_snr_dot(self, t: Scalar) -> Scalar:
        return 2 * (self.alpha_dot(t) / self.alpha(t) - self.sigma_dot(t) / self.sigma(t))

    def time(self, log_snr: Scalar) -> Scalar:
        r"""The inverse of `log_snr`, by bisection; beyond the ends of $[t_0, t_1]$, the nearer
        end.
        """
        log_snr = jnp.asarray(log_snr)
        ends = (jnp.asarray(end).astype(log_snr.dtype) for end in (self.t0, self.t1))
        return inverse(Curve(_closed(self.log_snr, log_snr), *ends), log_snr)

    def c_noise(self, t: Time) -> Scalar:
        t = as_time(t)
        return 1000 * t / self.t1 if self._c_noise is None else _value("c_noise", self._c_noise, t)

    def alpha_dot(self, t: Time) -> Scalar:
        return derivative(self.alpha, t)

    def sigma_dot(self, t: Time) -> Scalar:
        return derivative(self.sigma, t)

    def prior_scale(self) -> Scalar:
        return self.sigma(self.t1) if self._prior_scale is None else as_time(self._prior_scale)


def _value(name: str, function: Callable, t: Scalar) -> Scalar:
    value = jnp.asarray(function(t))
    if value.shape != ():
        raise ValueError(
            f"KernelSDE: {name}(t) returned shape {value.shape} for a 0-d t, expected one number."
        )
    return value.astype(t.dtype)


def _closed(function: Callable, like: Scalar) -> Callable:
    """The function with what it closes over as leaves: a tracer must not hide in a closure."""
    return eqx.filter_closure_convert(function, jax.ShapeDtypeStruct((), like.dtype))


def _levels(process: KernelSDE) -> list[np.ndarray] | None:
    """α, σ and λ at 65 times, or nothing where any of them depends on a tracer."""
    if is_traced(*jax.tree.leaves(process)):
        return None
    with jax.ensure_compile_time_eval():
        times = jnp.linspace(process.t0, process.t1, 65)
        functions = [_closed(f, times[0]) for f in (process.alpha, process.sigma, process.log_snr)]
        if is_traced(*jax.tree.leaves(functions)):
            return None
        return [np.asarray(values) for values in (times, *(jax.vmap(f)(times) for f in functions))]


def _check(process: KernelSDE) -> None:
    """Checks the functions, unless they hold traced values."""
    levels = _levels(process)
    if levels is None:
        return
    times, alpha, sigma, log_snr = levels
    for name, values in (("alpha", alpha), ("sigma", sigma)):
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if bad.size:
            raise ValueError(
                f"KernelSDE: {name}(t) is {values[bad[0]]:g} at t = {times[bad[0]]:g}, expected a "
                "positive number on [t0, t1]. Choose t0 above the time where the noise vanishes, "
                "and t1 below the one where the signal does."
            )
    rising = np.flatnonzero(~(np.diff(log_snr) < 0))
    if rising.size:
        i = rising[0]
        raise ValueError(
            f"KernelSDE: the log-SNR log(alpha²/sigma²) must fall, but goes from {log_snr[i]:g} "
            f"at t = {times[i]:g} to {log_snr[i + 1]:g} at t = {times[i + 1]:g}. Time runs from "
            "data at t0 to noise at t1."
        )
