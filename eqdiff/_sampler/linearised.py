r"""Gaussian conditioning on a linearised measurement.

With $x_0 \sim \mathcal N(\hat x_0, V)$ and $y - A(\hat x_0) = H(x_0 - \hat x_0) + n$,
$n \sim \mathcal N(0, \Sigma)$, the posterior mean is

$$\hat x_0 + VH^\top u, \qquad (\Sigma + HVH^\top)\,u = y - A(\hat x_0). \tag{1}$$

The system is solved by conjugate gradients, by products with $H$ and $H^\top$ alone.
"""

import jax

from .._guidance import weighed_residual
from .._measurement import Measurement
from .._types import Example, Scalar


def gauss_newton(
    measurement: Measurement, x0: Example, variance: Scalar, linearisations: int, iterations: int
) -> Example:
    r"""The minimum over $x$ of $-\log p(y|x) + \|x - \hat x_0\|^2/2v$: equation (1) with $V = vI$.

    A nonlinear operator is linearised again at each new estimate.
    """

    def improve(x, _):
        here = measurement.linearised(x)
        here = here._replace(residual=here.residual + here.forward(x - x0))
        u = weighed_residual(here, lambda v: variance * v, iterations)
        return x0 + variance * here.transpose(u), None

    return jax.lax.scan(improve, x0, length=linearisations)[0]
