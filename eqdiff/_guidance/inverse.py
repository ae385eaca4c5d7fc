r"""Linear inverse problems: samples of $p(x_0|y)$ for a measurement $y = Ax_0 + n$,
$n \sim \mathcal N(0, \sigma_y^2 I)$.

The data's score given $y$ is $\nabla\log p_t(x) + \nabla_x\log p_t(y|x)$, where
$p_t(y|x_t) = \int p(y|x_0)\,p(x_0|x_t)\,\mathrm dx_0$. With $p(x_0|x_t)$ replaced by a Gaussian of
its own mean $\hat x_0$ and some covariance $V$, taken to vary slowly with $x_t$,

$$p_t(y|x_t) \approx \mathcal N\!\left(y;\ A\hat x_0,\ \sigma_y^2 I + AVA^\top\right), \tag{1}$$

and the score, written as a move of $\hat x_0$ by
$\delta = \frac{\sigma^2}\alpha\nabla_x\log p_t(y|x_t)$, becomes

$$\delta = \tfrac{\sigma^2}\alpha J^\top A^\top\left(\sigma_y^2 I
  + AVA^\top\right)^{-1}(y - A\hat x_0), \qquad
  J = \frac{\partial\hat x_0}{\partial x_t}. \tag{2}$$

Three published methods are three covariances:

| | $V$ | |
|---|---|---|
| DPS (Chung et al.) | 0 | [`eqdiff.ZeroCovariance`][] |
| ΠGDM (Song et al.) | $s^2\sigma^2 I/(\alpha^2s^2+\sigma^2)$ | [`eqdiff.IsotropicCovariance`][] |
| MMPS (Rozet et al.) | $\frac{\sigma^2}\alpha J$ | [`eqdiff.JacobianCovariance`][] |

The last is the true $\mathrm{Cov}[x_0|x_t]$, by Tweedie's second-order formula, so that (2) is
$\delta = VA^\top(\sigma_y^2 I + AVA^\top)^{-1}(y - A\hat x_0)$, which gives the posterior mean of a
Gaussian: exact if $p(x_0)$ is one.
"""

import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._check import check_example, check_positive, is_traced, whole
from .._denoiser import AbstractDenoiser, AbstractWrapper, Estimate
from .._types import Args, Example, Key, Scalar, Time
from .base import refuse_no_signal
from .linear import check_linear, LinearOperator, output_shape, transpose_of


# v ↦ (σ²/α) Jᵀ v: Tweedie's covariance as a product with vectors.
_Product = Callable[[Example], Example]


class AbstractPosteriorCovariance(eqx.Module):
    r"""The covariance $V$ of $p(x_0|x_t)$ in equation (1)."""

    iterations: eqx.AbstractVar[int]

    @abc.abstractmethod
    def product(self, v: Example, tweedie: _Product, alpha: Scalar, sigma: Scalar) -> Example:
        r"""$Vv$.

        **Arguments:**

        - `v`: shaped like $x$.
        - `tweedie`: $v \mapsto \frac{\sigma^2}\alpha J^\top v$, for one pass back through the
            network.
        - `alpha`, `sigma`: $\alpha_t$ and $\sigma_t$.
        """


class JacobianCovariance(AbstractPosteriorCovariance):
    r"""$V = \frac{\sigma^2}\alpha J^\top$, the covariance of $p(x_0|x_t)$ by Tweedie's formula:
    moment matching posterior sampling (MMPS).

    Each iteration of conjugate gradients costs one pass back through the network. For a trained
    network $V$ is not quite symmetric, nor positive where α is near 0 (the first steps of a sampler
    that ends without signal): iterations stop where it is not.

    ??? cite "Reference"

        Rozet, Andry, Lanusse & Louppe, *Learning Diffusion Priors from Observations by Expectation
        Maximization*, NeurIPS 2024, section 4.2.
    """

    iterations: int = eqx.field(static=True)

    def __init__(self, iterations: int = 5):
        """**Arguments:**

        - `iterations`: at most this many of conjugate gradients; as many as $y$ has elements are
            exact, few are good.

        **Raises:** `ValueError` for less than one.
        """
        self.iterations = whole(self, "iterations", iterations)

    def product(self, v, tweedie, alpha, sigma):
        return tweedie(v)


