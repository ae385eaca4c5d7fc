"""Power-law and half-life averages, and averages reconstructed after training.

What an average is, is a sum over the steps of a run with known weights: the truth here is that sum.
"""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqdiff as eqd
from eqdiff import train
from eqdiff.train._ema import ema_update


def averaged(rule, sequence, start):
    """The averages after every step of a run with these parameters."""

    def body(average, step):
        average = ema_update(rule, average, step[0], step[1])
        return average, average

    steps = jnp.arange(1, len(sequence) + 1, dtype=jnp.int32)
    return np.asarray(jax.lax.scan(body, start, (sequence, steps))[1], np.float64)


def walk(num_steps, size=20):
    """Parameters that drift towards 1 and jitter: how a network trains."""
    rng = np.random.default_rng(0)
    time = np.arange(1, num_steps + 1)[:, None]
    drift = 1 - np.exp(-8 * time / num_steps)
    wander = np.cumsum(rng.normal(size=(num_steps, size)), axis=0) / math.sqrt(num_steps)
    return drift + 0.1 * wander + 0.02 * rng.normal(size=(num_steps, size))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 5.5, 16.97])
def test_width_and_exponent(gamma):
    """Against the standard deviation of the weighting itself, by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    time, weights = (nodes + 1) / 2, weights / 2
    profile = (gamma + 1) * time**gamma * weights
    mean = np.sum(profile * time)
    width = math.sqrt(np.sum(profile * (time - mean) ** 2))
    # At γ = 0 the width is the largest there is, but for rounding.
    assert train.PowerEMA(min(width, 1 / math.sqrt(12))).gamma == pytest.approx(gamma, abs=1e-4)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 1 / math.sqrt(12)])
def test_power_average_is_the_weighted_sum(sigma_rel):
    """Equation (4) of `_ema.py`, parameters constant in each step; nothing of the start."""
    sequence = walk(300)
    gamma = train.PowerEMA(sigma_rel).gamma
    found = averaged(
        train.PowerEMA(sigma_rel),
        jnp.asarray(sequence, jnp.float32),
        jnp.full(20, 9.0, jnp.float32),
    )
    for n in (1, 2, 37, 300):
        edges = (np.arange(n + 1) / n) ** (gamma + 1)
        exact = np.diff(edges) @ sequence[:n]
        np.testing.assert_allclose(found[n - 1], exact, rtol=0, atol=2e-6)


def official_half_life(sequence, start, half_life, batch_size, ramp_up):
    """The rule of `edm`'s training loop, in images seen before the step."""
    average, seen = np.array(start), 0
    for params in sequence:
        images = half_life if ramp_up is None else min(half_life, seen * ramp_up)
        beta = 0.5 ** (batch_size / max(images, 1e-8))
        average = params + beta * (average - params)
        seen += batch_size
        yield average


@pytest.mark.parametrize("ramp_up", [0.05, 0.5, None])
def test_half_life(ramp_up):
    sequence, start = walk(200), np.full(20, 3.0)
    rule = train.HalfLife(320, batch_size=16, ramp_up=ramp_up)
    found = averaged(rule, jnp.asarray(sequence, jnp.float32), jnp.asarray(start, jnp.float32))
    expected = list(official_half_life(sequence, start, 320, 16, ramp_up))
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6)


def test_half_life_in_steps():
    """Parameters that become 0: half is left after the half-life."""
    zeros = jnp.zeros((40, 1), jnp.float32)
    found = averaged(train.HalfLife(20, ramp_up=None), zeros, jnp.ones(1, jnp.float32))
    np.testing.assert_allclose(found[[19, 39], 0], [0.5, 0.25], rtol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: train.PowerEMA(0.9999), r"relative width in \(0, 0.2886\].*EMAWarmup"),
        (lambda: train.PowerEMA(0.0), "relative width"),
        (lambda: train.PowerEMA(float("nan")), "relative width"),
        (lambda: train.HalfLife(0), "positive"),
        (lambda: train.HalfLife(10, batch_size=0), "positive whole"),
        (lambda: train.HalfLife(10, ramp_up=0.0), "positive"),
    ],
)
def test_bad_rules(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "target, tolerance", [(0.05, 1e-4), (0.07, 0.01), (0.15, 0.01), (0.03, 0.1)]
)
def test_reconstruction_is_the_tracked_average(target, tolerance):
    """From two widths at 16 steps of 1600, against an average of that width tracked in the run."""
    sequence, start = walk(1600), jnp.zeros(20, jnp.float32)
    rules = (train.PowerEMA(0.05), train.PowerEMA(0.10))
    runs = [averaged(rule, jnp.asarray(sequence, jnp.float32), start) for rule in rules]
    stored = [
        (step, rule, {"w": jnp.asarray(run[step - 1], jnp.float32), "n": 3})
        for step in range(100, 1601, 100)
        for rule, run in zip(rules, runs, strict=True)
    ]
    rule = train.PowerEMA(target)
    truth = averaged(rule, jnp.asarray(sequence, jnp.float32), start)
    for step in (1600, 1200):
        net = train.reconstruct(stored, rule, step=step)
        assert net["n"] == 3 and net["w"].dtype == jnp.float32
        found = np.linalg.norm(np.asarray(net["w"], np.float64) - truth[step - 1])
        # What it is worth: how far this average is from the parameters themselves.
        assert found < tolerance * np.linalg.norm(truth[step - 1] - sequence[step - 1])
        # Cauchy and Schwarz: no further than the profiles are apart.
        _, error = train.reconstruction([item[:2] for item in stored], rule, step=step)
        steps = np.diff((np.arange(step + 1) / step) ** (rule.gamma + 1))
        moved = np.linalg.norm(sequence[:step] - sequence[step - 1])
        assert found < 1.01 * error * np.linalg.norm(steps) * moved + 1e-5


