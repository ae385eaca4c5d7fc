"""The toy networks that the golden vectors were made with (`golden/README.md`): elementwise, two
dozen flops.

They look like any network of eqdiff, `net(c_noise, x, args, *, key)`, on one channels-first
example.
"""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import eqdiff as eqd


# These tests compile far longer than they run.
quick_jit = ft.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": "0",
        "xla_llvm_disable_expensive_passes": True,
    },
)


def _channels(x):
    """k − (C − 1)/2, shaped to broadcast against a channels-first image."""
    k = jnp.arange(x.shape[0], dtype=x.dtype) - 0.5 * (x.shape[0] - 1)
    return k.reshape(-1, *(1,) * (x.ndim - 1))


class IdiffToy(eqx.Module):
    """improved-diffusion's toy: a, b, c, d shape the mean, vs and vb the variance outputs."""

    parameters: Float[Array, "6"]  # a, b, c, d, vs, vb
    mean_type: str = eqx.field(static=True)
    learned: bool = eqx.field(static=True)

    def __init__(self, abcd, mean_type: str, variance_type: str, dtype=None):
        variance = (1.5, -3.0) if variance_type == "LEARNED" else (0.8, 0.0)
        self.parameters = jnp.asarray(np.concatenate([abcd, variance]), dtype)
        self.mean_type = mean_type
        self.learned = variance_type in VARIANCES and VARIANCES[variance_type].learned

    def __call__(self, t, x, args=None, *, key=None):
        a, b, c, d, scale, offset = self.parameters
        of_class = 0 if args is None else d * args
        h = jnp.tanh(a * x + b * t / 1000 + c * _channels(x) + of_class)
        if self.mean_type == "START_X":
            h = 0.998 * x + 0.01 * h
        elif self.mean_type == "PREVIOUS_X":
            h = 0.995 * x + 0.01 * h
        if not self.learned:
            return h
        return jnp.concatenate([h, scale * jnp.sin(1.3 * x + 2 * t / 1000 + 0.5) + offset])


class SdeToy(eqx.Module):
    """score_sde's toys: `exploding` is the VE network (which takes σ), the other VP's and
    sub-VP's.
    """

    parameters: Float[Array, "3"]
    exploding: bool = eqx.field(static=True)

    def __call__(self, s, x, args=None, *, key=None):
        p0, p1, p2 = self.parameters
        if self.exploding:
            return (-0.9 * x + p0 * jnp.tanh(x) + p1 + p2 * _channels(x)) / (1 + s**2)
        return jnp.tanh(p0 * x + p1 * jnp.log1p(s) + p2 * _channels(x))


def short_schedule(num_steps):
    """A schedule of so many steps, where it does not matter how noisy they are."""
    return eqd.Schedule(np.linspace(0.01, 0.02, num_steps))


PARAMETERISATIONS = {
    "EPSILON": eqd.PredictNoise(),
    "START_X": eqd.PredictData(),
    "PREVIOUS_X": eqd.PreviousMean(),
}
VARIANCES = {
    "FIXED_SMALL": eqd.FixedSmall(),
    "FIXED_LARGE": eqd.FixedLarge(),
    "LEARNED": eqd.Learned(),
    "LEARNED_RANGE": eqd.LearnedRange(),
}


def idiff_denoiser(schedule, abcd, mean_type, variance_type, dtype=None):
    """The denoiser that improved-diffusion's `(ModelMeanType, ModelVarType)` of the toy stands
    for.
    """
    return eqd.Denoiser(
        IdiffToy(abcd, mean_type, variance_type, dtype),
        schedule,
        PARAMETERISATIONS[mean_type],
        variance=VARIANCES[variance_type],
    )


def without_rescaling(schedule):
    """As trained with `rescale_timesteps=False`: c_noise is the index in the original schedule."""
    return eqd.Schedule(schedule.betas, c_noise=schedule.timesteps, timesteps=schedule.timesteps)


def sde_denoiser(process, p, dtype=None):
    """The denoiser that score_sde's `get_score_fn(sde, toy, continuous=True)` stands for."""
    exploding = isinstance(process, eqd.VESDE)
    net = SdeToy(jnp.asarray(p, dtype), exploding)
    if exploding:
        # The official VE network's time input is σ itself, and it returns the score.
        return eqd.Denoiser(
            net, process, eqd.PredictScore(), c_noise=lambda process, t: process.sigma(t)
        )
    return eqd.Denoiser(net, process, eqd.PredictNoise())
