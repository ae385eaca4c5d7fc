r"""Draws of data given a measurement and a Gaussian guess, without the network:

$$x_0 \sim q(x_0) \propto p(y|x_0)\,\mathcal N(x_0;\ m, r^2 I). \tag{1}$$
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp

from .._check import check_positive, whole
from .._guidance import weighed_residual
from .._measurement import Measurement
from .._types import Example, Key, Scalar
from .linearised import gauss_newton


class AbstractDataDraw(eqx.Module):
    """`draw(measurement, mean, std, *, key) -> x0`: equation (1)."""

    @abc.abstractmethod
    def __call__(
        self, measurement: Measurement, mean: Example, std: Scalar, *, key: Key
    ) -> Example:
        r"""One draw of $x_0$.

        **Arguments:**

        - `measurement`: gives $p(y|x_0)$.
        - `mean`, `std`: $m$ and $r$.
        - `key`: for the draw.
        """


class LinearisedDraw(AbstractDataDraw):
    r"""A draw $\tilde x \sim \mathcal N(m, r^2I)$ and its own simulated measurement $\tilde y$,
    corrected by what was measured,

    $$x_0 = \tilde x + r^2H^\top(\Sigma + r^2HH^\top)^{-1}(y - \tilde y). \tag{2}$$

    Exact for a linear operator and Gaussian noise, or no noise at all (Matheron's rule). Other
    measurements are linearised: an approximation.

    **Example:**

    ```python
    measurement = eqd.Measurement(jnp.ones(2), lambda x: x[:2], 0.05)
    x0 = eqd.LinearisedDraw()(measurement, jnp.zeros(4), jnp.asarray(0.3), key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Wilson et al., *Pathwise Conditioning of Gaussian Processes*, JMLR 2021, section 3;
        Papandreou & Yuille, *Gaussian sampling by local perturbations*, NeurIPS 2010.
    """

    linearisations: int = eqx.field(static=True)
    iterations: int = eqx.field(static=True)

    def __init__(self, linearisations: int = 1, iterations: int = 30):
        """**Arguments:**

        - `linearisations`: the measurement is linearised at $m$, then where its linearisation
            has the most probable $x_0$, and so on: so many times. Once is enough for a linear one.
        - `iterations`: at most this many of conjugate gradients; as many as $y$ has elements are
            exact, few are good.

        **Raises:** `ValueError` for less than one.
        """
        self.linearisations = whole(self, "linearisations", linearisations)
        self.iterations = whole(self, "iterations", iterations)

    def __call__(self, measurement, mean, std, *, key):
        return self.around(self.centre(measurement, mean, std), measurement, mean, std, key=key)

    def centre(self, measurement: Measurement, mean: Example, std: Scalar) -> Example:
        """Where the measurement is linearised last. Arguments as for the call."""
        more = self.linearisations - 1
        if more == 0:
            return mean
        return gauss_newton(measurement, mean, std**2, more, self.iterations)

    def around(
        self, centre: Example, measurement: Measurement, mean: Example, std: Scalar, *, key: Key
    ) -> Example:
        """Equation (2) for the measurement linearised at `centre`. Other arguments as for the
        call.
        """
        draw, measure = jax.random.split(key)
        x = mean + std * jax.random.normal(draw, mean.shape, mean.dtype)
        here = measurement.linearised(centre)
        simulated = measurement.sample(centre, key=measure) + here.forward(x - centre)
        here = here._replace(residual=measurement.y.astype(x.dtype) - simulated)
        u = weighed_residual(here, lambda v: std**2 * v, self.iterations)
        return x + std**2 * here.transpose(u)


class LangevinDraw(AbstractDataDraw):
    r"""Metropolis-adjusted Langevin steps that leave equation (1) invariant, for any operator and
    noise with a density: each proposes

    $$x' = x + \eta\nabla\log q(x) + \sqrt{2\eta}\,z, \qquad
      \eta = \frac{h}{D^{1/3}\,(r^{-2} + L)},$$

    and accepts it with the probability that keeps (1) exact. $L$ is the largest curvature of
    $-\log p(y|x_0)$ where $x_0$ is most probable, by power iteration. They start from a
    [`eqdiff.LinearisedDraw`][] about that place. The paper's steps are not adjusted.

    **Example:**

    ```python
    measurement = eqd.Measurement(jnp.ones(2), lambda x: x[:2] ** 3, 0.05)
    x0 = eqd.LangevinDraw()(measurement, jnp.ones(4), jnp.asarray(0.3), key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Roberts & Tweedie, *Exponential Convergence of Langevin Distributions and Their Discrete
        Approximations*, Bernoulli 1996; Roberts & Rosenthal, *Optimal scaling of discrete
        approximations to Langevin diffusions*, JRSS B 1998.
    """

    steps: int = eqx.field(static=True)
    size: float
    start: LinearisedDraw

    def __init__(
        self,
        steps: int = 50,
        size: float = 1.0,
        *,
        start: LinearisedDraw = LinearisedDraw(linearisations=5),
    ):
        """**Arguments:**

        - `steps`: how many; none of them calls the network.
        - `size`: $h$. Larger steps are accepted less often.
        - `start`: where they start, and where the curvature is taken.

        **Raises:** `ValueError` for less than one step, or a size that is not positive.
        """
        check_positive(self, size=size)
        self.steps, self.size, self.start = whole(self, "steps", steps), size, start

    def __call__(self, measurement, mean, std, *, key):
        measurement.noise.check_density("LangevinDraw")
        first, rest = jax.random.split(key)

        def log_prob(x):
            return measurement.log_prob(x) - 0.5 * jnp.sum(((x - mean) / std) ** 2)

        centre = self.start.centre(measurement, mean, std)
        start = self.start.around(centre, measurement, mean, std, key=first)
        curvature = _largest_curvature(measurement.log_prob, centre)
        size = self.size / (mean.size ** (1 / 3) * (std**-2 + curvature))
        step = _langevin_step(log_prob, size)
        state = (start, *jax.value_and_grad(log_prob)(start))
        return jax.lax.scan(step, state, jax.random.split(rest, self.steps))[0][0]


def _langevin_step(log_prob, size: Scalar):
    """One step, from a state and its log-density and gradient, as `lax.scan` takes it."""

    def step(state, key):
        x, value, slope = state
        propose, accept = jax.random.split(key)
        z = jax.random.normal(propose, x.shape, x.dtype)
        move = size * slope + jnp.sqrt(2 * size) * z
        new_value, new_slope = jax.value_and_grad(log_prob)(x + move)
        # log N(x; x' + ηg', 2η) − log N(x'; x + ηg, 2η)
        back = 0.5 * jnp.sum(z**2) - jnp.sum((move + size * new_slope) ** 2) / (4 * size)
        chance = new_value - value + back
        go = jnp.log(jax.random.uniform(accept, (), x.dtype)) < chance
        proposed = (x + move, new_value, new_slope)
        return jax.tree.map(lambda a, b: jnp.where(go, a, b), proposed, state), None

    return step


def _largest_curvature(log_prob, x: Example, iterations: int = 8) -> Scalar:
    r"""The largest eigenvalue by magnitude of $\nabla^2\log p$, from below, by power iteration."""
    slope = jax.grad(log_prob)

    def product(v: Example) -> Example:
        return jax.jvp(slope, (x,), (v,))[1]

    def again(v, _):
        image = product(v)
        norm = jnp.sqrt(jnp.sum(image**2))
        return image / jnp.where(norm > 0, norm, 1), norm

    start = jax.random.normal(jax.random.key(0), x.shape, x.dtype)
    start = start / jnp.sqrt(jnp.sum(start**2))
    return jax.lax.scan(again, start, length=iterations)[1][-1]
