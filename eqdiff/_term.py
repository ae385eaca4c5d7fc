r"""The differential equations, as Diffrax terms.

For a denoiser on an SDE $\mathrm dx = f x\,\mathrm dt + g\,\mathrm dw$ (Song et al. 2021, equations 5, 6, 13 and 39):

$$\text{forward} \quad \mathrm dx = f x\,\mathrm dt + g\,\mathrm dw, \tag{1}$$

$$\text{probability flow} \quad \frac{\mathrm dx}{\mathrm dt} = f x - \tfrac12 g^2 s
  = \dot\alpha\hat x_0 + \dot\sigma\hat\varepsilon =: v, \tag{2}$$

$$\text{augmented flow} \quad \frac{\mathrm dx}{\mathrm dt} = v, \qquad
  \frac{\mathrm d\ell}{\mathrm dt} = \operatorname{div} v, \tag{3}$$

$$\text{reverse} \quad \mathrm dx = \left(-v + \tfrac12 g^2 s\right)\mathrm d\tau + g\,\mathrm d\bar w, \qquad
  \tau = -t. \tag{4}$$

The right-hand form of (2) stays finite where α or σ vanishes, and is what is computed.

**Clocks.** ODE terms keep natural time and may be solved in either direction. The reverse SDE lives on the *increasing* clock
$\tau = -t$, from $-t_1$ to $-t_0$: solved with a negative step, Diffrax's stochastic Runge–Kutta methods (ShARK, SRA1, SPaRK,
SEA) silently return garbage, so the term refuses it, and positive times too. The clock is a negation and not $t_1 - t$, which
in float32 would lose the times near the data.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from ._denoiser import AbstractDenoiser
from ._process import AbstractProcess, AbstractSDE
from ._trace import AbstractTrace
from ._types import Args, Example, Scalar, Time


_CLOCK = (
    "It lives on the increasing clock −t: write t0=-process.t1, t1=-process.t0 and a positive dt0."
)


def require_sde(process: AbstractProcess, owner: str) -> AbstractSDE:
    """The process itself, if it is in continuous time; otherwise a `ValueError` that says what to write."""
    if isinstance(process, AbstractSDE):
        return process
    raise ValueError(
        f"{owner} needs a process in continuous time, but the denoiser is on a {type(process).__name__}. Build it on "
        "schedule.continuous(): the time is still the index, and the network is told the same."
    )


def velocity(denoiser: AbstractDenoiser, t: Time, x: Example, args: Args = None) -> Example:
    r"""The probability flow's velocity $\dot\alpha_t\hat x_0 + \dot\sigma_t\hat\varepsilon$, equation (2)."""
    process = require_sde(denoiser.process, "The probability flow")
    estimate = denoiser(t, x, args)
    alpha_dot, sigma_dot = process.alpha_dot(t), process.sigma_dot(t)
    return alpha_dot.astype(x.dtype) * estimate.x0 + sigma_dot.astype(x.dtype) * estimate.noise


def probability_flow(denoiser: AbstractDenoiser) -> diffrax.ODETerm:
    r"""The probability-flow ODE $\dot x = \dot\alpha\hat x_0 + \dot\sigma\hat\varepsilon$, equation (2).

    Its solutions have the SDE's marginals. Solve from $t_1$ to $t_0$ to sample and from $t_0$ to $t_1$ to encode, with any
    Diffrax ODE solver; `args` of `diffeqsolve` is what conditions the network.

    **Raises:** `ValueError` if the denoiser is not on an SDE.
    """
    require_sde(denoiser.process, "probability_flow")
    return diffrax.ODETerm(lambda t, x, args: velocity(denoiser, jnp.asarray(t), x, args))


def augmented_flow(
    denoiser: AbstractDenoiser, trace: AbstractTrace, probes: Any
) -> diffrax.ODETerm:
    r"""The probability flow with its log-density, equation (3), on states $(x, \ell)$.

    Solved from $t_0$ to $t_1$ with $\ell(t_0) = 0$, $\log p_{t_0}(x(t_0)) = \log p_{t_1}(x(t_1)) + \ell(t_1)$
    (Chen et al. 2018, theorem 1).

    **Arguments:**

    - `denoiser`: any denoiser on an SDE.
    - `trace`: how the divergence is found.
    - `probes`: `trace.probes(x, key=key)`. ℓ has one entry per probe (one for the exact trace).

    **Raises:** `ValueError` if the denoiser is not on an SDE.
    """
    require_sde(denoiser.process, "augmented_flow")

    def vector_field(t, state, args):
        x, _ = state
        return trace.divergence(lambda y: velocity(denoiser, t, y, args), x, probes)

    return diffrax.ODETerm(vector_field)


