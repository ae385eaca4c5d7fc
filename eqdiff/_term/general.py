r"""Any SDE $\mathrm dx = f(t, x)\,\mathrm dt + g(t)\,\mathrm dw$ and its reversal, equation (5) of
the folder's docstring.

For SDEs other than eqdiff's processes, whose drift is $f(t)\,x$: underdamped, rotating, bounded,
nonlinear.
"""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Args, Example, Scalar
from .sde import ForwardDiffusion, ReverseDiffusion


# f(t, x, args) or s(t, x, args), shaped like x; and g(t), a number or an array shaped like x.
Field = Callable[[Scalar, Example, Args], Example]
Diffusion = Callable[[Scalar], Float[Array, "..."]]

_CLOCK = (
    "It lives on the increasing clock −t: from the negative of the forward SDE's last time to that "
    "of its first, with a positive dt0."
)


def _apply(name: str, field: Field, t: Scalar, x: Example, args: Args) -> Example:
    value = jnp.asarray(field(t, x, args))
    if value.shape != x.shape:
        raise ValueError(
            f"{name}(t, x, args) returned shape {value.shape} for x of shape {x.shape}; expected "
            "the shape of x."
        )
    return value.astype(x.dtype)


def _noise_level(diffusion: Diffusion, t: Scalar, x: Example) -> Float[Array, "..."]:
    g = jnp.asarray(diffusion(t))
    if g.shape not in ((), x.shape):
        raise ValueError(
            f"diffusion(t) returned shape {g.shape} for x of shape {x.shape}; expected a number, "
            "or one for each element of x. A matrix belongs in a diffrax.ControlTerm of your own."
        )
    return g.astype(x.dtype)


def forward_general_sde(
    drift: Field, diffusion: Diffusion, brownian: diffrax.AbstractBrownianPath
) -> diffrax.MultiTerm:
    r"""The SDE $\mathrm dx = f(t, x)\,\mathrm dt + g(t)\,\mathrm dw$ itself, on natural time.

    **Arguments:**

    - `drift`: $f$, called as `drift(t, x, args)`.
    - `diffusion`: $g$, called as `diffusion(t)`: a number, or an array shaped like $x$.
    - `brownian`: the Brownian motion, over the times of the solve and shaped like $x$.

    **Raises:** `ValueError`, when solved, for a drift or diffusion that does not fit $x$, or if the
    solver needs Lévy areas that `brownian` does not have.

    **Example:**

    ```python
    import diffrax
    brownian = diffrax.VirtualBrownianTree(0.0, 1.0, 1e-4, (3,), key=jax.random.key(0))
    drift, diffusion = lambda t, x, args: -(x**3), lambda t: 1.0
    term = eqd.terms.forward_general_sde(drift, diffusion, brownian)
    solution = diffrax.diffeqsolve(term, diffrax.Euler(), 0.0, 1.0, 0.01, jnp.ones(3))
    ```
    """

    def vector_field(t, x, args):
        t = jnp.asarray(t)
        _noise_level(diffusion, t, x)
        return _apply("drift", drift, t, x, args)

    return diffrax.MultiTerm(diffrax.ODETerm(vector_field), ForwardDiffusion(diffusion, brownian))


def reverse_general_sde(
    drift: Field,
    diffusion: Diffusion,
    score: Field,
    brownian: diffrax.AbstractBrownianPath,
) -> diffrax.MultiTerm:
    r"""The reversal of any SDE, $\mathrm dx = (-f + g^2 s)\,\mathrm d\tau + g\,\mathrm d\bar w$ on
    the increasing clock $\tau = -t$.

    Solve from $\tau = -t_1$ to $\tau = -t_0$, $t_0 \ge 0$, with a positive step: if
    $x(t_1) \sim p_{t_1}$, then $x(t_0) \sim p_{t_0}$. The noise is additive, so ShARK, SRA1 and
    SPaRK apply, and adapt.

    **Arguments:**

    - `drift`: $f$ of the *forward* SDE, called as `drift(t, x, args)` with natural time
        $t = -\tau$.
    - `diffusion`: $g$, called as `diffusion(t)`: a number, or an array shaped like $x$.
    - `score`: $s = \nabla_x\log p_t$, called as `score(t, x, args)`.
    - `brownian`: the Brownian motion, over $[-t_1, -t_0]$ and shaped like $x$.

    **Raises:** `ValueError`, when solved, for functions that do not fit $x$, or if the solver needs
    Lévy areas that `brownian` does not have; a runtime error if solved with a decreasing time, or
    at positive times.

    **Example:**

    ```python
    import diffrax
    brownian = diffrax.VirtualBrownianTree(-1.0, 0.0, 1e-4, (3,), key=jax.random.key(0))
    drift, score = lambda t, x, args: -x / 2, lambda t, x, args: -x
    term = eqd.terms.reverse_general_sde(drift, lambda t: 1.0, score, brownian)
    solution = diffrax.diffeqsolve(term, diffrax.Euler(), -1.0, 0.0, 0.01, jnp.ones(3))
    ```

    ??? cite "Reference"

        Anderson, *Reverse-time diffusion equation models*, Stochastic Processes and their
        Applications 12, 1982.
    """

    def vector_field(tau, x, args):
        t = -jnp.asarray(tau)
        # On x, not on t: a drift, a diffusion and a score may all ignore t, and an error on an
        # unused value is never seen.
        x = eqx.error_if(
            x,
            t < 0,
            f"reverse_general_sde was solved at a positive time. {_CLOCK} An SDE with negative "
            "times needs its clock shifted.",
        )
        g = _noise_level(diffusion, t, x)
        return g**2 * _apply("score", score, t, x, args) - _apply("drift", drift, t, x, args)

    complaint = f"reverse_general_sde was solved with a decreasing time. {_CLOCK}"
    return diffrax.MultiTerm(
        diffrax.ODETerm(vector_field), ReverseDiffusion(diffusion, brownian, complaint)
    )


def general_probability_flow(drift: Field, diffusion: Diffusion, score: Field) -> diffrax.ODETerm:
    r"""The probability flow of any SDE, $\dot x = f - \tfrac12 g^2 s$, on natural time in either
    direction.

    Its solutions have the marginals of $\mathrm dx = f(t, x)\,\mathrm dt + g(t)\,\mathrm dw$. For
    log-densities, integrate `trace.divergence(lambda y: term.vf(t, y, args), x, probes)`
    alongside,
    as [`eqdiff.terms.augmented_flow`][] does.

    **Arguments:** as for [`eqdiff.terms.reverse_general_sde`][].

    **Raises:** `ValueError`, when solved, for functions that do not fit $x$.

    **Example:**

    ```python
    import diffrax
    drift, score = lambda t, x, args: -x, lambda t, x, args: -x
    term = eqd.terms.general_probability_flow(drift, lambda t: 1.0, score)
    solution = diffrax.diffeqsolve(term, diffrax.Tsit5(), 1.0, 0.0, -0.05, jnp.ones(3))
    ```
    """

    def vector_field(t, x, args):
        t = jnp.asarray(t)
        g = _noise_level(diffusion, t, x)
        return _apply("drift", drift, t, x, args) - 0.5 * g**2 * _apply("score", score, t, x, args)

    return diffrax.ODETerm(vector_field)
