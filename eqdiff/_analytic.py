r"""Denoisers known in closed form.

For data $x_0 \sim \sum_k w_k \mathcal N(m_k, S_k)$ the noisy marginal is a mixture too, with
covariances $C_k = \alpha^2 S_k + \sigma^2 I$, and with responsibilities
$r_k(x) \propto w_k\,\mathcal N(x; \alpha m_k, C_k)$

$$\hat\varepsilon = \sum_k r_k\,\sigma C_k^{-1}(x - \alpha m_k), \qquad
  \hat x_0 = \sum_k r_k \left(m_k + \alpha S_k C_k^{-1}(x - \alpha m_k)\right). \tag{1}$$

A measurement $y = Ax_0 + n$ with a linear operator and Gaussian noise, $n \sim \mathcal N(0,
\Sigma)$, leaves a mixture: with $P_k = AS_kA^\top + \Sigma$ and $G_k = S_kA^\top P_k^{-1}$,

$$p(y) = \sum_k w_k\,\mathcal N(y; Am_k, P_k), \qquad
  p(x_0|y) = \sum_k \frac{w_k\,\mathcal N(y; Am_k, P_k)}{p(y)}\,
    \mathcal N\left(m_k + G_k(y - Am_k),\ S_k - G_kAS_k\right). \tag{2}$$

Samplers, losses and likelihoods are tested against them, and they stand in for a network while you
build the rest of an experiment.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ._denoiser import AbstractDenoiser, Estimate
from ._gaussian import standard_normal_log_prob
from ._measurement import CorrelatedNoise, GaussianNoise, Measurement
from ._parameterisation import AbstractParameterisation, PredictNoise
from ._process import AbstractProcess
from ._types import Args, Example, Key, Scalar, Time
from ._variance import AbstractVariance, FixedLarge


class _Component(eqx.Module):
    """One Gaussian N(m, V diag(s²) Vᵀ), diagonalised once: every C_k is diagonal in the same basis.

    Stored with a leading axis over k, and used under `vmap`.
    """

    mean: Float[Array, "*K dim"]
    basis: Float[Array, "*K dim dim"]
    variances: Float[Array, "*K dim"]

    def residual(self, alpha: Scalar, sigma: Scalar, x: Float[Array, " dim"]):
        """x − αm in the eigenbasis, and the eigenvalues of C."""
        return self.basis.T @ (x - alpha * self.mean), alpha**2 * self.variances + sigma**2

    def log_prob(self, alpha: Scalar, sigma: Scalar, x: Float[Array, " dim"]) -> Scalar:
        residual, eigenvalues = self.residual(alpha, sigma, x)
        return standard_normal_log_prob(residual / jnp.sqrt(eigenvalues)) - 0.5 * jnp.sum(
            jnp.log(eigenvalues)
        )

    def estimate(self, alpha: Scalar, sigma: Scalar, x: Float[Array, " dim"]):
        residual, eigenvalues = self.residual(alpha, sigma, x)
        whitened = residual / eigenvalues
        x0 = self.mean + self.basis @ (alpha * self.variances * whitened)
        return x0, self.basis @ (sigma * whitened)


class GaussianMixtureDenoiser(AbstractDenoiser):
    r"""The exact denoiser of $x_0 \sim \sum_k w_k\mathcal N(m_k, S_k)$, equation (1), for vectors
    $x$.

    **Example:**

    ```python
    weights, means = jnp.asarray([0.3, 0.7]), jnp.asarray([[-1.0, 0.0], [1.0, 0.0]])
    covariances = 0.01 * jnp.stack([jnp.eye(2), jnp.eye(2)])
    denoiser = eqd.GaussianMixtureDenoiser(eqd.VPSDE(), weights, means, covariances)
    log_p = denoiser.data_log_prob(jnp.asarray([1.0, 0.0]))  # in nats
    ```
    """

    log_weights: Float[Array, " K"]
    components: _Component
    process: AbstractProcess
    parameterisation: AbstractParameterisation
    variance: AbstractVariance

    def __init__(
        self,
        process: AbstractProcess,
        weights: ArrayLike,
        means: ArrayLike,
        covariances: ArrayLike,
        *,
        parameterisation: AbstractParameterisation = PredictNoise(),
        variance: AbstractVariance = FixedLarge(),
    ):
        r"""**Arguments:**

        - `process`: the noise.
        - `weights`: $w_k$, shape `(K,)`, positive; normalised here.
        - `means`: $m_k$, shape `(K, dim)`.
        - `covariances`: $S_k$, shape `(K, dim, dim)`, positive semi-definite.
        - `parameterisation`, `variance`: as for [`eqdiff.Denoiser`][].

        **Raises:** `ValueError` for shapes that do not fit, or a covariance that is not positive
        semi-definite.
        """
        weights, means, covariances = (
            np.asarray(a, np.float64) for a in (weights, means, covariances)
        )
        k, dim = means.shape if means.ndim == 2 else (0, 0)
        if weights.shape != (k,) or covariances.shape != (k, dim, dim) or k == 0:
            raise ValueError(
                f"GaussianMixtureDenoiser: weights {weights.shape}, means {means.shape} and "
                f"covariances {covariances.shape} do not fit; expected (K,), (K, dim) and "
                "(K, dim, dim)."
            )
        variances, basis = np.linalg.eigh(covariances)
        scale = np.maximum(1.0, np.max(np.abs(variances)))
        if np.any(weights <= 0) or np.any(variances < -1e-12 * scale):
            raise ValueError(
                "GaussianMixtureDenoiser: weights must be positive and covariances positive "
                "semi-definite."
            )
        dtype = jnp.result_type(float)
        self.log_weights = jnp.asarray(np.log(weights / weights.sum()), dtype)
        self.components = _Component(
            jnp.asarray(means, dtype),
            jnp.asarray(basis, dtype),
            # Rounding leaves the zeros of a singular covariance slightly negative.
            jnp.asarray(np.maximum(variances, 0), dtype),
        )
        self.process, self.parameterisation, self.variance = process, parameterisation, variance

    def _in_precision_of(self, x: Example) -> _Component:
        return jax.tree.map(lambda leaf: leaf.astype(x.dtype), self.components)

    def _log_joint(self, alpha: Scalar, sigma: Scalar, x: Example) -> Float[Array, " K"]:
        log_probs = jax.vmap(lambda c: c.log_prob(alpha, sigma, x))(self._in_precision_of(x))
        return self.log_weights.astype(x.dtype) + log_probs

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        alpha, sigma = self.process.levels(t, like=x)
        responsibility = jax.nn.softmax(self._log_joint(alpha, sigma, x))
        x0, noise = jax.vmap(lambda c: c.estimate(alpha, sigma, x))(self._in_precision_of(x))
        return Estimate(responsibility @ x0, responsibility @ noise)

    def log_prob(self, t: Time, x: Example) -> Scalar:
        r"""$\log p_t(x)$ of the noisy marginal, in nats."""
        return jax.nn.logsumexp(self._log_joint(*self.process.levels(t, like=x), x))

    def data_log_prob(self, x: Example) -> Scalar:
        r"""$\log p(x_0)$ of the data themselves, in nats."""
        return jax.nn.logsumexp(self._log_joint(jnp.ones_like(x[0]), jnp.zeros_like(x[0]), x))

    def data_sample(self, *, key: Key) -> Example:
        r"""One draw $x_0$ from the data."""
        which, normal = jax.random.split(key)
        k = jax.random.categorical(which, self.log_weights)
        c = jax.tree.map(lambda leaf: leaf[k], self.components)
        z = jax.random.normal(normal, c.mean.shape, c.mean.dtype)
        return c.mean + c.basis @ (jnp.sqrt(c.variances) * z)

    def log_evidence(self, measurement: Measurement) -> Scalar:
        r"""$\log p(y)$ in nats, equation (2).

        **Arguments:**

        - `measurement`: $y$, with a linear operator and Gaussian noise.

        **Raises:** `ValueError` for another operator, other noise, or a $y$ that has no density.
        """
        log_weights, _, _ = self._conjugate(measurement)
        return jnp.asarray(np.logaddexp.reduce(log_weights), jnp.result_type(float))

    def posterior(self, measurement: Measurement) -> "GaussianMixtureDenoiser":
        r"""The exact denoiser of the data given a measurement, equation (2).

        **Arguments:**

        - `measurement`: as for `log_evidence`.

        **Returns:** a denoiser of the same process.

        **Raises:** as for `log_evidence`.
        """
        log_weights, means, covariances = self._conjugate(measurement)
        # A component that the measurement rules out keeps a weight above 0.
        weights = np.maximum(np.exp(log_weights - np.max(log_weights)), 1e-300)
        return GaussianMixtureDenoiser(
            self.process,
            weights,
            means,
            covariances,
            parameterisation=self.parameterisation,
            variance=self.variance,
        )

    def _conjugate(self, measurement: Measurement) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The log-weights, which add up to p(y), means and covariances of equation (2)."""
        parts = self.log_weights, self.components.mean, self.components.basis
        log_weights, means, basis = (np.asarray(a, np.float64) for a in parts)
        variances = np.asarray(self.components.variances, np.float64)
        priors = np.einsum("kij,kj,klj->kil", basis, variances, basis)
        residual, matrix, noise = _linear_gaussian(measurement, means.shape[1])
        found = []
        for log_weight, mean, prior in zip(log_weights, means, priors, strict=True):
            spread = matrix @ prior @ matrix.T + noise
            if np.linalg.matrix_rank(spread, hermitian=True) < len(spread):
                raise ValueError(
                    "GaussianMixtureDenoiser: y has no density: AS Aᵀ + Σ is singular. Give the "
                    "noise a positive standard deviation."
                )
            gain = np.linalg.solve(spread, matrix @ prior).T
            error = residual - matrix @ mean
            quadratic = error @ np.linalg.solve(spread, error) + len(error) * np.log(2 * np.pi)
            log_weight = log_weight - 0.5 * (quadratic + np.linalg.slogdet(spread)[1])
            # Joseph's form, which stays positive semi-definite.
            left = np.eye(len(mean)) - gain @ matrix
            covariance = left @ prior @ left.T + gain @ noise @ gain.T
            found.append((log_weight, mean + gain @ error, 0.5 * (covariance + covariance.T)))
        log_weights, means, covariances = (np.stack(a) for a in zip(*found, strict=True))
        return log_weights, means, covariances


