"""Several steps in one call: bit for bit those of as many calls."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import X64

import eqdiff as eqd
from eqdiff import train
from eqdiff._process import AbstractProcess, linear_schedule
from eqdiff._timesteps import AbstractTimesteps


SCHEDULE = linear_schedule(100)
X0 = np.random.default_rng(0).normal(size=(6, 8, 3)).astype(float if X64 else np.float32)
ARGS = np.arange(48, dtype=np.int32).reshape(6, 8)


class Learning(AbstractTimesteps):
    """Times that depend on every loss seen."""

    process: AbstractProcess = SCHEDULE

    def init(self):
        return jnp.zeros(())

    def sample(self, state, n, *, key):
        t = jax.random.randint(key, (n,), 0, 100, jnp.int32)
        return t, 1 + state * jnp.ones(n)

    def update(self, state, t, losses):
        return 0.5 * state + jnp.mean(losses).astype(state.dtype)


def loss_fn(net, t, x0, args, *, key):
    noise = jax.random.normal(key, x0.shape, x0.dtype)
    loss = jnp.mean((net(x0 + noise) - noise) ** 2) * (1 + t.astype(x0.dtype) / 100)
    if args is not None:
        loss = loss + 0.01 * args.astype(x0.dtype) * jnp.mean(net(x0))
    return loss, {"size": jnp.mean(jnp.abs(noise))}


OPTIMISER = optax.chain(
    optax.clip_by_global_norm(0.5), optax.adam(optax.linear_schedule(0.0, 1e-2, 4))
)


def make_state():
    key = jax.random.key(0)
    net = jax.tree.map(
        lambda x: x.astype(float) if eqx.is_array(x) else x, eqx.nn.MLP(3, 3, 8, 1, key=key)
    )
    return train.init(net, OPTIMISER, timesteps=Learning(), ema=(0.9, train.EMA(0.5)), key=key)


def in_calls(batches, **options):
    state, step = make_state(), train.make_step(loss_fn, OPTIMISER, **options)
    metrics = []
    for batch in zip(*batches, strict=True):
        state, each = step(state, batch)
        metrics.append(each)
    return state, metrics


def numbers(tree):
    tree = eqx.filter(tree, eqx.is_array)

    def number(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    return [number(x) for x in jax.tree.leaves(tree)]


def assert_identical(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(numbers(one), numbers(two), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("mesh", [None, "two devices"])
def test_bit_for_bit_as_single_steps(mesh, accumulate):
    options = {"accumulate": accumulate, "mesh": None if mesh is None else train.data_mesh()}
    state, metrics = in_calls((X0, ARGS), **options)
    steps = train.make_steps(loss_fn, OPTIMISER, **options)
    other, first = steps(make_state(), (X0[:3], ARGS[:3]))
    other, second = steps(other, (X0[3:], ARGS[3:]))
    assert_identical(state, other)
    assert first.loss.shape == (3,) and first.quartile_counts.shape == (3, 4)
    for n, one in enumerate(metrics):
        stack = first if n < 3 else second
        assert_identical(one, jax.tree.map(lambda x, n=n: x[n % 3], stack))
    assert train.summarise([first, second]) == pytest.approx(train.summarise(metrics), rel=1e-6)
    # A single step can be reported together with several.
    assert train.summarise([*metrics[:3], second]) == pytest.approx(
        train.summarise(metrics), rel=1e-6
    )


@pytest.mark.slow
def test_convolutions(getkey):
    """To rounding: XLA's kernels for them on a CPU are others in a loop than outside."""
    net, schedule = eqd.nn.presets.iddpm_digits(key=getkey()), eqd.cosine_schedule(100)
    timesteps, key, optimiser = eqd.Uniform(schedule), getkey(), optax.adam(1e-3)

    def loss_fn(net, t, x0, args, *, key):
        denoiser = eqd.Denoiser(net, schedule, variance=eqd.LearnedRange())
        return eqd.l_simple(eqd.predict(denoiser, t, x0, args, key=key)), {}

    x0 = np.random.default_rng(0).normal(size=(3, 4, 1, 8, 8)).astype(np.float32)
    one, several = (train.init(net, optimiser, timesteps=timesteps, key=key) for _ in range(2))
    step, losses = train.make_step(loss_fn, optimiser), []
    for batch in x0:
        one, metrics = step(one, (batch, None))
        losses.append(metrics.loss)
    several, metrics = train.make_steps(loss_fn, optimiser)(several, (x0, None))
    np.testing.assert_allclose(metrics.loss, losses, rtol=1e-5)
    for name, vector in one.params.items():
        # Adam moves a parameter by 1e-3 a step, however small its gradient.
        np.testing.assert_allclose(several.params[name], vector, rtol=1e-5, atol=1e-5)


def test_compiled_once_and_state_is_donated():
    traces = []

    def counting(*args, **kwargs):
        traces.append(1)
        return loss_fn(*args, **kwargs)

    steps = train.make_steps(counting, OPTIMISER)
    first = make_state()
    second, _ = steps(first, (X0[:2], ARGS[:2]))
    third, _ = steps(second, (X0[2:4], ARGS[2:4]))
    assert len(traces) == 1 and int(third.step) == 4
    assert all(x.is_deleted() for x in jax.tree.leaves(eqx.filter(second, eqx.is_array)))


def test_a_spoilt_step_among_several():
    x0 = X0.copy()
    x0[1, 0, 0] = np.nan
    state, metrics = train.make_steps(loss_fn, OPTIMISER)(make_state(), (x0[:2], ARGS[:2]))
    np.testing.assert_array_equal(metrics.nonfinite, [False, True])
    before, _ = in_calls((X0[:1], ARGS[:1]))
    for part in ("params", "ema", "opt_state"):
        assert_identical(getattr(state, part), getattr(before, part))
    assert int(state.step) == 2 and train.summarise([metrics])["nonfinite"] == 1


def test_no_conditions():
    _, metrics = train.make_steps(loss_fn, OPTIMISER)(make_state(), (X0, None))
    assert metrics.loss.shape == (6,) and np.isfinite(metrics.loss).all()


@pytest.mark.parametrize(
    "batches, message",
    [
        ((X0[0, 0], None), "steps and examples"),
        ((X0, ARGS[:5]), "steps and examples"),
        ((X0, ARGS[:, :7]), "steps and examples"),
        ((X0[:0], ARGS[:0]), "at least one step"),
        ((X0[:, :7], ARGS[:, :7]), "6 or 8"),
        (X0, r"pair \(x0, args\)"),
    ],
)
def test_wrong_stacks(batches, message):
    steps = train.make_steps(loss_fn, OPTIMISER, accumulate=2)
    with pytest.raises(ValueError, match=message):
        steps(make_state(), batches)


def test_wrong_options():
    with pytest.raises(ValueError, match="at least one microbatch"):
        train.make_steps(loss_fn, OPTIMISER, accumulate=0)
    with pytest.raises(ValueError, match="data_mesh"):
        train.make_steps(loss_fn, OPTIMISER, mesh=jax.make_mesh((2,), ("batch",)))
