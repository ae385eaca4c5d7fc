r"""Measurements $y$ of an unknown $x_0$: a mean $A(x_0)$ and noise about it.

$$p(y|x_0) = p_\text{noise}(y\,|\,A(x_0)). \tag{1}$$

$A$ is a JAX function, linear or not. Some methods need the density (1), and some its linearisation
at an estimate $\hat x_0$, with the Jacobian $H = \partial A/\partial x_0$ and the covariance
$\Sigma$ of the noise there,

$$y - A(\hat x_0) \approx H(x_0 - \hat x_0) + n, \qquad n \sim \mathcal N(0, \Sigma), \tag{2}$$

which is exact for a linear operator and Gaussian noise. $H$ and $H^\top$ are products with vectors,
by automatic differentiation: no matrix is built.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._check import check_example, is_traced, of
from .._types import Example, Key, Scalar
from .noise import AbstractMeasurementNoise, GaussianNoise


# x ↦ A(x), from one example to what is measured of it.
Operator = Callable[[Example], Example]


class Linearised(NamedTuple):
    r"""Equation (2) at one $\hat x_0$: what [`eqdiff.Measurement.linearised`][] returns.

    **Example:**

    ```python
    measurement = eqd.Measurement(jnp.ones(2), lambda x: x[:2] ** 2, 0.05)
    near = measurement.linearised(jnp.ones(4))  # an eqd.Linearised
    ```
    """

    residual: Example
    r"""$y - A(\hat x_0)$."""
    forward: Operator
    r"""$v \mapsto Hv$, from arrays shaped like $x_0$ to arrays shaped like $y$."""
    transpose: Operator
    r"""$u \mapsto H^\top u$."""
    noise: Operator
    r"""$u \mapsto \Sigma u$."""


class Measurement(eqx.Module):
    r"""What was measured of $x_0$, how, and with which noise.

    For a batch of measurements build it inside `jax.vmap`.

    **Example:**

    ```python
    seen = lambda x: x[:2]  # two of four elements
    measurement = eqd.Measurement(jnp.ones(2), seen, 0.05)
    log_p = measurement.log_prob(jnp.zeros(4))
    ```
    """

    y: Float[Array, "..."]
    operator: Operator
    noise: AbstractMeasurementNoise

    def __init__(
        self,
        y: ArrayLike,
        operator: Operator,
        noise: AbstractMeasurementNoise | ArrayLike,
    ):
        r"""**Arguments:**

        - `y`: what was measured, floating-point numbers of any shape.
        - `operator`: $x_0 \mapsto A(x_0)$, any JAX function from one example to an array shaped
            like `y`. Make it an `eqx.Module` if it holds arrays that are traced.
        - `noise`: a number or an array shaped like `y` is the standard deviation of
            [`eqdiff.GaussianNoise`][]; otherwise pass [`eqdiff.CorrelatedNoise`][],
            [`eqdiff.PoissonNoise`][] or your own.

        **Raises:** `ValueError` for a measurement that is integer or not finite, and for noise that
        does not fit it.
        """
        if not callable(operator):
            raise ValueError(
                f"Measurement: operator is a {type(operator).__name__}, expected a function of one "
                "example. For a matrix A write lambda x: A @ x."
            )
        if not jnp.issubdtype(jnp.result_type(y), jnp.floating):
            raise ValueError(
                f"Measurement: y is {jnp.result_type(y)}, expected floating-point numbers in the "
                "unit of operator(x). For counts write counts / rate, and PoissonNoise(rate)."
            )
        # Checked as it was given: inside jit, asarray makes tracers of known numbers.
        if not is_traced(y) and not np.all(np.isfinite(np.asarray(y))):
            raise ValueError(
                "Measurement: y is not finite. Leave out what was not measured: the operator maps "
                "to the rest."
            )
        if not isinstance(noise, AbstractMeasurementNoise):
            if callable(noise) or not _is_number(noise):
                raise ValueError(
                    f"Measurement: noise is a {type(noise).__name__}, expected a standard "
                    "deviation or noise such as eqdiff.CorrelatedNoise(factor)."
                )
            noise = GaussianNoise(noise)
        noise.check("Measurement", y)
        self.y, self.operator, self.noise = jnp.asarray(y), operator, noise

    def log_prob(self, x0: Example) -> Scalar:
        r"""$\log p(y|x_0)$ in nats, with its constant.

        **Arguments:**

        - `x0`: one example.

        **Returns:** a scalar.

        **Raises:** `ValueError` where the noise has no density (a standard deviation of 0), or for
        an operator that does not return the shape of `y`.
        """
        self.check("Measurement.log_prob", x0)
        self.noise.check_density("Measurement.log_prob")
        mean = self.operator(x0)
        return self.noise.log_prob(self.y.astype(mean.dtype), mean)

    def linearised(self, x0: Example) -> Linearised:
        r"""Equation (2) at `x0`.

        Nothing is checked here: see [`eqdiff.Measurement.check`][].
        """
        mean, forward = jax.linearize(self.operator, x0)
        back = jax.linear_transpose(forward, x0)
        return Linearised(
            self.y.astype(mean.dtype) - mean,
            forward,
            lambda u: back(u)[0],
            lambda u: self.noise.covariance(mean, u),
        )

    def sample(self, x0: Example, *, key: Key) -> Example:
        r"""One draw of $y$ given $x_0$: a simulated measurement.

        **Arguments:**

        - `x0`: one example.
        - `key`: randomness.

        **Returns:** an array shaped like `y`.
        """
        self.check("Measurement.sample", x0)
        return self.noise.sample(self.operator(x0), key=key)

    def check(self, owner: str, x: Example) -> None:
        """Raises `ValueError`, in the name of `owner`, for an example that is not floating-point,
        an operator that does not map it to the shape of `y`, and noise that does not fit `y`.

        Traces the operator, and computes nothing.
        """
        name = of(owner)
        check_example(name, x)
        out = jax.eval_shape(self.operator, jax.ShapeDtypeStruct(jnp.shape(x), x.dtype))
        if not (isinstance(out, jax.ShapeDtypeStruct) and jnp.issubdtype(out.dtype, jnp.floating)):
            raise ValueError(
                f"{name}: for x of shape {x.shape} the operator returned {out}, expected one "
                "floating-point array, A(x)."
            )
        if out.shape != self.y.shape:
            raise ValueError(
                f"{name}: for x of shape {x.shape} the operator returns shape {out.shape}, but y "
                f"has {self.y.shape}; they must agree. For a batch build Measurement inside "
                "jax.vmap."
            )
        self.noise.check(name, self.y)


def require_measurement(owner: object, measurement: object) -> None:
    """Raises `ValueError`, in the name of `owner`, for anything but a measurement."""
    if not isinstance(measurement, Measurement):
        raise ValueError(
            f"{of(owner)}: expected a Measurement, got {type(measurement).__name__}. Write "
            "eqdiff.Measurement(y, operator, std)."
        )


def _is_number(value: ArrayLike) -> bool:
    try:
        return np.dtype(jnp.result_type(value)).kind in "iuf"
    except (TypeError, ValueError):
        return False