class IsotropicCovariance(AbstractPosteriorCovariance):
    r"""$V = \frac{s^2\sigma^2}{\alpha^2 s^2 + \sigma^2} I$, that of independent Gaussian data of
    standard deviation $s$: ΠGDM.

    Its iterations need no network: a call costs one pass back, at the end.

    ??? cite "Reference"

        Song, Vahdat, Mardani & Kautz, *Pseudoinverse-Guided Diffusion Models for Inverse Problems*,
        ICLR 2023.
    """

    std: float | Array
    iterations: int = eqx.field(static=True)

    def __init__(self, std: float | Array = 1.0, iterations: int = 30):
        r"""**Arguments:**

        - `std`: $s$, the standard deviation of the data.
        - `iterations`: at most this many of conjugate gradients, for operators whose $AA^\top$ is
            not a multiple of the identity.

        **Raises:** `ValueError` for a standard deviation that is not positive, or less than one
        iteration.
        """
        check_positive(self, std=std)
        self.std, self.iterations = std, whole(self, "iterations", iterations)

    def product(self, v, tweedie, alpha, sigma):
        variance = jnp.asarray(self.std, v.dtype) ** 2
        return variance * sigma**2 / (alpha**2 * variance + sigma**2) * v


class ZeroCovariance(AbstractPosteriorCovariance):
    r"""$V = 0$: diffusion posterior sampling (DPS), which takes $\hat x_0$ at every $t$ for the
    truth.

    So the pull towards $y$ is far too strong at high noise, and solvers must take small steps or
    fail, unless $\sigma_y$ is made larger than it is: the paper's step size ζ is such a factor,
    $\zeta \sim 1/(2\sigma_y^2)$. The other covariances need no tuning.

    ??? cite "Reference"

        Chung, Kim, Mccann, Klasky & Ye, *Diffusion Posterior Sampling for General Noisy Inverse
        Problems*, ICLR 2023.
    """

    iterations: ClassVar[int] = 0

    def product(self, v, tweedie, alpha, sigma):
        return jnp.zeros_like(v)


