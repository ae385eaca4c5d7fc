r"""The arithmetic of group normalisation and what surrounds it, forwards and backwards.

An image $x$ gets a number $b$ added per channel, is standardised in groups of channels, scaled and
shifted per channel, activated, and loses elements to dropout, with a mask $k$ of zeros and
$1/(1 - \text{rate})$:

$$y = k\,\varphi(z), \qquad z = a\,\hat x + c, \qquad \hat x = r\,(x + b - \mu), \tag{1}$$

with the mean $\mu$ and the variance $\varsigma^2$ of $x + b$ over all pixels and channels of a
group, and $r = (\varsigma^2 + \epsilon)^{-1/2}$. All of it is one function, because on an
accelerator what it costs is how often the image goes through memory.

**One pass for the statistics.** $\mathrm E[x^2] - \mathrm E[x]^2$ loses digits where the mean is
large compared with the standard deviation. Not so

$$\mu = p + \mathrm E[x + b - p], \qquad
  \varsigma^2 = \mathrm E[(x + b - p)^2] - \mathrm E[x + b - p]^2, \tag{2}$$

for a pivot $p$ that is within a few standard deviations of the mean: one of the group's own values.

**The derivative in closed form.** With means $\langle\cdot\rangle$ over a group and sums $\Sigma$
over the $n$ pixels of a channel, a tangent becomes

$$\dot y = k\,\varphi'\,\left(
    a r (\dot u - \langle\dot u\rangle - \hat x\,\langle\hat x\dot u\rangle)
    + \dot a\,\hat x + \dot c\right), \qquad \dot u = \dot x + \dot b, \tag{3}$$

and a cotangent, with $g = k\,\varphi'\,\bar y$,

$$\bar c = \Sigma\,g, \quad \bar a = \Sigma\,g \hat x, \quad
  \bar x = r\left(a g - \langle a g\rangle - \hat x\,\langle a g\hat x\rangle\right), \quad
  \bar b = r\left(a \bar c - n \langle a g\rangle - \langle a g\hat x\rangle\,\Sigma\,\hat x\right),
  \tag{4}$$

where the two group means follow from $\bar c$ and $\bar a$. So both directions read the image
twice. What a backward pass finds stored are $x$, in the precision in which it came, the mask, and
numbers per channel; it computes $\hat x$ and $\varphi'$ again while it reads $x$, instead of
keeping images in float32.
"""

import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float

from .._linear_map import linear_map
from .._platform import on_nvidia


# A channels-last image, all pixels on one axis.
Pixels = Float[Array, "pixels channels"]
Channels = Float[Array, " channels"]
Groups = Float[Array, " groups"]


class Settings(NamedTuple):
    """The number of groups, $\\epsilon$, $\\varphi$, and $1/(1 - \\text{rate})$ of dropout."""

    groups: int
    eps: float
    activation: Callable[[Array], Array]
    gain: float = 1.0


def _over(vector: Channels, image: Array) -> Pixels:
    return jax.lax.broadcast(vector, image.shape[:1])


def _group_mean(sums: Channels, pixels: int, groups: int) -> Groups:
    # The mean over each group, from sums over the pixels of each channel.
    size = sums.size // groups
    # Written as a window, this is part of the kernel that uses it; a reduction is one of its own.
    zero = np.zeros((), sums.dtype)
    total = jax.lax.reduce_window(sums, zero, jax.lax.add, (size,), (size,), "VALID")
    return total / (size * pixels)


