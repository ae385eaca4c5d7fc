"""Strategies that learn: the same on any number of devices and microbatches, resumed exactly."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import X64
from toys import quick_jit

import eqdiff as eqd
from eqdiff import train


RTOL = 1e-12 if X64 else 2e-6


class Scale(eqx.Module):
    weight: jax.Array


def loss_fn(net, t, x0, args, *, key):
    """Large at small times, noisy, and dependent on the network."""
    noise = jax.random.normal(key, x0.shape, x0.dtype)
    size = 1 / (1 + t.astype(x0.dtype))
    return size * jnp.mean((net.weight * x0 - noise) ** 2), {}


OPTIMISER = optax.sgd(1e-2)
SCHEDULE = eqd.cosine_schedule(4)
BATCHES = np.random.default_rng(0).normal(size=(12, 16, 3))


def make_state(name, seed=0):
    make = {
        "official": lambda: eqd.LossSecondMoment(SCHEDULE, history=3, uniform_mix=0.1),
        "smoothed": lambda: eqd.SmoothedSecondMoment(SCHEDULE),
    }[name]
    net = Scale(jnp.zeros(3))
    return train.init(net, OPTIMISER, timesteps=make(), ema=(), key=jax.random.key(seed))


def trained(name, **options):
    step = train.make_step(loss_fn, OPTIMISER, **options)
    state = make_state(name)
    for x0 in BATCHES:
        state, _ = step(state, (x0.astype(float if X64 else np.float32), None))
    return state


@pytest.fixture(scope="module")
def plainly_trained():
    return {name: trained(name) for name in ("official", "smoothed")}


@pytest.mark.parametrize("name", ["official", "smoothed"])
@pytest.mark.parametrize(
    "options",
    [{"mesh": True}, {"accumulate": 2}, {"accumulate": 4}],
    ids=["2 devices", "2 microbatches", "4 microbatches"],
)
def test_devices_and_microbatches_change_nothing(name, options, plainly_trained):
    """A strategy is updated with all losses of a batch at once, in its order."""
    options = dict(options)
    if options.pop("mesh", False):
        options["mesh"] = train.data_mesh()
    state, other = plainly_trained[name], trained(name, **options)
    for a, b in zip(
        jax.tree.leaves((state.timestep_state, state.net)),
        jax.tree.leaves((other.timestep_state, other.net)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=100 * RTOL, atol=10 * RTOL)
    p = np.asarray(state.timesteps.probabilities(state.timestep_state))
    assert p[0] > 2 * p[3]


@pytest.mark.parametrize("name", ["official", "smoothed"])
def test_saved_and_resumed_exactly(name, tmp_path):
    step = train.make_step(loss_fn, OPTIMISER)
    state, checkpointer = make_state(name), train.Checkpointer(tmp_path)
    for n, x0 in enumerate(BATCHES):
        if n == 8:
            checkpointer.save(n, state)
        state, _ = step(state, (x0, None))
    resumed, _, at = checkpointer.restore(eqx.filter_eval_shape(lambda: make_state(name, 1)))
    assert at == 8
    p = resumed.timesteps.probabilities(resumed.timestep_state)
    assert float(p[0]) > 1.5 * float(p[3])
    for x0 in BATCHES[8:]:
        resumed, _ = step(resumed, (x0, None))
    key = jax.random.key(3)
    sample = quick_jit(lambda s: state.timesteps.sample(s, 50, key=key))
    mine, other = (sample(s.timestep_state) for s in (state, resumed))
    for a, b in zip(
        jax.tree.leaves((mine, state.timestep_state, state.net)),
        jax.tree.leaves((other, resumed.timestep_state, resumed.net)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