def _linear_gaussian(
    measurement: Measurement, dim: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y − A(0), A and Σ as matrices, of what is linear and Gaussian."""
    owner = "GaussianMixtureDenoiser"
    origin = jnp.zeros(dim)
    measurement.check(owner, origin)
    if not isinstance(measurement.noise, GaussianNoise | CorrelatedNoise):
        raise ValueError(
            f"{owner}: with {type(measurement.noise).__name__} the evidence and the posterior have "
            "no closed form; expected Gaussian noise."
        )
    local, size = measurement.linearised(origin), measurement.y.size
    units = jnp.eye(size, dtype=local.residual.dtype).reshape(size, *measurement.y.shape)
    matrix = jax.vmap(local.forward)(jnp.eye(dim)).reshape(dim, size).T
    noise = jax.vmap(local.noise)(units).reshape(size, size)
    residual, matrix, noise = (np.asarray(a, np.float64) for a in (local.residual, matrix, noise))
    probe = np.random.default_rng(0).standard_normal(dim)
    moved = np.asarray(measurement.linearised(jnp.asarray(probe, origin.dtype)).residual)
    error = residual - moved - (matrix @ probe).reshape(moved.shape)
    if not np.linalg.norm(error) <= 1e-3 * (1 + np.linalg.norm(matrix @ probe)):
        raise ValueError(
            f"{owner}: the operator is not linear, so that the evidence and the posterior have no "
            "closed form."
        )
    return residual.reshape(-1), matrix, noise


class GaussianDenoiser(AbstractDenoiser):
    r"""The exact denoiser of data $x_0 \sim \mathcal N(m, s^2)$ with independent elements, for $x$
    of any shape.

    $$\hat\varepsilon = \frac{\sigma (x - \alpha m)}{\alpha^2 s^2 + \sigma^2}, \qquad
      \hat x_0 = m + \frac{\alpha s^2 (x - \alpha m)}{\alpha^2 s^2 + \sigma^2}.$$

    For a full covariance use a [`eqdiff.GaussianMixtureDenoiser`][] of one component.

    **Example:**

    ```python
    estimate = eqd.GaussianDenoiser(eqd.VPSDE(), 0.0, 0.5)(0.3, jnp.ones(3))
    ```
    """

    mean: Float[Array, "..."]
    std: Float[Array, "..."]
    process: AbstractProcess
    parameterisation: AbstractParameterisation
    variance: AbstractVariance

    def __init__(
        self,
        process: AbstractProcess,
        mean: ArrayLike = 0.0,
        std: ArrayLike = 1.0,
        *,
        parameterisation: AbstractParameterisation = PredictNoise(),
        variance: AbstractVariance = FixedLarge(),
    ):
        r"""**Arguments:**

        - `process`: the noise.
        - `mean`, `std`: $m$ and $s \ge 0$, each a number or an array shaped like $x$.
        - `parameterisation`, `variance`: as for [`eqdiff.Denoiser`][].
        """
        dtype = jnp.result_type(float)
        self.mean, self.std = jnp.asarray(mean, dtype), jnp.asarray(std, dtype)
        self.process, self.parameterisation, self.variance = process, parameterisation, variance

    def _moments(self, t: Time, x: Example):
        alpha, sigma = self.process.levels(t, like=x)
        variance = self.std.astype(x.dtype) ** 2
        residual = x - alpha * self.mean.astype(x.dtype)
        return alpha, sigma, variance, residual, alpha**2 * variance + sigma**2

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        alpha, sigma, variance, residual, total = self._moments(t, x)
        x0 = self.mean.astype(x.dtype) + alpha * variance / total * residual
        return Estimate(x0, sigma / total * residual)

    def log_prob(self, t: Time, x: Example) -> Scalar:
        r"""$\log p_t(x)$ of the noisy marginal, in nats."""
        _, _, _, residual, total = self._moments(t, x)
        total = jnp.broadcast_to(total, x.shape)
        log_prob = standard_normal_log_prob(residual / jnp.sqrt(total))
        return log_prob - 0.5 * jnp.sum(jnp.log(total))