def _each(group: Groups, like: Channels) -> Channels:
    # The number of a group, for each of its channels.
    return jnp.repeat(group, like.size // group.size)


def _statistics(x: Array, b: Channels, settings: Settings) -> tuple[Groups, Groups, Channels]:
    # Equation (2): μ and r for each group, and Σ x̂ for each channel.
    n, groups = x.shape[0], settings.groups
    pivot = None
    # The last digits of a half-precision image are worth less than what cancels without a pivot.
    if x.dtype == b.dtype:
        pivot = jax.lax.stop_gradient((x[0] + b)[:: x.shape[1] // groups])
    d = x.astype(b.dtype) + _over(b if pivot is None else b - _each(pivot, b), x)
    total = jnp.sum(d, 0)
    mean, square = (_group_mean(v, n, groups) for v in (total, jnp.sum(d * d, 0)))
    r = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0) + settings.eps)
    standard = _each(r, b) * (total - n * _each(mean, b))
    return mean if pivot is None else mean + pivot, r, standard


def _standardised(x: Array, b: Channels, mean: Groups, r: Groups) -> Pixels:
    return (x.astype(b.dtype) + _over(b, x) - _over(_each(mean, b), x)) * _over(_each(r, b), x)


def _output(x: Array, b, mean, r, a, c, keep, settings: Settings) -> Array:
    y = settings.activation(_over(a, x) * _standardised(x, b, mean, r) + _over(c, x))
    for mask in keep:
        y = jnp.where(mask, settings.gain * y, 0)
    return y.astype(x.dtype)


def _slope(x: Array, b, mean, r, a, c, keep, settings: Settings) -> tuple[Pixels, Pixels]:
    # x̂ and k φ'.
    standard = _standardised(x, b, mean, r)
    z = _over(a, x) * standard + _over(c, x)
    slope = jax.jvp(settings.activation, (z,), (jnp.ones_like(z),))[1]
    for mask in keep:
        slope = jnp.where(mask, settings.gain * slope, 0)
    return standard, slope


def _tangent(settings: Settings, residuals, inputs):
    # Equation (3).
    (x, b, mean, r, _, a, c, *keep), (dx, db, da, dc) = residuals, inputs
    standard, slope = _slope(x, b, mean, r, a, c, keep, settings)
    du = dx.astype(b.dtype) + _over(db, x)
    m1, m2 = (
        _each(_group_mean(jnp.sum(v, 0), x.shape[0], settings.groups), b)
        for v in (du, du * standard)
    )
    dz = _over(a * _each(r, b), x) * (du - _over(m1, x) - standard * _over(m2, x))
    return [(slope * (dz + _over(da, x) * standard + _over(dc, x))).astype(x.dtype)]


def _gradient(settings: Settings, x, dy, b, mean, r, a, c, keep) -> tuple[Pixels, Pixels]:
    # g, and g x̂.
    standard, slope = _slope(x, b, mean, r, a, c, keep, settings)
    g = slope * dy.astype(b.dtype)
    return g, g * standard


def _join(settings: Settings, x, dy, b, mean, r, sum_x, a, c, keep, dc, da):
    # Equation (4), from its first two terms.
    n, groups = x.shape[0], settings.groups
    m1, m2 = (_each(_group_mean(a * v, n, groups), b) for v in (dc, da))
    standard, slope = _slope(x, b, mean, r, a, c, keep, settings)
    dx = _over(a, x) * slope * dy.astype(b.dtype) - _over(m1, x) - standard * _over(m2, x)
    db = _each(r, b) * (a * dc - n * m1 - m2 * sum_x)
    return [(_over(_each(r, b), x) * dx).astype(x.dtype), db, da, dc]


def _plain_cotangent(settings: Settings, x, dy, b, mean, r, sum_x, a, c, *keep):
    g, gx = _gradient(settings, x, dy, b, mean, r, a, c, keep)
    dc, da = jnp.sum(g, 0), jnp.sum(gx, 0)
    return _join(settings, x, dy, b, mean, r, sum_x, a, c, keep, dc, da)


def _fused_cotangent(settings: Settings, x, dy, b, mean, r, sum_x, a, c, *keep):
    # Two sums as one of complex numbers: of two that share something costly, the compiler computes
    # that first, writes it to memory in float32 and reads it twice. Behind the barrier g is
    # computed again, for the same reason.
    total = jnp.sum(jax.lax.complex(*_gradient(settings, x, dy, b, mean, r, a, c, keep)), 0)
    x, dy, total = jax.lax.optimization_barrier((x, dy, total))
    dc, da = jnp.real(total), jnp.imag(total)
    return _join(settings, x, dy, b, mean, r, sum_x, a, c, keep, dc, da)


def _cotangent(settings: Settings, residuals, inputs):
    # Equation (4).
    (x, *rest), (dy,) = residuals, inputs
    fused, plain = (ft.partial(f, settings) for f in (_fused_cotangent, _plain_cotangent))
    return on_nvidia(fused, plain, x, dy, *rest, outputs_like=(0, 2, 6, 7))


@ft.partial(jax.custom_jvp, nondiff_argnums=(5,))
def _normalise(x: Array, b: Channels, a: Channels, c: Channels, keep, settings: Settings) -> Array:
    mean, r, _ = _statistics(x, b, settings)
    return _output(x, b, mean, r, a, c, keep, settings)


@_normalise.defjvp
def _normalise_jvp(settings, primals, tangents):
    (x, b, a, c, keep), tangents = primals, tangents[:4]
    mean, r, sum_x = _statistics(x, b, settings)
    y = _output(x, b, mean, r, a, c, keep, settings)
    dx, db, da, dc = tangents
    (dy,) = linear_map(
        ft.partial(_tangent, settings),
        ft.partial(_cotangent, settings),
        (x, b, mean, r, sum_x, a, c, *keep),
        (dx, db, da, dc),
        inputs_like=(0, 1, 5, 6),
        outputs_like=(0,),
    )
    return y, dy


def normalise(
    x: Float[Array, "*spatial channels"],
    b: Channels,
    a: Channels,
    c: Channels,
    settings: Settings,
    keep: Bool[Array, "*spatial channels"] | None = None,
) -> Float[Array, "*spatial channels"]:
    """Equation (1).

    **Arguments:**

    - `x`: one channels-last image.
    - `b`, `a`, `c`: per channel, in the precision in which to compute.
    - `settings`: as above; the number of groups divides the channels.
    - `keep`: which elements dropout keeps.

    **Returns:** $y$, in the dtype of `x`.
    """
    pixels = "... channels -> (...) channels"
    kept = () if keep is None else (rearrange(keep, pixels),)
    return _normalise(rearrange(x, pixels), b, a, c, kept, settings).reshape(x.shape)
