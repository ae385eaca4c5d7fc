r"""Latents of the probability flow, and the path between two of them.

For latents at an angle ω, spherical interpolation (Shoemake 1985)

$$\operatorname{slerp}(x, y; w) = \frac{\sin((1 - w)\omega)}{\sin\omega} x + \frac{\sin(w\omega)}{\sin\omega} y, \qquad
  \cos\omega = \frac{x\cdot y}{\|x\|\,\|y\|}. \tag{1}$$
"""

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._denoiser import AbstractDenoiser, check_example
from .._term import over_examples, probability_flow, require_sde
from .._types import Args, Example, Scalar
from .solving import Options, solve


def _flow(
    denoiser: AbstractDenoiser,
    x: Example,
    args: Args,
    owner: str,
    options: Options,
    *,
    forwards: bool,
) -> Example:
    process = require_sde(denoiser.process, owner)
    check_example(owner, x)
    _, each = over_examples(denoiser)
    term = probability_flow(denoiser)
    solution = solve(owner, term, process, x, x, args, each, options, forwards=forwards)
    assert solution.ys is not None
    return solution.ys[-1]


def encode(
    denoiser: AbstractDenoiser,
    x: Example,
    args: Args = None,
    *,
    solver: diffrax.AbstractSolver = diffrax.Tsit5(),
    rtol: float | Scalar = 1e-5,
    atol: float | Scalar = 1e-5,
    max_steps: int | None = 4096,
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
) -> Example:
    r"""The latent $x(t_1)$ to which the probability flow carries $x = x(t_0)$.

    **Arguments:** as for [`eqdiff.log_likelihood`][]. Do not clip the denoiser: where it clips, the way back contracts by
    $\sigma_{t_0}/\sigma_t$, so that what was encoded cannot be told apart again to any tolerance.

    **Raises:** as [`eqdiff.log_likelihood`][].
    """
    options = Options(solver, rtol, atol, max_steps, adjoint)
    return _flow(denoiser, x, args, "encode", options, forwards=True)


def decode(
    denoiser: AbstractDenoiser,
    latent: Example,
    args: Args = None,
    *,
    solver: diffrax.AbstractSolver = diffrax.Tsit5(),
    rtol: float | Scalar = 1e-5,
    atol: float | Scalar = 1e-5,
    max_steps: int | None = 4096,
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
) -> Example:
    r"""The inverse of [`eqdiff.encode`][]: $x(t_0)$ from $x(t_1)$, without a final denoising.

    Scaling a latent sets its *temperature* (Kingma & Dhariwal 2018): `decode(denoiser, 0.8 * latent)` is the sample of a prior of
    0.8 times the standard deviation, closer to the mode and less diverse; 1 is the model itself. The process must be one whose prior is
    centred on 0, which all are.

    **Arguments:** as for [`eqdiff.log_likelihood`][].

    **Raises:** as [`eqdiff.log_likelihood`][].
    """
    options = Options(solver, rtol, atol, max_steps, adjoint)
    return _flow(denoiser, latent, args, "decode", options, forwards=False)


def slerp(x: Example, y: Example, weight: float | Scalar) -> Example:
    r"""Spherical interpolation between two latents, equation (1): `x` at weight 0, `y` at 1.

    Keeps the length, if both have the same, and a standard normal standard normal for independent latents; for two of one direction
    it is linear interpolation.

    **Arguments:**

    - `x`, `y`: two latents of one shape; for a process whose prior is not of unit variance too.
    - `weight`: $w$; below 0 and above 1 it extrapolates along the circle.

    **Returns:** the interpolation, in the precision of `x`.

    **Raises:** `ValueError` for latents of different shapes; a runtime error if one of them is 0 or they are opposite, so that there is no
    one path between them.

    ??? cite "Reference"

        Shoemake, *Animating Rotation with Quaternion Curves*, SIGGRAPH 1985; White, *Sampling Generative Networks*, 2016.
    """
    if x.shape != y.shape:
        raise ValueError(f"slerp: latents of shapes {x.shape} and {y.shape}; expected one shape.")
    check_example("slerp", x)
    y = y.astype(x.dtype)
    w = jnp.asarray(weight).astype(x.dtype)
    unit_x, unit_y = _unit(x), _unit(y)
    # Half the angle from chord and bisector: arccos would lose half the digits near 0 and π.
    chord, bisector = _length(unit_x - unit_y), _length(unit_x + unit_y)
    angle = 2 * jnp.arctan2(chord, bisector)
    angle = eqx.error_if(
        angle,
        bisector < jnp.finfo(x.dtype).eps ** 0.75,
        "slerp: the latents are opposite: no great circle between them is the shortest. Go by way of a third latent.",
    )
    return _ratio(1 - w, angle) * x + _ratio(w, angle) * y


def _length(x: Example) -> Scalar:
    square = jnp.sum(x**2)
    zero = square == 0  # where the root has no gradient
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def _unit(x: Example) -> Example:
    # By its largest element first, so that the squares neither overflow nor vanish.
    largest = jnp.max(jnp.abs(x))
    largest = eqx.error_if(
        largest,
        ~(jnp.isfinite(largest) & (largest > 0)),
        "slerp: a latent is zero or not finite and has no direction.",
    )
    x = x / largest
    return x / _length(x)


def _ratio(weight: Scalar, angle: Scalar) -> Float[Array, ""]:
    """sin(wω)/sin ω, which is w at ω = 0."""
    small = angle < jnp.finfo(angle.dtype).eps ** 0.5
    safe = jnp.where(small, 1.0, angle)
    return jnp.where(small, weight, jnp.sin(weight * safe) / jnp.sin(safe))
