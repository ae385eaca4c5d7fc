r"""The covariance $V$ of $p(x_0|x_t)$ for guidance by a measurement, and how far to trust it.

By Tweedie's second-order formula $V = \frac{\sigma^2}\alpha J$ with $J = \partial\hat x_0/\partial
x_t$, which is symmetric and positive semi-definite. A trained network's is neither. Where noise is
high its Jacobian hardly depends on the data: with $\hat x_0 = (x - \sigma\hat\varepsilon)/\alpha$,

$$V = \frac{\sigma^2}{\alpha^2}\Bigl(I - \sigma\frac{\partial\hat\varepsilon}{\partial x_t}\Bigr),
\tag{1}$$

so an error of 1 % in the bracket is one of 230 in $V$ at the end of VP, where 1 is right. Guidance
that solves a system with it moves $\hat x_0$ anywhere, and samples diverge.

**The error shows itself**: of $V + E$ with $V$ symmetric, $E - E^\top$ is seen, at the cost of one
product $Jv$ in addition to $J^\top v$, and without knowing the scale of the data,

$$\tau = \frac{\sigma^2}\alpha\frac{|(J - J^\top)v|}{|v|}, \qquad v = H^\top r, \tag{2}$$

and so does a negative direction: the Gram matrix $G_{ij} = v_i^\top V v_j/(|v_i||v_j|)$ of a
positive $V$ has $\lVert G\rVert \le \mathrm{tr}\,G$, and what is missing, $\nu$, adds to τ.

**A system known up to an error** $E$ is best solved on average over it. With independent elements
of the size that (2) shows, $\mathbb E|HEH^\top u|^2$ is a multiple of $|u|^2$, and

$$\min_u\ \mathbb E\bigl|(S + HEH^\top)u - r\bigr|^2
  = \min_u\ |Su - r|^2 + \sum_j e_j^2z_j^2, \qquad
  e_j = \sqrt{\min\bigl(\tfrac mn, 1\bigr)\tau^2 + \nu^2}\;|v_j|^2 \tag{3}$$

for $u = \sum_j z_jq_j$ and $v_j = H^\top q_j$: $n$ and $m$ are the sizes of $x$ and $y$. A ridge
regression whose strength is measured rather than chosen. It bounds $u$ by $|r|/2e$, whatever the
network; its bias is of second order, $(e/S)^2$; and for an exact denoiser it vanishes.
"""

import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._check import check_positive, whole
from .._measurement import Measurement
from .._types import Example, Scalar
from .system import Krylov, krylov, ridge, safe_divide, safe_norm, weighed_residual


class Tweedie(NamedTuple):
    """Tweedie's covariance as products with vectors, for one pass through the network each."""

    forward: Callable[[Example], Example]
    r"""$v \mapsto \frac{\sigma^2}\alpha Jv$."""
    back: Callable[[Example], Example]
    r"""$v \mapsto \frac{\sigma^2}\alpha J^\top v$."""


class AbstractPosteriorCovariance(eqx.Module):
    r"""An approximation of the covariance $V$ of $p(x_0|x_t)$."""

    @abc.abstractmethod
    def check(self, measurement: Measurement) -> None:
        """Raises `ValueError` for a measurement that it cannot use."""

    @abc.abstractmethod
    def delta(
        self,
        measurement: Measurement,
        x0: Example,
        tweedie: Tweedie,
        alpha: Scalar,
        sigma: Scalar,
    ) -> Example:
        r"""The move of $\hat x_0$ towards the measurement.

        **Arguments:**

        - `measurement`: what was measured.
        - `x0`: $\hat x_0$, without the measurement.
        - `tweedie`: products with the network's Jacobian.
        - `alpha`, `sigma`: $\alpha_t$ and $\sigma_t$.
        """


class JacobianCovariance(AbstractPosteriorCovariance):
    r"""$V = \frac{\sigma^2}\alpha J^\top$, the covariance of $p(x_0|x_t)$ by Tweedie's formula:
    moment matching posterior sampling (MMPS).

    Exact for exact denoisers of Gaussian data. A trained network's $V$ is trusted as far as it is
    symmetric and positive, equation (3), which needs no tuning and no scale of the data.

    Each iteration costs one pass back through the network, and a call one pass forward more. A
    network whose Jacobian is symmetric by construction, the gradient of an energy, shows its errors
    by negative directions alone.

    **Example:**

    ```python
    measurement = eqd.Measurement(jnp.ones(2), lambda x: x[:2], 0.1)
    denoiser, covariance = eqd.GaussianDenoiser(eqd.VPSDE()), eqd.JacobianCovariance()
    guided = eqd.PosteriorGuidance(denoiser, measurement, covariance=covariance)
    ```

    ??? cite "Reference"

        Rozet, Andry, Lanusse & Louppe, *Learning Diffusion Priors from Observations by Expectation
        Maximization*, NeurIPS 2024, section 4.2. The treatment of errors is eqdiff's.
    """

    iterations: int = eqx.field(static=True)

    def __init__(self, iterations: int = 5):
        """**Arguments:**

        - `iterations`: at most this many of Arnoldi's; as many as $y$ has elements are exact, few
            are good.

        **Raises:** `ValueError` for less than one.
        """
        self.iterations = whole(self, "iterations", iterations)

    def check(self, measurement):
        """Any will do."""

    def delta(self, measurement, x0, tweedie, alpha, sigma):
        near = measurement.linearised(x0)
        known = krylov(near, tweedie.back, self.iterations, x0)
        weights = ridge(known.images, _error(known, tweedie, x0), near.residual.reshape(-1))
        return (weights @ known.moves).reshape(x0.shape)


