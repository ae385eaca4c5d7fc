"""The noising SDE and its reversal; the theory is the folder's docstring."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._denoiser import AbstractDenoiser
from .._process import AbstractProcess
from .._types import Args, Example, Scalar, Time
from .flow import outside


_CLOCK = (
    "It lives on the increasing clock −t: write t0=-process.t1, t1=-process.t0 and a positive dt0."
)


def increment(brownian: diffrax.AbstractBrownianPath, t0: Any, t1: Any, options: dict) -> Any:
    """The Brownian increment, with its Lévy areas where the solver asks for them."""
    control = brownian.evaluate(t0, t1, **options)
    # Diffrax notices too, in a page that shows the types of both terms and never says what to
    # write.
    if options.get("use_levy") and isinstance(control, diffrax.BrownianIncrement):
        raise ValueError(
            "This solver needs the Lévy areas of the Brownian motion, which was made without: "
            f"write diffrax.{type(brownian).__name__}(..., levy_area=diffrax.SpaceTimeLevyArea). "
            "Euler and Heun do without."
        )
    return control


class ForwardDiffusion(diffrax.AbstractTerm):
    """g(t) dw: one g for all elements, or one each."""

    diffusion: Callable[[Scalar], Float[Array, "..."]]
    brownian: diffrax.AbstractBrownianPath

    def vf(self, t, y, args):
        return jnp.asarray(self.diffusion(jnp.asarray(t)))

    def contr(self, t0, t1, **kwargs):
        return increment(self.brownian, t0, t1, kwargs)

    def prod(self, vf, control):
        return vf.astype(control.dtype) * control


class ReverseDiffusion(diffrax.AbstractTerm):
    """g(−τ) dw̄ on the clock τ = −t, carrying along the direction of the solve.

    Diffrax turns a decreasing solve into an increasing one by multiplying every control by −1,
    invisibly to the term. So each Brownian increment travels with a 1 (each Lévy area
    with a 0): what comes back negative was solved the wrong way round.
    """

    diffusion: Callable[[Scalar], Float[Array, "..."]]
    brownian: diffrax.AbstractBrownianPath
    complaint: str = eqx.field(static=True)

    def vf(self, t, y, args):
        return jnp.asarray(self.diffusion(-jnp.asarray(t)))

    def contr(self, t0, t1, **kwargs):
        control = increment(self.brownian, t0, t1, kwargs)
        if isinstance(control, diffrax.AbstractBrownianIncrement):
            areas = {
                name: (getattr(control, name), jnp.zeros(()))
                for name in ("H", "K")
                if hasattr(control, name)
            }
            with_mark = {"W": (control.W, jnp.ones(())), **areas}
            names = tuple(with_mark)
            return eqx.tree_at(
                lambda c: tuple(getattr(c, n) for n in names), control, tuple(with_mark.values())
            )
        return control, jnp.ones(())

    def prod(self, vf, control):
        noise, direction = control
        noise = eqx.error_if(noise, direction < 0, self.complaint)
        return vf.astype(noise.dtype) * noise


def forward_sde(
    process: AbstractProcess, brownian: diffrax.AbstractBrownianPath
) -> diffrax.MultiTerm:
    r"""The noising SDE $\mathrm dx = f x\,\mathrm dt + g\,\mathrm dw$, equation (1), from $t_0$ to
    $t_1$.

    **Arguments:**

    - `process`: the process.
    - `brownian`: the Brownian motion, over $[t_0, t_1]$ and shaped like $x$.

    **Raises:** `ValueError` if the solver needs Lévy areas that `brownian` does not have.

    **Example:**

    ```python
    import diffrax
    brownian = diffrax.VirtualBrownianTree(0.0, 1.0, 1e-4, (3,), key=jax.random.key(0))
    term = eqd.terms.forward_sde(eqd.VPSDE(), brownian)
    solution = diffrax.diffeqsolve(term, diffrax.Euler(), 1e-3, 1.0, 0.01, jnp.ones(3))
    ```
    """
    drift = diffrax.ODETerm(lambda t, x, args: process.drift(jnp.asarray(t), x))
    return diffrax.MultiTerm(drift, ForwardDiffusion(process.diffusion, brownian))


def reverse_drift(denoiser: AbstractDenoiser, t: Time, x: Example, args: Args = None) -> Example:
    r"""The drift $-v + \frac12 g^2 s = -fx + g^2 s$ of the reverse SDE on the clock $-t$, equation
    (4).
    """
    process = denoiser.process
    estimate = denoiser(t, x, args)
    on_x0: Scalar = -process.alpha_dot(t)
    on_noise: Scalar = -process.sigma_dot(t) - 0.5 * process.diffusion(t) ** 2 / process.sigma(t)
    return on_x0.astype(x.dtype) * estimate.x0 + on_noise.astype(x.dtype) * estimate.noise


def reverse_sde(
    denoiser: AbstractDenoiser, brownian: diffrax.AbstractBrownianPath
) -> diffrax.MultiTerm:
    r"""The reverse-time SDE, equation (4), on the increasing clock $\tau = -t$.

    Solve from $\tau = -t_1$ to $\tau = -t_0$ with a positive step and any Diffrax SDE solver. The
    noise is additive (its coefficient does not depend on $x$), so ShARK, SRA1 and SPaRK apply, and
    adapt.

    **Arguments:**

    - `denoiser`: any denoiser.
    - `brownian`: the Brownian motion, over $[-t_1, -t_0]$ and shaped like $x$; its key must not be
        the prior sample's. Stochastic Runge–Kutta solvers need
        `levy_area=diffrax.SpaceTimeLevyArea`.

    **Raises:** `ValueError` if the solver needs Lévy areas that `brownian` does not have; a
    runtime error if solved with a decreasing time, at positive times, or outside $[-t_1, -t_0]$.

    **Example:**

    ```python
    import diffrax
    brownian = diffrax.VirtualBrownianTree(-1.0, 0.0, 1e-4, (3,), key=jax.random.key(0))
    term = eqd.terms.reverse_sde(eqd.GaussianDenoiser(eqd.VPSDE()), brownian)
    solution = diffrax.diffeqsolve(term, diffrax.Euler(), -1.0, -1e-3, 0.01, jnp.ones(3))
    ```
    """
    process = denoiser.process

    def vector_field(tau, x, args):
        tau = jnp.asarray(tau)
        # Some processes have values at negative t (VE's σ is an exponential): they would be
        # believed.
        tau = eqx.branched_error_if(
            tau,
            outside(process, -tau),
            jnp.where(tau > 0, 0, 1),
            [
                f"reverse_sde was solved at a positive time. {_CLOCK}",
                f"reverse_sde was solved outside [-t1, -t0] of its process. {_CLOCK}",
            ],
        )
        return reverse_drift(denoiser, -tau, x, args)

    drift = diffrax.ODETerm(vector_field)
    complaint = f"reverse_sde was solved with a decreasing time. {_CLOCK}"
    return diffrax.MultiTerm(drift, ReverseDiffusion(process.diffusion, brownian, complaint))