@pytest.mark.parametrize("target", [0.03, 0.08, 0.2])
def test_error_is_that_of_the_weights_of_the_steps(target):
    """Inner products of profiles, against sums over the steps of a long run."""
    rules = (train.PowerEMA(0.05), train.PowerEMA(0.10))
    stored = [(500 * i, rule) for i in range(1, 9) for rule in rules]
    weights, error = train.reconstruction(stored, train.PowerEMA(target))

    def profile(step, rule):
        edges = np.minimum(np.arange(4001) / step, 1) ** (rule.gamma + 1)
        return np.diff(edges)

    wanted = profile(4000, train.PowerEMA(target))
    met = sum(w * profile(*item) for w, item in zip(weights, stored, strict=True))
    assert error == pytest.approx(np.linalg.norm(met - wanted) / np.linalg.norm(wanted), rel=5e-3)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    # No other weights that sum to 1 are better.
    for i, j in itertools.combinations((0, 7, 13), 2):
        for nudge in (1e-3, -1e-3):
            other = met + nudge * (profile(*stored[i]) - profile(*stored[j]))
            assert np.linalg.norm(other - wanted) > np.linalg.norm(met - wanted) - 1e-9


def test_a_stored_average_is_itself_and_later_ones_are_not_read():
    rules = (train.PowerEMA(0.05), train.PowerEMA(0.10))
    read = []

    def average(step, rule):
        return train.StoredAverage(
            step, rule, lambda: read.append(step) or jnp.full(3, float(step))
        )

    stored = [average(step, rule) for step in (10, 20, 30) for rule in rules]
    net = train.reconstruct(stored, rules[1], step=20)
    np.testing.assert_allclose(net, 20.0, rtol=1e-5)
    assert max(read) == 20


@pytest.mark.parametrize(
    "stored, options, message",
    [
        ([], {}, "the stored averages are none"),
        ([(10, train.PowerEMA(0.1), jnp.ones(2))], {"step": 11}, "of steps 10 to 10"),
        ([(10, train.PowerEMA(0.1), jnp.ones(2))], {"step": 9}, "averages until then"),
        ([(10, train.EMA(0.9), jnp.ones(2))], {}, "EMA.* is not a power law"),
        ([(0, train.PowerEMA(0.1), jnp.ones(2))], {}, "step=0"),
        (
            [(5, train.PowerEMA(0.1), jnp.ones(2)), (10, train.PowerEMA(0.1), jnp.ones(3))],
            {},
            "another architecture",
        ),
    ],
)
def test_what_cannot_be_reconstructed(stored, options, message):
    with pytest.raises(ValueError, match=message):
        train.reconstruct(stored, train.PowerEMA(0.1), **options)


def test_a_poor_reconstruction_is_said_to_be_one():
    stored = [(10, train.PowerEMA(0.05), jnp.ones(2))]
    with pytest.warns(UserWarning, match=r"only met to .*keep more checkpoints"):
        net = train.reconstruct(stored, train.PowerEMA(0.2))
    np.testing.assert_array_equal(net, 1.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:orbax")
def test_from_the_checkpoints_of_a_run(tmp_path, getkey):
    """Against an average of that width which the run kept itself."""
    kept = (train.PowerEMA(0.05), train.PowerEMA(0.10))
    optimiser = optax.sgd(0.02)
    state = train.init(
        eqx.nn.Linear(2, 2, key=getkey()),
        optimiser,
        timesteps=eqd.Uniform(eqd.VPSDE()),
        ema=(0.999, *kept, train.PowerEMA(0.15)),
        key=getkey(),
    )
    step = train.make_step(
        lambda net, t, x0, args, *, key: (jnp.sum((net(x0) - t) ** 2), {}), optimiser
    )
    checkpointer = train.Checkpointer(tmp_path, keep=1, keep_every=2)
    batch = jax.random.normal(getkey(), (4, 2)), None
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        train.stored_averages(checkpointer, state.net, kept)
    for n in range(1, 33):
        state, _ = step(state, batch)
        if n % 2 == 0:
            checkpointer.save(n, state)
    stored = train.stored_averages(
        checkpointer, eqx.filter_eval_shape(lambda: state.net), (0.999, *kept)
    )
    assert [(s.step, s.rule) for s in stored] == [(n, r) for n in range(2, 33, 2) for r in kept]
    np.testing.assert_array_equal(stored[-1].read().weight, state.ema_net(2).weight)
    found = train.reconstruct(stored, train.PowerEMA(0.15))
    truth, current = state.ema_net(3), state.net
    for name in ("weight", "bias"):
        f, t, c = (np.asarray(getattr(net, name), np.float64) for net in (found, truth, current))
        assert np.linalg.norm(f - t) < 1e-3 * np.linalg.norm(c - t)
    with pytest.raises(ValueError, match="a power law among them"):
        train.stored_averages(checkpointer, state.net, (0.999,))