class PosteriorGuidance(AbstractWrapper):
    r"""The denoiser of data that were measured as $y = Ax_0 + \sigma_y n$: equation (2).

    ```python
    # A 32×32 image seen in 16×16 pixels.
    shrink = lambda x: x.reshape(3, 16, 2, 16, 2).mean((2, 4))
    guided = eqd.PosteriorGuidance(denoiser, y, shrink, std=0.05)
    x0 = eqd.DDIM(100)(guided, x1)
    ```

    A denoiser like any other: all samplers take it. For a batch of measurements build it inside
    `jax.vmap`. Clip outside, `Clip(PosteriorGuidance(...))`: a clipped pixel has no derivative, so
    measurements could not move it.
    """

    denoiser: AbstractDenoiser
    y: Float[Array, "..."]
    operator: LinearOperator
    std: Float[Array, "..."]
    covariance: AbstractPosteriorCovariance

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        y: ArrayLike,
        operator: LinearOperator,
        std: ArrayLike,
        *,
        covariance: AbstractPosteriorCovariance = JacobianCovariance(),
    ):
        r"""**Arguments:**

        - `denoiser`: the denoiser of the data without the measurement.
        - `y`: what was measured.
        - `operator`: $x \mapsto Ax$, linear, from one example to what is shaped like `y`. Make it
            an `eqx.Module` if it holds arrays that are traced.
        - `std`: $\sigma_y$, a number or an array shaped like `y`; 0 for a measurement without
            noise.
        - `covariance`: which approximation of $p(x_0|x_t)$.

        **Raises:** `ValueError` for a measurement of whole numbers or not finite, a standard
        deviation that is negative or of another
            shape, none at all with [`eqdiff.ZeroCovariance`][], and a process that ends without
            signal (α = 0); when called, for an operator that is not linear or does not return the
            shape of `y`.
        """
        # Checked as they were given: inside jit, asarray makes tracers of known numbers.
        _check_known(y, std, positive=isinstance(covariance, ZeroCovariance))
        y, std = jnp.asarray(y), jnp.asarray(std)
        check_example("PosteriorGuidance", y)
        if std.shape not in ((), y.shape):
            raise ValueError(
                f"PosteriorGuidance: std has shape {std.shape}, expected () or that of y, "
                f"{y.shape}."
            )
        refuse_no_signal(
            "PosteriorGuidance", denoiser, "x says nothing of x0 and equation (2) is 0/0"
        )
        self.denoiser, self.y, self.operator = denoiser, y, operator
        self.std, self.covariance = std.astype(y.dtype), covariance

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        self._check(x)
        y, variance = self.y.astype(x.dtype), self.std.astype(x.dtype) ** 2
        alpha, sigma = self.process.levels(t, like=x)

        def estimate_of(x):
            estimate = self.denoiser(t, x, args, key=key)
            return estimate.x0, estimate

        x0, pullback, estimate = jax.vjp(estimate_of, x, has_aux=True)
        transpose = transpose_of(self.operator, x0)

        def tweedie(v):
            return sigma**2 / alpha * pullback(v)[0]

        def system(u):
            product = self.covariance.product(transpose(u), tweedie, alpha, sigma)
            return variance * u + self.operator(product)

        residual = y - self.operator(x0)
        if self.covariance.iterations == 0:
            weighed = residual / variance
        else:
            weighed = _conjugate_gradients(system, residual, self.covariance.iterations)
        return estimate.move(tweedie(transpose(weighed)), alpha, sigma)

    def _check(self, x: Example) -> None:
        check_example("PosteriorGuidance", x)
        shape = output_shape("PosteriorGuidance", self.operator, x)
        if shape != self.y.shape:
            raise ValueError(
                f"PosteriorGuidance: for x of shape {x.shape} the operator returns shape {shape}, "
                f"but y has {self.y.shape}; they must agree. For a batch build PosteriorGuidance "
                "inside jax.vmap."
            )
        check_linear("PosteriorGuidance", self.operator, x)


def _conjugate_gradients(system: Callable, b: Example, iterations: int) -> Example:
    """Solves `system(u) = b`, symmetric and positive semi-definite, from 0.

    A scan rather than a loop, so that it can be differentiated both ways (a likelihood's trace
    does).
    """
    first = jnp.sum(b**2)
    # Below, the residual is rounding, and its direction arbitrary.
    enough = jnp.finfo(b.dtype).eps ** 2 * first

    def step(state, _):
        u, residual, direction, square = state
        image = system(direction)
        curvature = jnp.sum(direction * image)
        # A direction of negative curvature is a defect of the network: what was found until there
        # is kept.
        go = (square > enough) & (curvature > 0)
        size = jnp.where(go, square / jnp.where(go, curvature, 1), 0)
        u, residual = u + size * direction, residual - size * image
        next_square = jnp.sum(residual**2)
        turn = jnp.where(go, next_square / jnp.where(go, square, 1), 0)
        # Once stopped, always stopped: a direction of 0 has no curvature.
        direction = jnp.where(go, residual + turn * direction, 0)
        return (u, residual, direction, next_square), None

    (u, *_), _ = jax.lax.scan(step, (jnp.zeros_like(b), b, b, first), length=iterations)
    return u


def _check_known(y: ArrayLike, std: ArrayLike, *, positive: bool) -> None:
    if not is_traced(y) and not np.all(np.isfinite(np.asarray(y))):
        raise ValueError(
            "PosteriorGuidance: y is not finite. Leave out what was not measured: A maps to the "
            "rest."
        )
    if is_traced(std):
        return
    known = np.asarray(std)
    if not np.all((known > 0 if positive else known >= 0) & np.isfinite(known)):
        kind = "positive with ZeroCovariance()" if positive else "at least 0"
        raise ValueError(f"PosteriorGuidance(std={std}): expected {kind}, and finite.")
