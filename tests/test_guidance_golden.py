"""Classifier guidance against guided-diffusion's `p_sample` and `ddim_sample` with a `cond_fn`."""

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_golden, load_golden

import eqdiff as eqd
from eqdiff._sampler.base import steps_along


FILE = "public_guided_guidance"
SCHEDULE = eqd.cosine_schedule(1000)


def network(c_noise, x, y, *, key=None):
    p = [float(v) for v in load_golden(FILE)["in/p"]]
    channel = jnp.arange(3, dtype=x.dtype).reshape(3, 1, 1) - 1
    time = c_noise / 1000
    mean = jnp.tanh(p[0] * x + p[1] * time + p[2] * channel + 0.05 * y.astype(x.dtype))
    return jnp.concatenate([mean, 0.8 * jnp.sin(1.3 * x + 2 * time + 0.5)])


def log_prob(t, x, y):
    """The function whose gradient the official `cond_fn` is."""
    c_noise, scale = SCHEDULE.c_noise(t).astype(x.dtype), float(load_golden(FILE)["in/p"][3])
    return jnp.sum(scale * (0.1 * y.astype(x.dtype) * x - x**2 / 2) / (1 + c_noise / 1000))


def denoiser_of(clip: str) -> eqd.AbstractDenoiser:
    denoiser = eqd.Denoiser(network, SCHEDULE, variance=eqd.LearnedRange())
    return eqd.Clip(denoiser) if clip == "clip1" else denoiser


def steps(monkeypatch, sampler, denoiser):
    """One step from each of the stored states, each at its own time and with its recorded noise."""
    golden = load_golden(FILE)
    x, noise = jnp.asarray(golden["in/x"], float), jnp.asarray(golden["in/noise"], float)
    each = steps_along(SCHEDULE, sampler.grid.times(SCHEDULE), like=x)
    # The stored index counts from the clean end.
    place = len(each.t) - 1 - golden["in/t"]

    @jax.jit
    @jax.vmap
    def run(i, x, y, noise):
        monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: noise)
        step = jax.tree.map(lambda leaf: leaf[i], each)
        return sampler.step(denoiser, step, x, y, key=jax.random.key(0))

    return run(jnp.asarray(place), x, jnp.asarray(golden["in/y"], jnp.int32), noise)


@pytest.mark.parametrize("clip", ["clip0", "clip1"])
def test_mean_guidance(clip, monkeypatch):
    """Clipping comes before the shift, which is by the respaced schedule's learned variance."""
    sampler = eqd.Ancestral(50, guidance=eqd.MeanShift(log_prob))
    x, x0 = steps(monkeypatch, sampler, denoiser_of(clip))
    assert_golden(x, FILE, f"p_sample-{clip}/sample")
    assert_golden(x0, FILE, f"p_sample-{clip}/pred_xstart")


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("clip", ["clip0", "clip1"])
def test_score_guidance(clip, eta, monkeypatch):
    """The guided estimate of a clipped one is not clipped again."""
    guided = eqd.ClassifierGuidance(denoiser_of(clip), log_prob)
    x, x0 = steps(monkeypatch, eqd.DDIM(50, eta=eta), guided)
    assert_golden(x, FILE, f"ddim_sample-{clip}-eta{eta}/sample")
    assert_golden(x0, FILE, f"ddim_sample-{clip}-eta{eta}/pred_xstart")
