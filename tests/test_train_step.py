"""The train step against gradients by hand, and invariances: microbatches, devices, donation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import X64

from eqdiff import train
from eqdiff._denoiser import Denoiser
from eqdiff._parameterisation import PredictNoise
from eqdiff._predict import predict
from eqdiff._process import AbstractProcess, cosine_schedule, linear_schedule, VPSDE
from eqdiff._timesteps import AbstractTimesteps, LowDiscrepancy, Uniform


STEPS = 100
SCHEDULE = linear_schedule(STEPS)
TOLERANCE = 1e-12 if X64 else 2e-6


class Weighted(AbstractTimesteps):
    """Times of unequal probability whose state is the last update."""

    process: AbstractProcess = SCHEDULE

    def init(self):
        return {"t": jnp.zeros(8, jnp.int32), "losses": jnp.zeros(8)}

    def sample(self, state, n, *, key):
        t = jax.random.randint(key, (n,), 0, STEPS, jnp.int32)
        return t, 1 + t.astype(float) / STEPS

    def update(self, state, t, losses):
        return {"t": t, "losses": losses.astype(float)}


def loss_fn(net, t, x0, args, *, key):
    """Depends on every argument; per example."""
    noise = jax.random.normal(key, x0.shape, x0.dtype)
    error = net(x0 + noise) - noise
    loss = jnp.mean(error**2) * (1 + t.astype(x0.dtype) / STEPS)
    if args is not None:
        loss = loss + args.astype(x0.dtype) * jnp.mean(net(x0))
    return loss, {"error": jnp.mean(jnp.abs(error))}


def make_net(key):
    net = eqx.nn.MLP(3, 3, 8, 1, key=key)
    return jax.tree.map(lambda x: x.astype(float) if eqx.is_array(x) else x, net)


def make_batch(key, n=8):
    return jax.random.normal(key, (n, 3)), jnp.arange(n, dtype=jnp.int32)


def assert_same(a, b, *, tolerance=0.0):
    a, b = eqx.filter(a, eqx.is_array), eqx.filter(b, eqx.is_array)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=tolerance, atol=tolerance)


def run(net, key, batches, *, timesteps=None, optimiser=None, ema=(0.9,), **options):
    optimiser = optax.adam(1e-2) if optimiser is None else optimiser
    timesteps = Weighted() if timesteps is None else timesteps
    state = train.init(net, optimiser, timesteps=timesteps, ema=ema, key=key)
    step = train.make_step(loss_fn, optimiser, **options)
    reported = []
    for batch in batches:
        state, metrics = step(state, batch)
        reported.append(metrics)
    return state, reported


def expected_loss(net, state, batch):
    """Equation (1) of `_step.py`, example by example, from the documented keys."""
    x0, args = batch
    key = jax.random.fold_in(state.key, state.step)
    times_key, examples_key = jax.random.split(key)
    t, weights = state.timesteps.sample(state.timestep_state, len(x0), key=times_key)
    keys = jax.random.split(examples_key, len(x0))
    losses = [loss_fn(net, *e, key=k)[0] for *e, k in zip(t, x0, args, keys, strict=True)]
    return sum(w * l for w, l in zip(weights, losses, strict=True)) / len(x0), (t, losses)


@pytest.mark.slow
def test_one_step_of_gradient_descent(getkey):
    net, key, batch = make_net(getkey()), getkey(), make_batch(getkey())
    optimiser, ema = optax.sgd(0.1), (train.EMA(0.75),)
    start = train.init(net, optimiser, timesteps=Weighted(), ema=ema, key=key)
    loss, (t, losses) = expected_loss(net, start, batch)
    gradient = eqx.filter_grad(lambda net: expected_loss(net, start, batch)[0])(net)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient)))

    state, (metrics,) = run(net, key, [batch], optimiser=optimiser, ema=ema)
    stepped = eqx.apply_updates(net, jax.tree.map(lambda g: -0.1 * g, gradient))
    assert_same(state.net, stepped, tolerance=TOLERANCE)
    averaged = jax.tree.map(
        lambda p, q: 0.75 * p + 0.25 * q if eqx.is_array(p) else p, net, stepped
    )
    assert_same(state.ema_net(), averaged, tolerance=TOLERANCE)
    assert int(state.step) == 1
    np.testing.assert_allclose(metrics.loss, loss, rtol=10 * TOLERANCE)
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=10 * TOLERANCE)
    np.testing.assert_allclose(metrics.update_norm, 0.1 * norm, rtol=10 * TOLERANCE)
    after = jax.tree.leaves(eqx.filter(stepped, eqx.is_inexact_array))
    after = np.sqrt(sum(float(jnp.sum(x**2)) for x in after))
    np.testing.assert_allclose(metrics.param_norm, after, rtol=10 * TOLERANCE)
    # The strategy's update receives unweighted losses, in the order of the batch.
    np.testing.assert_array_equal(state.timestep_state["t"], t)
    np.testing.assert_allclose(state.timestep_state["losses"], losses, rtol=10 * TOLERANCE)


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulation_changes_nothing(accumulate, getkey):
    net, key = make_net(getkey()), getkey()
    batches = [make_batch(getkey()) for _ in range(3)]
    whole, reported = run(net, key, batches)
    parts, reported_parts = run(net, key, batches, accumulate=accumulate)
    assert_same(whole, parts, tolerance=10 * TOLERANCE)
    assert_same(reported, reported_parts, tolerance=10 * TOLERANCE)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("make_mesh", [train.data_mesh, lambda: jax.make_mesh((2,), ("data",))])
def test_devices_change_nothing(make_mesh, accumulate, getkey):
    assert jax.device_count() == 2
    net, key = make_net(getkey()), getkey()
    batches = [make_batch(getkey()) for _ in range(3)]
    one, reported_one = run(net, key, batches, accumulate=accumulate)
    two, reported_two = run(net, key, batches, accumulate=accumulate, mesh=make_mesh())
    assert_same(one, two, tolerance=10 * TOLERANCE)
    assert_same(reported_one, reported_two, tolerance=10 * TOLERANCE)
    assert all(
        x.sharding.is_fully_replicated and len(x.devices()) == 2
        for x in jax.tree.leaves(eqx.filter(two, eqx.is_array))
    )


def test_work_is_split_between_devices(getkey):
    seen = []

    def spy(net, t, x0, args, *, key):
        loss, terms = loss_fn(net, t, x0, args, key=key)
        jax.debug.inspect_array_sharding(x0, callback=seen.append)
        return loss, terms

    optimiser = optax.adam(1e-2)
    state = train.init(make_net(getkey()), optimiser, timesteps=Uniform(SCHEDULE), key=getkey())
    step = train.make_step(spy, optimiser, mesh=train.data_mesh())
    step(state, make_batch(getkey()))
    assert seen and all(s.shard_shape((8, 3)) == (4, 3) for s in seen)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [None, "two devices"])
def test_compiled_once_and_state_is_donated(mesh, getkey):
    traces = []

    def counting(net, t, x0, args, *, key):
        traces.append(1)
        return loss_fn(net, t, x0, args, key=key)

    net, batch, optimiser = make_net(getkey()), make_batch(getkey()), optax.adam(1e-2)
    mesh = None if mesh is None else train.data_mesh()
    first = train.init(net, optimiser, timesteps=Uniform(SCHEDULE), ema=(0.9, 0.5), key=getkey())
    step = train.make_step(counting, optimiser, mesh=mesh)
    second, _ = step(first, batch)
    third, _ = step(second, batch)
    fourth, metrics = step(third, batch)
    assert len(traces) == 1
    assert all(x.is_deleted() for x in jax.tree.leaves(eqx.filter(third, eqx.is_array)))
    # The network given to init is untouched, and the new state can be used.
    assert np.isfinite(net(batch[0][0])).all() and np.isfinite(fourth.ema_net(1)(batch[0][0])).all()
    assert np.isfinite(metrics.loss)


@pytest.mark.parametrize(
    "optimiser",
    [
        optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-3)),
        optax.chain(optax.adam(1e-3), optax.contrib.reduce_on_plateau(patience=1)),
        optax.contrib.schedule_free_adamw(1e-3),
        optax.MultiSteps(optax.adam(1e-3), 2).gradient_transformation(),
        optax.adam(optax.warmup_cosine_decay_schedule(0.0, 1e-3, 2, 10)),
    ],
    ids=["clip", "needs the loss", "state is the parameters", "multi-step", "schedule"],
)
def test_optimisers(optimiser, getkey):
    state, reported = run(
        make_net(getkey()), getkey(), [make_batch(getkey())] * 3, optimiser=optimiser
    )
    assert int(state.step) == 3 and all(np.isfinite(m.loss) for m in reported)


@pytest.mark.slow
def test_gradient_norm_is_before_clipping(getkey):
    net, key, batches = make_net(getkey()), getkey(), [make_batch(getkey())]
    _, (free,) = run(net, key, batches)
    optimiser = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    state, (clipped,) = run(net, key, batches, optimiser=optimiser)
    assert float(free.grad_norm) == float(clipped.grad_norm) > 1e-3
    moved = jax.tree.map(
        lambda p, q: p - q, *(eqx.filter(n, eqx.is_inexact_array) for n in (net, state.net))
    )
    np.testing.assert_allclose(optax.tree.norm(moved), 1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "timesteps", [Uniform(SCHEDULE), LowDiscrepancy(SCHEDULE), Uniform(VPSDE())]
)
def test_quartiles(timesteps, getkey):
    batch = make_batch(getkey(), 16)
    state, (metrics,) = run(make_net(getkey()), getkey(), [batch], timesteps=timesteps)
    start = eqx.tree_at(lambda s: s.step, state, jnp.zeros((), jnp.int32))
    key = jax.random.split(jax.random.fold_in(start.key, 0))[0]
    t, _ = timesteps.sample(None, 16, key=key)
    unit = t / STEPS if t.dtype == jnp.int32 else (t - 1e-5) / (1 - 1e-5)
    counts = np.bincount([int(4 * u) for u in np.asarray(unit)], minlength=4)
    np.testing.assert_array_equal(metrics.quartile_counts, counts)
    # All weights are 1 here, so the quarters add up to the mean.
    for name, whole in {"loss": metrics.loss, **metrics.terms}.items():
        np.testing.assert_allclose(np.sum(metrics.quartile_sums[name]) / 16, whole, rtol=1e-5)


def denoising_loss(process):
    def loss_fn(net, t, x0, args, *, key):
        denoiser = Denoiser(lambda c_noise, x, args, *, key: net(x), process, PredictNoise())
        return jnp.mean(predict(denoiser, t, x0, args, key=key).noise ** 2), {}

    return loss_fn


def one_step(loss_process, timesteps_process, key, **options):
    optimiser, net = optax.sgd(0.1), make_net(key)
    state = train.init(net, optimiser, timesteps=Uniform(timesteps_process), key=key)
    step = train.make_step(denoising_loss(loss_process), optimiser, **options)
    return step(state, make_batch(key))[1]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "drawn, used",
    [
        (linear_schedule(4000), linear_schedule(1000)),
        (cosine_schedule(STEPS), SCHEDULE),
        (VPSDE(), VPSDE(0.1, 10.0)),
        (VPSDE(), SCHEDULE),
        (SCHEDULE, VPSDE()),
    ],
    ids=["longer", "other steps", "other rates", "steps of an SDE", "SDE at steps"],
)
def test_a_loss_on_another_process_is_refused(drawn, used, accumulate, getkey):
    """`Uniform(4000)` on a schedule of 1000 steps once trained in silence, on clamped tables."""
    with pytest.raises(ValueError, match="process|schedule"):
        one_step(used, drawn, getkey(), accumulate=accumulate)


@pytest.mark.parametrize(
    "make",
    [
        lambda: linear_schedule(STEPS),
        lambda: VPSDE(),
        lambda: VPSDE(jnp.asarray(0.1), jnp.asarray(20.0)),
    ],
    ids=["schedule", "SDE", "SDE of arrays"],
)
def test_a_loss_on_an_equal_process_trains(make, getkey):
    assert np.isfinite(one_step(make(), make(), getkey()).loss)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_nonfinite_step_is_flagged_and_spoils_nothing(bad, getkey):
    x0, args = make_batch(getkey())
    spoilt = x0.at[3, 1].set(bad), args
    net, key, adam = make_net(getkey()), getkey(), optax.adam(1e-2)
    kept, reported = run(net, key, [(x0, args), spoilt], optimiser=adam)
    assert [bool(m.nonfinite) for m in reported] == [False, True]
    assert float(reported[1].update_norm) == 0 < float(reported[0].update_norm)
    assert float(reported[1].param_norm) == float(reported[0].param_norm)
    before, _ = run(net, key, [(x0, args)], optimiser=adam)
    for part in ("params", "ema", "opt_state"):
        assert eqx.tree_equal(getattr(kept, part), getattr(before, part)), part
    assert int(kept.step) == 2, "the next step draws other times"


def test_steps_differ_and_repeat(getkey):
    net, key, batch = make_net(getkey()), getkey(), make_batch(getkey())
    # With no learning only the keys change from step to step.
    _, reported = run(net, key, [batch, batch], optimiser=optax.sgd(0.0))
    _, again = run(net, key, [batch, batch], optimiser=optax.sgd(0.0))
    losses = [float(m.loss) for m in reported]
    assert losses[0] != losses[1] and losses == [float(m.loss) for m in again]


def test_unconditional_batch_of_numpy(getkey):
    x0 = np.asarray(make_batch(getkey())[0])
    state, (metrics,) = run(make_net(getkey()), getkey(), [(x0, None)])
    assert np.isfinite(metrics.loss) and int(state.step) == 1


@pytest.mark.parametrize(
    "size, options, nearest",
    [
        (9, {"accumulate": 4}, "8 or 12"),
        (3, {"accumulate": 4}, "such as 4"),
        (7, {"mesh": True}, "6 or 8"),
        (6, {"mesh": True, "accumulate": 2}, "4 or 8"),
        (0, {}, "such as 1"),
    ],
)
def test_uneven_batches(size, options, nearest, getkey):
    if "mesh" in options:
        options = {**options, "mesh": train.data_mesh()}
    with pytest.raises(ValueError, match=nearest):
        run(make_net(getkey()), getkey(), [make_batch(getkey(), size)], **options)


@pytest.mark.parametrize(
    "batch, message",
    [
        (jnp.zeros((8, 3)), r"pair \(x0, args\)"),
        ((jnp.zeros((8, 3)), jnp.zeros(7)), "share their leading axis"),
        ((jnp.zeros(()), None), "share their leading axis"),
    ],
)
def test_wrong_batches(batch, message, getkey):
    with pytest.raises(ValueError, match=message):
        run(make_net(getkey()), getkey(), [batch])


@pytest.mark.parametrize(
    "out, message",
    [
        (lambda x: jnp.mean(x), "return loss, {}"),
        (lambda x: (x, {}), "the loss has shape"),
        (lambda x: (jnp.mean(x), {"a": x}), "the term 'a' has shape"),
    ],
)
def test_wrong_losses(out, message, getkey):
    optimiser = optax.sgd(0.1)
    state = train.init(make_net(getkey()), optimiser, timesteps=Uniform(SCHEDULE), key=getkey())
    step = train.make_step(lambda net, t, x0, args, *, key: out(net(x0)), optimiser)
    with pytest.raises(ValueError, match=message):
        step(state, make_batch(getkey()))


def test_wrong_options():
    with pytest.raises(ValueError, match="at least one microbatch"):
        train.make_step(loss_fn, optax.sgd(0.1), accumulate=0)
    with pytest.raises(ValueError, match="data_mesh"):
        train.make_step(loss_fn, optax.sgd(0.1), mesh=jax.make_mesh((2,), ("batch",)))