def _error(known: Krylov, tweedie: Tweedie, x0: Example) -> Array:
    r"""$e_j$ of equation (3)."""
    square = jnp.sum(known.seen**2, axis=1)
    first = known.seen[0].reshape(x0.shape)
    asymmetry = jnp.sum((tweedie.forward(first).reshape(-1) - known.moves[0]) ** 2)
    tau_square = safe_divide(asymmetry, square[0])
    safe = jnp.where(square > 0, square, 1)
    size = jnp.where(square > 0, jnp.sqrt(safe), 0)
    gram = safe_divide(known.seen @ known.moves.T, size[:, None] * size[None])
    missing = jnp.maximum(safe_norm(gram) - jnp.trace(gram), 0)
    share = min(known.images.shape[1] / known.seen.shape[1], 1.0)
    variance = share * tau_square + missing**2
    return square * jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)


class IsotropicCovariance(AbstractPosteriorCovariance):
    r"""$V = \frac{s^2\sigma^2}{\alpha^2 s^2 + \sigma^2} I$, that of independent Gaussian data of
    standard deviation $s$: ΠGDM.

    Its iterations need no network: a call costs one pass back, and one forward. The published move
    is $\frac{\sigma^2}\alpha J^\top v$ with $v = H^\top S^{-1}r$; where the Jacobian shows an error
    larger than $Vv$, the move is $Vv$, and between the two a mean of both weighted by their
    variances.

    **Example:**

    ```python
    measurement = eqd.Measurement(jnp.ones(2), lambda x: x[:2], 0.1)
    denoiser, covariance = eqd.GaussianDenoiser(eqd.VPSDE()), eqd.IsotropicCovariance()
    guided = eqd.PosteriorGuidance(denoiser, measurement, covariance=covariance)
    ```

    ??? cite "Reference"

        Song, Vahdat, Mardani & Kautz, *Pseudoinverse-Guided Diffusion Models for Inverse Problems*,
        ICLR 2023. The treatment of errors is eqdiff's.
    """

    std: float | Array
    iterations: int = eqx.field(static=True)

    def __init__(self, std: float | Array = 1.0, iterations: int = 30):
        r"""**Arguments:**

        - `std`: $s$, the standard deviation of the data.
        - `iterations`: at most this many of conjugate gradients, for operators whose $HH^\top$ is
            not a multiple of the identity.

        **Raises:** `ValueError` for a standard deviation that is not positive, or less than one
        iteration.
        """
        check_positive(self, std=std)
        self.std, self.iterations = std, whole(self, "iterations", iterations)

    def check(self, measurement):
        """Any will do."""

    def delta(self, measurement, x0, tweedie, alpha, sigma):
        near = measurement.linearised(x0)
        square = jnp.asarray(self.std, x0.dtype) ** 2
        variance = square * sigma**2 / (alpha**2 * square + sigma**2)
        u = weighed_residual(near, lambda v: variance * v, self.iterations)
        v = near.transpose(u)
        move, own = tweedie.back(v), variance * v
        along = jnp.sum(v * move)
        negative = safe_divide(jnp.minimum(along, 0), safe_norm(v))
        error = jnp.sum((tweedie.forward(v) - move) ** 2) + negative**2
        trust = safe_divide(jnp.sum(own**2), jnp.sum(own**2) + error)
        return own + trust * (move - own)


class ZeroCovariance(AbstractPosteriorCovariance):
    r"""$V = 0$: diffusion posterior sampling (DPS), which takes $\hat x_0$ for the truth at every
    $t$, $\delta = \frac{\sigma^2}\alpha\nabla_x\log p(y|\hat x_0(x))$.

    So the pull towards $y$ is far too strong at high noise, and solvers must take small steps or
    fail, unless you overstate the noise of the measurement: the paper's step size ζ does that,
    $\zeta \sim 1/(2\sigma_y^2)$. The other covariances need no tuning.

    **Example:**

    ```python
    measurement = eqd.Measurement(jnp.ones(2), lambda x: x[:2], 0.1)
    denoiser, covariance = eqd.GaussianDenoiser(eqd.VPSDE()), eqd.ZeroCovariance()
    guided = eqd.PosteriorGuidance(denoiser, measurement, covariance=covariance)
    ```

    ??? cite "Reference"

        Chung, Kim, Mccann, Klasky & Ye, *Diffusion Posterior Sampling for General Noisy Inverse
        Problems*, ICLR 2023.
    """

    def check(self, measurement):
        """The noise must have a density."""
        measurement.noise.check_density("PosteriorGuidance with ZeroCovariance()")

    def delta(self, measurement, x0, tweedie, alpha, sigma):
        return tweedie.back(jax.grad(measurement.log_prob)(x0))
