"""Clipping as diffusers does it, against its step written in NumPy; and as the papers do."""

import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


SCHEDULE = eqd.cosine_schedule(50)
X1 = np.array([1.7, -2.3])
RANGE = (-0.6, 0.5)


def oracle():
    means = np.array([[1.0, 0.5], [-0.8, -0.9]])
    return eqd.GaussianMixtureDenoiser(
        SCHEDULE, np.array([0.4, 0.6]), means, np.stack([0.1 * np.eye(2)] * 2)
    )


def ddim(denoiser, times, x, *, recompute):
    """diffusers' DDIMScheduler.step, `use_clipped_model_output` being `recompute`."""
    alpha_bar = np.asarray(SCHEDULE.alpha_bar, float)
    estimate = quick_jit(lambda t, x: (denoiser(t, x).x0, denoiser(t, x).noise))
    for t, before in zip(times, [*times[1:], None], strict=True):
        here, there = alpha_bar[t], 1.0 if before is None else alpha_bar[before]
        x0, noise = map(np.asarray, estimate(jnp.asarray(t), jnp.asarray(x)))
        x0 = np.clip(x0, *RANGE)
        if recompute:
            noise = (x - np.sqrt(here) * x0) / np.sqrt(1 - here)
        x = np.sqrt(there) * x0 + np.sqrt(1 - there) * noise
    return x


def test_both_rules_are_diffusers(x64):
    denoiser, times = oracle(), list(range(49, -1, -7))
    sampler = eqd.DDIM(times=times)
    alone = quick_jit(lambda x: sampler(eqd.ClipDataAlone(denoiser, *RANGE), x))(jnp.asarray(X1))
    both = quick_jit(lambda x: sampler(eqd.Clip(denoiser, *RANGE), x))(jnp.asarray(X1))
    np.testing.assert_allclose(alone, ddim(denoiser, times, X1, recompute=False), rtol=1e-9)
    np.testing.assert_allclose(both, ddim(denoiser, times, X1, recompute=True), rtol=1e-9)
    assert np.abs(np.asarray(alone) - np.asarray(both)).max() > 0.01, "the rules differ"


def test_ancestral_sampling_is_the_same_with_either(x64, getkey):
    denoiser, key = oracle(), getkey()
    run = quick_jit(lambda d: eqd.Ancestral(8)(d, jnp.asarray(X1), key=key))
    alone, both = run(eqd.ClipDataAlone(denoiser, *RANGE)), run(eqd.Clip(denoiser, *RANGE))
    np.testing.assert_allclose(alone, both, rtol=1e-9)


def test_bad_range():
    with pytest.raises(ValueError, match=r"ClipDataAlone\(low=1.0, high=-1.0\)"):
        eqd.ClipDataAlone(oracle(), 1.0, -1.0)
