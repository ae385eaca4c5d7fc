"""Times drawn by the size of past losses: the official sampler, a sequential FIFO, and the smoothed
strategy.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.stats
from conftest import X64
from helpers import assert_golden, load_golden
from toys import quick_jit, short_schedule

import eqdiff as eqd
from eqdiff._timesteps.smoothed import bin_edges


GOLDEN = "public_idiff_pieces"
CASES = {"hist": (6, 10, 0.001), "hist2": (8, 3, 0.05)}
RTOL = 1e-12 if X64 else 2e-6

STRATEGIES = {
    "official": lambda: eqd.LossSecondMoment(short_schedule(30), history=2, uniform_mix=0.1),
    "smoothed": lambda: eqd.SmoothedSecondMoment(short_schedule(30)),
}
strategies = pytest.mark.parametrize("name", STRATEGIES)


class Fifo:
    """What the official resampler does, one loss after the other."""

    def __init__(self, num_steps, size):
        self.rows, self.size = [[] for _ in range(num_steps)], size

    def push(self, t, losses):
        for step, loss in zip(t, losses, strict=True):
            if np.isfinite(loss):
                self.rows[step] = [*self.rows[step], loss][-self.size :]

    def probabilities(self, mix):
        if any(len(row) < self.size for row in self.rows):
            return np.full(len(self.rows), 1 / len(self.rows))
        roots = np.array([np.sqrt(np.mean(np.square(row))) for row in self.rows])
        return (1 - mix) * roots / roots.sum() + mix / len(self.rows)


def in_order(row, written, size):
    """A ring from its oldest to its newest loss."""
    return row[:written] if written < size else np.roll(row, -(written % size))


def probabilities_of(strategy, state):
    return quick_jit(strategy.probabilities)(state)


def runner(strategy):
    """`run(state, ts, losses)` takes in one batch after the other and returns every state's
    probabilities.
    """

    @quick_jit
    def run(state, ts, losses):
        def body(state, batch):
            state = strategy.update(state, *batch)
            return state, strategy.probabilities(state)

        return jax.lax.scan(body, state, (ts, losses))

    return run


@pytest.fixture(scope="module")
def profile():
    """Second moments over two orders of magnitude, and noisy losses drawn from them."""
    rng = np.random.default_rng(0)
    scale = 30 / (1 + np.arange(30)) ** 1.5

    def losses(t):
        return scale[t] * rng.exponential(size=np.shape(t))

    return scale, losses


def warmed(strategy, losses, batches=40):
    """A state that has seen every step often."""
    ts = np.stack([np.random.default_rng(i).permutation(30) for i in range(batches)])
    state = strategy.init()
    values = jnp.asarray(losses(ts), float)
    return runner(strategy)(state, jnp.asarray(ts, jnp.int32), values)[0]


@pytest.mark.parametrize("case", CASES)
def test_golden_sequence(case):
    """The official weights after each of many batches, and its histories at the end."""
    g, (num_steps, size, mix) = load_golden(GOLDEN), CASES[case]
    base = f"resampler/{case}"
    strategy = eqd.LossSecondMoment(short_schedule(num_steps), history=size, uniform_mix=mix)
    ts = jnp.asarray(g[f"{base}/ts"], jnp.int32)
    losses = jnp.asarray(g[f"{base}/losses"], float)
    state, p = runner(strategy)(strategy.init(), ts, losses)
    # Official weights are ones during warm-up and normalised afterwards.
    expected = g[f"{base}/weights"] / g[f"{base}/weights"].sum(axis=1, keepdims=True)
    assert_golden(p, GOLDEN, f"{base}/weights", expected=expected)
    warm = g[f"{base}/warmed"].astype(bool)
    assert 0 < warm.sum() < warm.size
    np.testing.assert_array_equal(np.all(np.asarray(p) == np.asarray(p)[:1, :1], axis=1), ~warm)
    np.testing.assert_array_equal(
        np.minimum(state.written, size), g[f"{base}/loss_counts"].astype(int)
    )
    rings = zip(np.asarray(state.losses), np.asarray(state.written), strict=True)
    assert_golden(
        np.stack([in_order(row, written, size) for row, written in rings]),
        GOLDEN,
        f"{base}/loss_history",
    )
    # Their draws are NumPy's, but the weight of each is a function of the time.
    sample = quick_jit(lambda state, key: strategy.sample(state, 500, key=key))
    drawn, weights = sample(state, jax.random.key(0))
    table = np.full(num_steps, np.nan)
    table[np.asarray(drawn)] = weights
    assert_golden(table[g[f"{base}/sample_idx"]].astype(np.float32), GOLDEN, f"{base}/sample_w")


@pytest.mark.parametrize("history", [1, 3, 5])
def test_equals_a_sequential_fifo(history):
    """Batches with few and many repeats (more than the history), and losses that are not finite."""
    rng = np.random.default_rng(history)
    num_steps, batches, n = 5, 30, 17
    ts = rng.integers(0, num_steps, (batches, n))
    # Some batches are almost all at one time, more often than the history is deep.
    ts[::4] = np.where(rng.random((len(ts[::4]), n)) < 0.8, 2, ts[::4])
    losses = rng.lognormal(size=(batches, n))
    losses[rng.random((batches, n)) < 0.1] = np.nan
    losses[rng.random((batches, n)) < 0.1] = np.inf
    losses[rng.random((batches, n)) < 0.2] *= -1
    losses = losses.astype(float if X64 else np.float32)
    strategy = eqd.LossSecondMoment(short_schedule(num_steps), history=history, uniform_mix=0.02)
    update, probabilities = quick_jit(strategy.update), quick_jit(strategy.probabilities)
    fifo, state = Fifo(num_steps, history), strategy.init()
    for t, loss in zip(ts, losses, strict=True):
        fifo.push(t, loss)
        state = update(state, jnp.asarray(t, jnp.int32), jnp.asarray(loss))
        assert np.max(state.written) < 2 * history
        for row, written, truth in zip(
            np.asarray(state.losses), np.asarray(state.written), fifo.rows, strict=True
        ):
            np.testing.assert_array_equal(in_order(row, written, history), truth)
        expected = fifo.probabilities(0.02)
        np.testing.assert_allclose(probabilities(state), expected, rtol=RTOL)
    assert not np.allclose(expected, 1 / num_steps)


@strategies
def test_starts_out_uniform(name, getkey):
    strategy = STRATEGIES[name]()
    state = strategy.init()
    np.testing.assert_allclose(probabilities_of(strategy, state), 1 / 30, rtol=RTOL)
    t, weights = quick_jit(lambda key: strategy.sample(state, 3000, key=key))(getkey())
    assert t.dtype == jnp.int32 and t.shape == weights.shape == (3000,)
    np.testing.assert_allclose(weights, 1, rtol=RTOL)
    assert scipy.stats.chisquare(np.bincount(t, minlength=30)).pvalue > 1e-3


@strategies
def test_learns_the_second_moment(name, profile, getkey):
    """p is nearly the best there is; times follow p, and the weights are 1/(T p)."""
    strategy = STRATEGIES[name]()
    scale, losses = profile
    state = warmed(strategy, losses)
    p = np.asarray(probabilities_of(strategy, state), np.float64)
    np.testing.assert_allclose(p.sum(), 1, rtol=RTOL)
    assert p.min() >= (1 - 1e-5) * strategy.uniform_mix / 30
    # E[L²] of an exponential of scale s is 2 s²; Σ E[L²]/p is what the variance of the estimate is
    # made of.
    second = 2 * scale**2
    assert (second / p).sum() < 1.3 * np.sqrt(second).sum() ** 2
    assert (second / p).sum() < 0.4 * 30 * second.sum()
    n = 20_000
    t, weights = quick_jit(lambda key: strategy.sample(state, n, key=key))(getkey())
    np.testing.assert_allclose(weights, 1 / (30 * p[t]), rtol=1e-5)
    assert scipy.stats.chisquare(np.bincount(t, minlength=30), n * p / p.sum()).pvalue > 1e-3


@strategies
def test_estimate_is_unbiased_and_steadier(name, profile, getkey):
    strategy = STRATEGIES[name]()
    scale, losses = profile
    state = warmed(strategy, losses)
    means = jnp.asarray(scale)

    def estimate(strategy, state, key):
        t, weights = strategy.sample(state, 16, key=key)
        return jnp.mean(weights.astype(means.dtype) * means[t])

    def spread(strategy, state, key):
        keys = jax.random.split(key, 4000)
        return np.asarray(quick_jit(jax.vmap(lambda k: estimate(strategy, state, k)))(keys))

    found = spread(strategy, state, getkey())
    assert abs(found.mean() - scale.mean()) < 4 * found.std() / np.sqrt(found.size)
    assert found.std() < 0.4 * spread(eqd.Uniform(short_schedule(30)), None, getkey()).std()


@strategies
def test_is_vmapped(name, profile, getkey):
    """Many runs side by side are those runs one by one."""
    strategy = STRATEGIES[name]()
    _, losses = profile
    ts = jax.random.randint(getkey(), (3, 20), 0, 30, jnp.int32)
    values = jnp.asarray(losses(np.asarray(ts)), float)
    keys = jax.random.split(getkey(), 3)

    def one(t, losses, key):
        state = strategy.update(strategy.init(), t, losses)
        return state, strategy.sample(state, 5, key=key)

    together = quick_jit(jax.vmap(one))(ts, values, keys)
    single = quick_jit(one)
    for i in range(3):
        alone = single(ts[i], values[i], keys[i])
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=10 * RTOL)


@strategies
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_losses_are_passed_over(name, bad, profile):
    strategy = STRATEGIES[name]()
    state = warmed(strategy, profile[1])
    update = quick_jit(strategy.update)
    t = jnp.asarray([3, 3, 7, 3], jnp.int32)
    spoilt = update(state, t, jnp.asarray([1.0, bad, bad, 2.0]))
    clean = update(state, jnp.asarray([3, 3], jnp.int32), jnp.asarray([1.0, 2.0]))
    for a, b in zip(jax.tree.leaves(spoilt), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(a, b)


@strategies
def test_extreme_losses_give_probabilities(name):
    """Zeros, and numbers whose squares leave float32, which is what states are in without x64."""
    strategy = STRATEGIES[name]()
    t = jnp.repeat(jnp.arange(30, dtype=jnp.int32), 2)
    single = jax.tree.map(
        lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, strategy.init()
    )

    @quick_jit
    def probabilities(losses):
        return strategy.probabilities(strategy.update(single, t, losses))

    for losses in (np.zeros(60), np.full(60, 3e38), np.geomspace(1e-30, 3e38, 60)):
        p = np.asarray(probabilities(jnp.asarray(losses, jnp.float32)))
        assert p.dtype == np.float32 and np.all(p > 0) and p[29] >= p[0]
        np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)


def test_a_rare_step_is_drawn_as_often_as_promised(getkey):
    """In float32 a cumulative sum cannot tell apart the steps to which only η/T is left; here it
    need not.
    """
    num_steps = 4000
    strategy = eqd.LossSecondMoment(short_schedule(num_steps), history=1, uniform_mix=0.5)
    t = jnp.arange(num_steps, dtype=jnp.int32)

    @quick_jit
    def draw(key):
        state = strategy.update(strategy.init(), t, jnp.where(t == 0, 1.0, 1e-9))
        return strategy.sample(state, 80_000, key=key)

    drawn, weights = draw(getkey())
    counts = np.bincount(drawn, minlength=num_steps)[1:]
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_allclose(counts.sum(), 40_000, rtol=0.02)
    np.testing.assert_allclose(weights[drawn > 0], 2, rtol=1e-5)


# The smoothed strategy


def test_bins_cover_the_chain():
    for num_steps in (1, 2, 7, 1000, 4000):
        edges = bin_edges(num_steps, 0.05)
        widths = np.diff(edges)
        assert edges[0] == 0 and edges[-1] == num_steps and np.all(widths >= 1)
        # No bin of several steps is wider than 5 % of log(t + 1).
        wide = widths > 1
        assert np.all(np.log((edges[1:] + 1) / (edges[:-1] + 1))[wide] < 0.05 + 1e-9)
    assert np.all(np.diff(bin_edges(4000, 0.05))[:20] == 1) and bin_edges(4000, 0.05).size < 140


def test_smoothed_by_hand():
    """Equations (2)–(4) on three steps, in plain NumPy."""
    strategy = eqd.SmoothedSecondMoment(
        short_schedule(3), history=4.0, uniform_mix=0.2, bandwidth=0.5, prior_count=2.0
    )
    batches = [([0, 2, 2], [3.0, 1.0, -2.0]), ([2, 0, 0], [0.5, 1.0, 1.0])]
    squares, counts = np.zeros(3), np.zeros(3)
    state = strategy.init()
    for t, losses in batches:
        state = strategy.update(state, jnp.asarray(t, jnp.int32), jnp.asarray(losses))
        for step in range(3):
            mine = [loss for s, loss in zip(t, losses, strict=True) if s == step]
            squares[step] = 0.75 ** len(mine) * squares[step] + np.sum(np.square(mine))
            counts[step] = 0.75 ** len(mine) * counts[step] + len(mine)
    np.testing.assert_allclose(state.squares, squares, rtol=RTOL)
    np.testing.assert_allclose(state.counts, counts, rtol=RTOL)
    z = np.log([1.0, 2.0, 3.0])
    moment = np.full(3, squares.sum() / counts.sum())
    # log 3 / 0.5 = 2.2, so that the widths are 4h, 2h and h.
    for width in (2.0, 1.0, 0.5):
        kernel = np.exp(-((z[:, None] - z) ** 2) / (2 * width**2))
        moment = (kernel @ squares + 2 * moment) / (kernel @ counts + 2)
    expected = 0.8 * np.sqrt(moment) / np.sqrt(moment).sum() + 0.2 / 3
    np.testing.assert_allclose(probabilities_of(strategy, state), expected, rtol=RTOL)


def test_unseen_steps_borrow_from_their_neighbours(getkey):
    """With a third of 1000 steps ever seen, p is close to the best where LossSecondMoment knows
    nothing yet.
    """
    strategy = eqd.SmoothedSecondMoment(short_schedule(1000))
    root = 1 / (1 + np.arange(1000)) ** 1.5
    t = np.unique(np.random.default_rng(0).integers(0, 1000, 400))
    update = quick_jit(strategy.update)
    state = update(strategy.init(), jnp.asarray(t, jnp.int32), jnp.asarray(root[t], float))
    p = np.asarray(probabilities_of(strategy, state), np.float64)
    unseen = np.setdiff1d(np.arange(20, 1000), t)
    ratio = (p - 0.05 / 1000)[unseen] / root[unseen]
    # The same factor everywhere, over three orders of magnitude of the loss.
    assert np.std(np.log(ratio)) < 0.15
    uniform = 1000 * np.sum(root**2)
    assert np.sum(root**2 / p) < 0.1 * uniform and root.sum() ** 2 < 0.1 * uniform


def test_smoothed_follows_a_change():
    """The memory is about `history` losses a bin: outliers and old profiles are forgotten."""
    strategy = eqd.SmoothedSecondMoment(short_schedule(30), history=20.0)
    run = runner(strategy)
    ts = jnp.tile(jnp.arange(30, dtype=jnp.int32), (300, 1))
    flat = jnp.ones((300, 30))
    state, _ = run(strategy.init(), ts, flat.at[0, 12].set(1e3))
    falling = flat / (1 + ts.astype(float))
    _, changed = run(state, ts, falling)
    np.testing.assert_allclose(probabilities_of(strategy, state), 1 / 30, rtol=0.05)
    _, fresh = run(strategy.init(), ts, falling)
    np.testing.assert_allclose(changed[-1], fresh[-1], rtol=1e-3)


SOME = short_schedule(10)
REFUSED = [
    *(
        (lambda make=make, mix=mix: make(SOME, uniform_mix=mix), r"uniform_mix=.*in \(0, 1\]")
        for make in (eqd.LossSecondMoment, eqd.SmoothedSecondMoment)
        for mix in (0.0, -0.1, 1.5, float("nan"))
    ),
    *(
        (lambda make=make: make(eqd.VPSDE()), "discrete schedule, but the process is VPSDE")
        for make in (eqd.LossSecondMoment, eqd.SmoothedSecondMoment)
    ),
    *(
        (lambda make=make: make(1000), rf"expected a process.*write {make.__name__}\(")
        for make in (eqd.LossSecondMoment, eqd.SmoothedSecondMoment)
    ),
    (lambda: eqd.LossSecondMoment(SOME, history=0), "history=0.*positive whole number"),
    *(
        (lambda wrong=wrong: eqd.SmoothedSecondMoment(SOME, **wrong), "finite number greater than")
        for wrong in ({"history": 1.0}, {"bandwidth": 0.0}, {"prior_count": float("inf")})
    ),
]


@pytest.mark.parametrize(("make", "match"), REFUSED)
def test_refused(make, match, monkeypatch):
    # Users run without the type checker that would speak first here.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises((TypeError, ValueError), match=match):
        make()