class _ScalarDiffusion(diffrax.AbstractTerm):
    """g(t) dw with one g for all elements."""

    process: AbstractSDE
    brownian: diffrax.AbstractBrownianPath

    def vf(self, t, y, args):
        return self.process.diffusion(jnp.asarray(t))

    def contr(self, t0, t1, **kwargs):
        return self.brownian.evaluate(t0, t1, **kwargs)

    def prod(self, vf, control):
        return vf.astype(control.dtype) * control


class _ReverseDiffusion(diffrax.AbstractTerm):
    """g(−τ) dw̄ on the clock τ = −t, carrying along the direction of the solve.

    Diffrax turns a decreasing solve into an increasing one by multiplying every control by −1, invisibly to the term.
    So each Brownian increment travels with a 1 beside it (each Lévy area with a 0): what comes back negative was
    solved the wrong way round.
    """

    process: AbstractSDE
    brownian: diffrax.AbstractBrownianPath

    def vf(self, t, y, args):
        return self.process.diffusion(-jnp.asarray(t))

    def contr(self, t0, t1, **kwargs):
        control = self.brownian.evaluate(t0, t1, **kwargs)
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
        noise = eqx.error_if(
            noise,
            direction < 0,
            f"reverse_sde was solved with a decreasing time. {_CLOCK}",
        )
        return vf.astype(noise.dtype) * noise


def forward_sde(process: AbstractSDE, brownian: diffrax.AbstractBrownianPath) -> diffrax.MultiTerm:
    r"""The noising SDE $\mathrm dx = f x\,\mathrm dt + g\,\mathrm dw$, equation (1), from $t_0$ to $t_1$.

    **Arguments:**

    - `process`: the SDE.
    - `brownian`: the Brownian motion, over $[t_0, t_1]$ and shaped like $x$.
    """
    require_sde(process, "forward_sde")
    drift = diffrax.ODETerm(lambda t, x, args: process.drift(jnp.asarray(t), x))
    return diffrax.MultiTerm(drift, _ScalarDiffusion(process, brownian))


def reverse_drift(denoiser: AbstractDenoiser, t: Time, x: Example, args: Args = None) -> Example:
    r"""The drift $-v + \frac12 g^2 s = -fx + g^2 s$ of the reverse SDE on the clock $-t$, equation (4)."""
    process = require_sde(denoiser.process, "The reverse SDE")
    estimate = denoiser(t, x, args)
    on_x0: Scalar = -process.alpha_dot(t)
    on_noise: Scalar = -process.sigma_dot(t) - 0.5 * process.diffusion(t) ** 2 / process.sigma(t)
    return on_x0.astype(x.dtype) * estimate.x0 + on_noise.astype(x.dtype) * estimate.noise


def reverse_sde(
    denoiser: AbstractDenoiser, brownian: diffrax.AbstractBrownianPath
) -> diffrax.MultiTerm:
    r"""The reverse-time SDE, equation (4), on the increasing clock $\tau = -t$.

    Solve from $\tau = -t_1$ to $\tau = -t_0$ with a positive step and any Diffrax SDE solver. The noise is additive (its
    coefficient does not depend on $x$), so ShARK, SRA1 and SPaRK apply, and adapt.

    **Arguments:**

    - `denoiser`: any denoiser on an SDE.
    - `brownian`: the Brownian motion, over $[-t_1, -t_0]$ and shaped like $x$; its key must not be the prior sample's.

    **Raises:** `ValueError` if the denoiser is not on an SDE; a runtime error if solved with a decreasing time, or at
    positive times.
    """
    process = require_sde(denoiser.process, "reverse_sde")

    def vector_field(tau, x, args):
        # Some processes have values at negative t (VE's σ is an exponential): they would be believed.
        tau = eqx.error_if(tau, tau > 0, f"reverse_sde was solved at a positive time. {_CLOCK}")
        return reverse_drift(denoiser, -tau, x, args)

    drift = diffrax.ODETerm(vector_field)
    return diffrax.MultiTerm(drift, _ReverseDiffusion(process, brownian))


def interval(process: AbstractSDE, x: Example) -> tuple[Scalar, Scalar]:
    r"""$(t_0, t_1)$ in the precision of x: Diffrax would promote the whole state to the precision of its times."""
    return jnp.asarray(process.t0, x.dtype), jnp.asarray(process.t1, x.dtype)


def shape_of(x: Example) -> jax.ShapeDtypeStruct:
    """The shape and precision of an example, as Diffrax's Brownian motions want it."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
