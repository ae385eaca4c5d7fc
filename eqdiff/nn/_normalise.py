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

from ._linear_map import linear_map
from ._platform import on_nvidia


# A channels-last image, all pixels on one axis.
Pixels = Float[Array, "pixels channels"]
Channels = Float[Array, " channels"]


class Settings(NamedTuple):
    """The number of groups, $\\epsilon$, $\\varphi$, and $1/(1 - \\text{rate})$ of dropout."""

    groups: int
    eps: float
    activation: Callable[[Array], Array]
    gain: float = 1.0


def _over(vector: Channels, image: Array) -> Pixels:
    return jax.lax.broadcast(vector, image.shape[:1])


def _group_mean(sums: Channels, pixels: int, groups: int) -> Channels:
    # The mean over a group, for each of its channels, from sums over the pixels of each channel.
    size = sums.size // groups
    # Written as a window, this is part of the kernel that uses it; a reduction is one of its own.
    zero = np.zeros((), sums.dtype)
    total = jax.lax.reduce_window(sums, zero, jax.lax.add, (size,), (size,), "VALID")
    return jnp.repeat(total / (size * pixels), size)


def _statistics(x: Array, b: Channels, settings: Settings) -> tuple[Channels, Channels]:
    # Equation (2): μ − b and r, for each channel.
    n, channels = x.shape
    size = channels // settings.groups
    q = b
    # The last digits of a half-precision image are worth less than what cancels without a pivot.
    if x.dtype == b.dtype:
        q = b - jax.lax.stop_gradient(jnp.repeat((x[0] + b)[::size], size))
    d = x.astype(b.dtype) + _over(q, x)
    mean = _group_mean(jnp.sum(d, 0), n, settings.groups)
    square = _group_mean(jnp.sum(d * d, 0), n, settings.groups)
    r = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0) + settings.eps)
    return mean - q, r


def _standardised(x: Array, centre: Channels, r: Channels) -> Pixels:
    return (x.astype(r.dtype) - _over(centre, x)) * _over(r, x)


def _output(x: Array, centre, r, a, c, keep, settings: Settings) -> Array:
    y = settings.activation(_over(a, x) * _standardised(x, centre, r) + _over(c, x))
    for mask in keep:
        y = jnp.where(mask, settings.gain * y, 0)
    return y.astype(x.dtype)


def _slope(x: Array, centre, r, a, c, keep, settings: Settings) -> tuple[Pixels, Pixels]:
    # x̂ and k φ'.
    standard = _standardised(x, centre, r)
    z = _over(a, x) * standard + _over(c, x)
    slope = jax.jvp(settings.activation, (z,), (jnp.ones_like(z),))[1]
    for mask in keep:
        slope = jnp.where(mask, settings.gain * slope, 0)
    return standard, slope


def _tangent(settings: Settings, residuals, inputs):
    # Equation (3).
    (x, centre, r, a, c, *keep), (dx, db, da, dc) = residuals, inputs
    standard, slope = _slope(x, centre, r, a, c, keep, settings)
    du = dx.astype(r.dtype) + _over(db, x)
    m1 = _group_mean(jnp.sum(du, 0), x.shape[0], settings.groups)
    m2 = _group_mean(jnp.sum(du * standard, 0), x.shape[0], settings.groups)
    dz = _over(a * r, x) * (du - _over(m1, x) - standard * _over(m2, x))
    return [(slope * (dz + _over(da, x) * standard + _over(dc, x))).astype(x.dtype)]


def _sums(settings: Settings, x, dy, centre, r, a, c, *keep):
    # The right of equation (4) but x̄, and the two group means.
    n, groups = x.shape[0], settings.groups
    standard, slope = _slope(x, centre, r, a, c, keep, settings)
    g = slope * dy.astype(r.dtype)
    dc, da, total = jnp.sum(g, 0), jnp.sum(g * standard, 0), jnp.sum(standard, 0)
    m1, m2 = _group_mean(a * dc, n, groups), _group_mean(a * da, n, groups)
    return m1, m2, r * (a * dc - n * m1 - m2 * total), da, dc


def _image(settings: Settings, x, dy, centre, r, a, c, keep, m1, m2):
    standard, slope = _slope(x, centre, r, a, c, keep, settings)
    g = slope * dy.astype(r.dtype)
    dx = _over(r, x) * (_over(a, x) * g - _over(m1, x) - standard * _over(m2, x))
    return dx.astype(x.dtype)


def _cotangent(settings: Settings, residuals, inputs):
    # Equation (4).
    (x, centre, r, a, c, *keep), (dy,) = residuals, inputs

    def plain(x, dy, *rest):
        centre, r, a, c, *keep = rest
        m1, m2, *sums = _sums(settings, x, dy, *rest)
        return [_image(settings, x, dy, centre, r, a, c, keep, m1, m2), *sums]

    def again(x, dy, *rest):
        centre, r, a, c, *keep = rest
        m1, m2, *sums = _sums(settings, x, dy, *rest)
        # Behind the barrier g is computed again. Otherwise it is written and read in float32.
        x, dy, m1, m2 = jax.lax.optimization_barrier((x, dy, m1, m2))
        return [_image(settings, x, dy, centre, r, a, c, keep, m1, m2), *sums]

    rest = (centre, r, a, c, *keep)
    return on_nvidia(again, plain, x, dy, *rest, outputs_like=(0, 2, 4, 5))


@ft.partial(jax.custom_jvp, nondiff_argnums=(5,))
def _normalise(x: Array, b: Channels, a: Channels, c: Channels, keep, settings: Settings) -> Array:
    centre, r = _statistics(x, b, settings)
    return _output(x, centre, r, a, c, keep, settings)


@_normalise.defjvp
def _normalise_jvp(settings, primals, tangents):
    (x, b, a, c, keep), (dx, db, da, dc, _) = primals, tangents
    centre, r = _statistics(x, b, settings)
    y = _output(x, centre, r, a, c, keep, settings)
    (dy,) = linear_map(
        ft.partial(_tangent, settings),
        ft.partial(_cotangent, settings),
        (x, centre, r, a, c, *keep),
        (dx, db, da, dc),
        inputs_like=(0, 1, 3, 4),
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
