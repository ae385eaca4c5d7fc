r"""Multistep methods for the probability flow in data prediction.

In the clock $\ell = \log(\alpha/\sigma)$ the flow of `dpm.py`, $y = x/\sigma$, is
$\mathrm dy = \hat x_0\,e^\ell\,\mathrm d\ell$. A step of size $h$ replaces $\hat x_0$ by the
polynomial through estimates $D_i$ at $\ell_0 + r_i h$, of which $r_0 = 0$,

$$y_1 = y_0 + \left(e^{\ell_1} - e^{\ell_0}\right)\sum_i w_i D_i, \qquad
  \sum_i w_i r_i^k = m_k := \frac{\int_0^1 e^{hr}\,r^k\,\mathrm dr}{\int_0^1 e^{hr}\,\mathrm dr}
  = \frac{k!\,\psi_k(h)}{\psi_0(h)}, \quad
  \psi_k(h) = \sum_{j\ge0}\frac{(-h)^j}{(j + k + 1)!}, \tag{1}$$

so that polynomials of $r$ are integrated exactly: an exponential Adams method. With the estimates
of earlier steps alone ($r_i < 0$) it is explicit, **DPM-Solver++(3M)** for two of them (Lu et al.
2022b). For one, $w_1 = 1/(2r_1)$ is as good, and is (2M): the estimate half a step ahead,

$$\hat x_0 + \frac{h}{2h_-}\left(\hat x_0 - \hat x_{0-}\right), \tag{2}$$

by the step before, of size $h_-$. Equation (2) is not specific to diffusion: it is the two-step
Adams–Bashforth method with variable steps.

**UniPC** (Zhao et al. 2023, with $B(h) = e^h - 1$) repeats the last step once the network has been
called at its end, with that estimate as one more ($r = 1$). The call is needed for the next step
anyway, so one more order costs nothing. The estimate is not computed again at the corrected state.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Scalar


# (−h)^j / (j + k + 1)! for |h| < 1: what is left out is below 1/20!.
_TERMS = 18


def moments(h: Scalar, number: int) -> Float[Array, " number"]:
    """The first moments $m_k$ of (1)."""
    # By the series for short steps, by recursion from ψ₀ = (1 − e⁻ʰ)/h for long ones, where it does
    # not cancel.
    short = jnp.abs(h) < 1
    small, large = jnp.where(short, h, 0), jnp.where(short, 1, h)
    psi, recursive = [], -jnp.expm1(-large) / large
    for k in range(number):
        powers = [(-small) ** j * (1 / math.factorial(j + k + 1)) for j in reversed(range(_TERMS))]
        psi.append(jnp.where(short, sum(powers), recursive))
        recursive = (1 / math.factorial(k + 1) - recursive) / large
    return jnp.stack([math.factorial(k) * p / psi[0] for k, p in enumerate(psi)])


def weights(h: Scalar, nodes: list[Scalar]) -> Float[Array, " n"]:
    """The weights $w_i$ of (1) for estimates at these $r_i$; h is negative towards the noise."""
    r = jnp.stack([jnp.asarray(node, h.dtype) for node in nodes])
    vandermonde = jnp.stack([r**k for k in range(len(nodes))])
    return jnp.linalg.solve(vandermonde, moments(h, len(nodes)))


class _History(eqx.Module):
    """What a method remembers of its steps, newest first: `count` of them were taken.

    - `sizes`, `estimates`: how long each was, and the estimate at its start.
    - `start`: the state at which the newest began.
    """

    count: Array
    sizes: tuple[Scalar, ...]
    estimates: tuple[Any, ...]
    start: Any


def _empty(steps: int, t0: Scalar, y0: Any) -> _History:
    zeros = jax.tree.map(jnp.zeros_like, y0)
    none = jnp.zeros((), int)
    return _History(none, (jnp.zeros_like(t0),) * steps, (zeros,) * steps, zeros)


def _sizes(past: _History, count: Array, h: Scalar) -> list[Scalar]:
    """The sizes, those of steps that were not taken replaced by h, so that nodes differ."""
    return [jnp.where(n < count, size, h) for n, size in enumerate(past.sizes)]


def _nodes(h: Scalar, sizes: list[Scalar]) -> list[Scalar]:
    """$r_i$ of a step's start and of the starts of steps of these sizes before it."""
    nodes, back = [jnp.zeros_like(h)], jnp.zeros_like(h)
    for size in sizes:
        back = back - size
        nodes.append(back / h)
    return nodes


def _signed(h: Scalar, control: Scalar) -> Scalar:
    """The step in ℓ. A Diffrax solver's own clock increases, whichever way it solves."""
    return jnp.where(control < 0, -h, h)


