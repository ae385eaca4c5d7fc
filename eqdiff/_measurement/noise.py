r"""The noise of a measurement, $p(y|\mu)$ with $\mu = A(x_0)$.

| | $y$ | $\Sigma$ |
|---|---|---|
| [`eqdiff.GaussianNoise`][] | $\mu + \sigma_y n$ | $\mathrm{diag}(\sigma_y^2)$ |
| [`eqdiff.CorrelatedNoise`][] | $\mu + Ln$ | $LL^\top$ |
| [`eqdiff.PoissonNoise`][] | $\frac1r\mathrm{Poisson}(r\mu)$ | $\mathrm{diag}(\mu)/r$ |

with $n \sim \mathcal N(0, I)$. The mean of $y$ is $\mu$ in all of them, so that $y$ and $A(x_0)$
have the same unit. Methods that linearise a measurement need only products of $\Sigma$ with
vectors, and accept $\Sigma = 0$; a density needs an invertible $\Sigma$.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammaln
from jaxtyping import Array, ArrayLike, Float

from .._check import is_traced, of
from .._gaussian import standard_normal_log_prob
from .._types import Example, Key, Scalar


# u ↦ Lu, on arrays shaped like y.
_Factor = Callable[[Example], Example]

# A count that was divided by its rate and multiplied again is whole up to rounding.
_ROUNDING = 16 * np.finfo(np.float32).eps


class AbstractMeasurementNoise(eqx.Module):
    r"""The distribution $p(y|\mu)$ of a measurement about its mean $\mu$, shaped like $y$.

    Subclass it for noise of another kind, and pass that to [`eqdiff.Measurement`][].
    """

    @abc.abstractmethod
    def log_prob(self, y: Example, mean: Example) -> Scalar:
        r"""$\log p(y|\mu)$ in nats, with its constant."""

    @abc.abstractmethod
    def sample(self, mean: Example, *, key: Key) -> Example:
        r"""One draw of $y$ given $\mu$."""

    @abc.abstractmethod
    def covariance(self, mean: Example, u: Example) -> Example:
        r"""$\Sigma u$, with $\Sigma = \mathrm{Cov}[y|\mu]$ and `u` shaped like $y$."""

    @abc.abstractmethod
    def check(self, owner: str, y: ArrayLike) -> None:
        """Raises `ValueError`, in the name of `owner`, where the noise does not fit `y`."""

    @abc.abstractmethod
    def check_density(self, owner: str) -> None:
        r"""Raises `ValueError`, in the name of `owner`, where $\Sigma$ is known to be singular, so
        that `log_prob` does not exist.
        """


class GaussianNoise(AbstractMeasurementNoise):
    r"""Independent Gaussian noise, $y = \mu + \sigma_y n$.

    A number or an array in its place is short for it: `eqd.Measurement(y, operator, 0.1)`.

    **Example:**

    ```python
    y = eqd.GaussianNoise(0.1).sample(jnp.ones(3), key=jax.random.key(0))
    ```
    """

    std: ArrayLike

    def __init__(self, std: ArrayLike):
        r"""**Arguments:**

        - `std`: $\sigma_y$, a number or an array shaped like $y$; 0 where there is no noise.

        **Raises:** `ValueError` for a negative value, or one that is not finite.
        """
        # Kept as given: inside jit, asarray makes tracers of known numbers.
        if not is_traced(std):
            known = np.asarray(std)
            if known.dtype.kind not in "iuf" or not np.all((known >= 0) & np.isfinite(known)):
                raise ValueError(
                    f"GaussianNoise(std={std}): expected at least 0, and finite; a standard "
                    "deviation, not a variance."
                )
        self.std = std

    def log_prob(self, y, mean):
        self.check_density("GaussianNoise.log_prob")
        std = jnp.broadcast_to(jnp.asarray(self.std, mean.dtype), mean.shape)
        return standard_normal_log_prob((y - mean) / std) - jnp.sum(jnp.log(std))

    def sample(self, mean, *, key):
        return mean + jnp.asarray(self.std, mean.dtype) * jax.random.normal(
            key, mean.shape, mean.dtype
        )

    def covariance(self, mean, u):
        return jnp.asarray(self.std, u.dtype) ** 2 * u

    def check(self, owner, y):
        if jnp.shape(self.std) not in ((), jnp.shape(y)):
            raise ValueError(
                f"{of(owner)}: std has shape {jnp.shape(self.std)}, expected () or that of y, "
                f"{jnp.shape(y)}."
            )

    def check_density(self, owner):
        if not is_traced(self.std) and not np.all(np.asarray(self.std) > 0):
            raise ValueError(
                f"{of(owner)}: a measurement without noise, std={self.std}, has no density "
                "p(y|x0). Give GaussianNoise a positive std, however small."
            )


class CorrelatedNoise(AbstractMeasurementNoise):
    r"""Gaussian noise with a covariance, $y = \mu + Ln$ and $\Sigma = LL^\top$.

    `sample` and products with $\Sigma$ cost one product with $L$ or two. `log_prob` needs
    $|\Sigma|$ and $\Sigma^{-1}$: it decomposes $L$ as a matrix, which for a function is built
    first, in as many calls as $y$ has elements.

    **Example:**

    ```python
    covariance = jnp.asarray([[1.0, 0.5], [0.5, 1.0]])
    noise = eqd.CorrelatedNoise(jnp.linalg.cholesky(covariance))
    smooth = eqd.CorrelatedNoise(lambda n: 0.1 * (n + jnp.roll(n, 1, -1)))  # no matrix is built
    ```
    """

    factor: _Factor | Float[Array | np.ndarray, "m k"]

    def __init__(self, factor: _Factor | ArrayLike):
        r"""**Arguments:**

        - `factor`: $L$: either a matrix, with a row for each element of $y$ in its order in memory
            and at least as many columns; or a linear function of arrays shaped like $y$ to arrays
            shaped like $y$. Make it an `eqx.Module` if it holds arrays that are traced.

        **Raises:** `ValueError` for anything else.
        """
        if not callable(factor):
            shape = jnp.shape(factor)
            if len(shape) != 2 or shape[0] > shape[1]:
                raise ValueError(
                    f"CorrelatedNoise: factor has shape {shape}, expected a matrix (m, k) with k "
                    "at least m, the size of y, such as jnp.linalg.cholesky(covariance); or a "
                    "function. For independent noise write eqdiff.GaussianNoise(std)."
                )
            if not is_traced(factor) and not np.all(np.isfinite(np.asarray(factor))):
                raise ValueError(
                    "CorrelatedNoise: factor is not finite. The Cholesky factor of a covariance "
                    "that is not positive definite is NaN."
                )
            factor = jnp.asarray(factor) if is_traced(factor) else np.asarray(factor)
        self.factor = factor

    def log_prob(self, y, mean):
        self.check_density("CorrelatedNoise.log_prob")
        # Lᵀ = QR, so LLᵀ = RᵀR: no condition number is squared.
        triangle = jnp.linalg.qr(self._matrix(mean).T, mode="r")
        z = solve_triangular(triangle, (y - mean).reshape(-1), trans="T")
        return standard_normal_log_prob(z) - jnp.sum(jnp.log(jnp.abs(jnp.diagonal(triangle))))

    def _matrix(self, like: Example) -> Float[Array, "m k"]:
        if not callable(self.factor):
            return jnp.asarray(self.factor, like.dtype)
        units = jnp.eye(like.size, dtype=like.dtype).reshape(-1, *like.shape)
        return jax.vmap(self.factor)(units).reshape(like.size, -1).T

    def sample(self, mean, *, key):
        if callable(self.factor):
            return mean + self.factor(jax.random.normal(key, mean.shape, mean.dtype))
        factor = jnp.asarray(self.factor, mean.dtype)
        n = jax.random.normal(key, factor.shape[1:], mean.dtype)
        return mean + (factor @ n).reshape(mean.shape)

    def covariance(self, mean, u):
        if callable(self.factor):
            (back,) = jax.linear_transpose(self.factor, mean)(u)
            return self.factor(back)
        factor = jnp.asarray(self.factor, u.dtype)
        return (factor @ (factor.T @ u.reshape(-1))).reshape(u.shape)

    def check(self, owner, y):
        shape, size = jnp.shape(y), jnp.size(y)
        if not callable(self.factor):
            if self.factor.shape[0] != size:
                raise ValueError(
                    f"{of(owner)}: the factor of the noise has shape {self.factor.shape}, "
                    f"expected a row for each of the {size} elements of y, of shape {shape}."
                )
            return
        out = jax.eval_shape(self.factor, jax.ShapeDtypeStruct(shape, jnp.result_type(y)))
        if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != shape:
            raise ValueError(
                f"{of(owner)}: the factor of the noise returned {out} for an array shaped like y; "
                f"expected one of its shape, {shape}."
            )

    def check_density(self, owner):
        if callable(self.factor) or is_traced(self.factor):
            return
        if np.linalg.matrix_rank(np.asarray(self.factor, np.float64)) < self.factor.shape[0]:
            raise ValueError(
                f"{of(owner)}: the covariance LLᵀ of CorrelatedNoise is singular, so that p(y|x0) "
                "has no density. Add a little independent noise to it."
            )


class PoissonNoise(AbstractMeasurementNoise):
    r"""Counts over their rate, $y = N/r$ with $N \sim \mathrm{Poisson}(r\mu)$.

    So $\mathbb E[y] = \mu$, in the unit of $A(x_0)$; for counts $N$ write `y = counts / rate`.
    `log_prob` is that of the counts, $\log P(N = ry)$,

    $$N\log(r\mu) - r\mu - \log N!,$$

    and $-\infty$ where $\mu$ is negative, or 0 while $N$ is not. Data on $[-1, 1]$ have negative
    elements, and so have estimates of positive data: an operator that returns a rate should bound
    it, `lambda x: jnp.maximum((x + 1) / 2, 1e-3)`. $\Sigma$ is $\mathrm{diag}(\mu)/r$ where more
    than one count is expected, $r\mu > 1$, and that of one count below: a Gaussian without variance
    would treat an empty pixel as certain.

    **Example:**

    ```python
    rate = lambda x: jnp.maximum((x + 1) / 2, 1e-3)  # data on [-1, 1] as a positive rate
    measurement = eqd.Measurement(jnp.asarray([0.4, 0.5]), rate, eqd.PoissonNoise(100.0))
    ```
    """

    rate: ArrayLike

    def __init__(self, rate: ArrayLike):
        r"""**Arguments:**

        - `rate`: $r > 0$, the expected counts where $A(x_0) = 1$: a number, or an array shaped like
            $y$ (times of exposure).

        **Raises:** `ValueError` for a rate that is not positive and finite; with a measurement, for
        a $y$ that is negative or where $ry$ is not whole.
        """
        if not is_traced(rate):
            known = np.asarray(rate)
            if known.dtype.kind not in "iuf" or not np.all((known > 0) & np.isfinite(known)):
                raise ValueError(f"PoissonNoise(rate={rate}): expected positive, and finite.")
        self.rate = rate

    def log_prob(self, y, mean):
        rate = jnp.asarray(self.rate, mean.dtype)
        counts, expected = jnp.round(rate * y), rate * mean
        possible = (expected > 0) | ((expected == 0) & (counts == 0))
        # Elsewhere, an argument at which the gradient is finite.
        log_expected = jnp.log(jnp.where(expected > 0, expected, 1))
        log_prob = counts * log_expected - expected - gammaln(counts + 1)
        return jnp.sum(jnp.where(possible, log_prob, -jnp.inf))

    def sample(self, mean, *, key):
        rate = jnp.asarray(self.rate, mean.dtype)
        expected = jnp.broadcast_to(rate * mean, mean.shape)
        return jax.random.poisson(key, jnp.maximum(expected, 0)).astype(mean.dtype) / rate

    def covariance(self, mean, u):
        rate = jnp.asarray(self.rate, u.dtype)
        return jnp.maximum(mean, 1 / rate) / rate * u

    def check(self, owner, y):
        if jnp.shape(self.rate) not in ((), jnp.shape(y)):
            raise ValueError(
                f"{of(owner)}: rate has shape {jnp.shape(self.rate)}, expected () or that of y, "
                f"{jnp.shape(y)}."
            )
        if is_traced(y, self.rate):
            return
        counts = np.asarray(self.rate, np.float64) * np.asarray(y, np.float64)
        off = np.abs(counts - np.round(counts)) > 1e-3 + _ROUNDING * np.abs(counts)
        bad = (counts < -1e-3) | off
        if np.any(bad):
            raise ValueError(
                f"{of(owner)}: with PoissonNoise y is counts / rate, but rate * y is not a whole "
                f"number of at least 0, such as {counts[bad].flat[0]:g}."
            )

    def check_density(self, owner):
        """Nothing is singular."""