def _predictor(h: Scalar, control: Scalar, sizes: list[Scalar]) -> Float[Array, " n"]:
    """Weights of the newest estimate and of older ones."""
    if not sizes:
        return jnp.ones(1, h.dtype)
    if len(sizes) == 1:
        ahead = h / (2 * sizes[0])
        return jnp.stack([1 + ahead, -ahead])
    return weights(_signed(h, control), _nodes(h, sizes))


def _corrector(h: Scalar, control: Scalar, sizes: list[Scalar]) -> Float[Array, " n"]:
    """The same with the estimate at the step's end, which comes last."""
    if not sizes:
        return jnp.full(2, 0.5, h.dtype)
    return weights(_signed(h, control), [*_nodes(h, sizes), jnp.ones_like(h)])


def _move(terms, y: Any, weighted: list[tuple[Array, list[Any]]], index: Array, control) -> Any:
    """y moved by the estimates so weighted, of several choices the one with this index."""

    def total(weights, trees):
        def add(*leaves):
            return sum(w.astype(x.dtype) * x for w, x in zip(weights, leaves, strict=True))

        return jax.tree.map(add, *trees)

    chosen = total(*weighted[0])
    for n, option in enumerate(weighted[1:], 1):
        other = total(*option)
        chosen = jax.tree.map(lambda x, z, n=n: jnp.where(index >= n, x, z), other, chosen)
    return jax.tree.map(jnp.add, y, terms.prod(chosen, control))


def _advance(terms, t0, t1, y0, estimate, past: _History, count: Array):
    """One explicit step, as a Diffrax solver returns it."""
    h, steps = jnp.asarray(t1 - t0), len(past.sizes)
    sizes, known = _sizes(past, count, h), [estimate, *past.estimates]
    control = terms.contr(t0, t1)
    choices = [(_predictor(h, control, sizes[:n]), known[: n + 1]) for n in range(steps)]
    y1 = _move(terms, y0, choices, count, control)
    kept = (h, *past.sizes)[:steps], (estimate, *past.estimates)[:steps]
    state = _History(jnp.minimum(count + 1, steps), *kept, y0)
    return y1, None, dict(y0=y0, y1=y1), state, diffrax.RESULTS.successful


class DPMSolverPP(diffrax.AbstractSolver):
    r"""DPM-Solver++(2M) or (3M) as a Diffrax solver, for the term `data_prediction`: of second or
    third order, with one network call per step and no error estimate, so that its steps are given
    (`diffrax.StepTo`). The first step is DDIM's, and the second of (3M) is (2M)'s. On an ordinary
    `diffrax.ODETerm` (2M) is the Adams–Bashforth method.

    The official code and its ports take half of (3M)'s last divided difference, as if it were a
    second derivative: they are of second order.

    ??? cite "Reference"

        Lu et al., *DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
        Models*, 2022.
    """

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.LocalLinearInterpolation]] = (
        diffrax.LocalLinearInterpolation
    )

    steps: int = eqx.field(static=True, default=2)

    def order(self, terms):
        return self.steps

    def init(self, terms, t0, t1, y0, args):
        return _empty(self.steps, jnp.asarray(t0), y0)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        count = jnp.where(made_jump, 0, solver_state.count)
        return _advance(terms, t0, t1, y0, terms.vf(t0, y0, args), solver_state, count)

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)


class UniPC(diffrax.AbstractSolver):
    r"""UniPC as a Diffrax solver, for the term `data_prediction`, with $B(h) = e^h - 1$.

    One network call per step and no error estimate, so its steps are given (`diffrax.StepTo`). The
    states it returns are predictions; each is corrected by the step that follows.

    ??? cite "Reference"

        Zhao et al., *UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion
        Models*, NeurIPS 2023.
    """

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.LocalLinearInterpolation]] = (
        diffrax.LocalLinearInterpolation
    )
    steps: int = eqx.field(static=True, default=2)

    def order(self, terms):
        return self.steps

    def init(self, terms, t0, t1, y0, args):
        return _empty(self.steps, jnp.asarray(t0), y0)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        past = solver_state
        count = jnp.where(made_jump, 0, past.count)
        estimate = terms.vf(t0, y0, args)
        # Without a step before, its size is that of this one, and what it gives is not used.
        sizes = _sizes(past, count, jnp.asarray(t1 - t0))
        last, earlier = sizes[0], sizes[1:]
        control = terms.contr(t0 - last, t0)
        choices = [
            (_corrector(last, control, earlier[:n]), [*past.estimates[: n + 1], estimate])
            for n in range(self.steps)
        ]
        corrected = _move(terms, past.start, choices, count - 1, control)
        y0 = jax.tree.map(lambda x, y: jnp.where(count > 0, x, y), corrected, y0)
        return _advance(terms, t0, t1, y0, estimate, past, count)

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)
