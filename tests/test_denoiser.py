"""The network's time input, a denoiser on another process, and what denoisers and predictions
refuse.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


SCHEDULE = eqd.cosine_schedule(50)
PROCESSES = {
    "schedule": SCHEDULE,
    "vp": eqd.VPSDE(),
    "ve": eqd.VESDE(),
    "flow": eqd.RectifiedFlow(),
}
processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def zeros(c_noise, x, args=None, *, key=None):
    return jnp.zeros_like(x)


# The network's time input


def inputs(process, times, dtype, c_noise=None):
    """The time inputs of a denoiser's and of a classifier's network."""
    found = []
    for make in (eqd.Denoiser, eqd.Classifier):
        seen = []

        def net(c_noise, x, args=None, *, key=None, seen=seen):
            seen.append(c_noise)
            return jnp.zeros_like(x)

        model = make(net, process, c_noise=c_noise)
        call = model if make is eqd.Denoiser else model.logits

        def one(t, call=call, seen=seen):
            call(t, jnp.zeros(2, dtype))
            return seen.pop()

        found.append(np.asarray(jax.jit(jax.vmap(one))(times)))
    return found


C_NOISES = {
    "own": None,
    "scaled": eqd.ScaledTime(499.0),
    "log": eqd.LogNoise(0.5),
    "function": lambda process, t: 2.5 * process.c_noise(t),
}


@pytest.mark.parametrize("c_noise", C_NOISES.values(), ids=C_NOISES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_the_time_input_is_never_in_half_precision(dtype, c_noise):
    """In bfloat16 the last hundred steps of a thousand would be 26 different times, in float16
    200.
    """
    if dtype == jnp.float64 and not jax.config.jax_enable_x64:
        pytest.skip("needs float64 (EQDIFF_TEST_X64=0)")
    schedule, times = eqd.linear_schedule(1000), jnp.arange(900, 1000)
    single = jnp.float64 if dtype == jnp.float64 else jnp.float32
    function = c_noise or (lambda process, t: process.c_noise(t))
    truth = quick_jit(jax.vmap(lambda t: function(schedule, t)))(times)
    for values in inputs(schedule, times, dtype, c_noise):
        assert values.dtype == single and np.unique(values).size == 100
        np.testing.assert_allclose(values, truth, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@processes
def test_half_precision_in_and_out(process, dtype, getkey):
    """x̂0 and ε̂ come in the precision of x, as good as that precision allows."""
    t = 20 if process is SCHEDULE else 0.5
    x = jax.random.normal(getkey(), (64,), jnp.float32)

    def net(c_noise, x, args, *, key):
        # In the precision of x, whatever the time input's: what any network does after embedding
        # it.
        return jnp.tanh(x + jnp.sin(c_noise / 100).astype(x.dtype))

    for parameterisation in (eqd.PredictNoise(), eqd.PredictVelocity(), eqd.EDMPreconditioning()):
        denoiser = eqd.Denoiser(net, process, parameterisation)
        low, high = denoiser(t, x.astype(dtype)), denoiser(t, x)
        assert low.x0.dtype == low.noise.dtype == dtype
        unit = 16 * float(jnp.finfo(dtype).eps)
        for one, other in ((low.x0, high.x0), (low.noise, high.noise)):
            error = np.max(np.abs(np.asarray(one, np.float32) - np.asarray(other)))
            assert error < unit * (1 + np.max(np.abs(other)) + float(process.sigma(t)))
    p = eqd.predict(denoiser, t, x.astype(dtype), key=getkey())
    assert p.x.dtype == p.noise.dtype == dtype and np.isfinite(eqd.l_simple(p))


# A denoiser on another process


def test_on_changes_every_part():
    """Guidance and classifiers too: changing `process` alone left half of a denoiser behind."""
    one, other = eqd.cosine_schedule(50), eqd.VPSDE()
    inner = eqd.Denoiser(zeros, one)
    free = eqd.ClassifierFree(inner, 2.0)
    classifier = eqd.Classifier(lambda c_noise, x, args, *, key: x, one)
    wrapped = {
        "plain": inner,
        "clip": eqd.Clip(free),
        "interval": eqd.GuidanceInterval(free, inner, 0.3, 5.0),
        "classifier": eqd.ClassifierGuidance(inner, classifier),
        "posterior": eqd.PosteriorGuidance(inner, eqd.Measurement(np.zeros(3), lambda x: x, 0.1)),
        "batched": eqd.Batched(eqd.Clip(inner)),
        "oracle": eqd.GaussianDenoiser(one),
    }

    def processes(tree):
        is_process = lambda leaf: isinstance(leaf, eqd.AbstractProcess)  # noqa: E731
        return [leaf for leaf in jax.tree.leaves(tree, is_leaf=is_process) if is_process(leaf)]

    for name, denoiser in wrapped.items():
        assert {type(p) for p in processes(denoiser)} == {eqd.Schedule}, name
        moved = eqd.on(denoiser, other)
        found = processes(moved)
        assert len(found) == len(processes(denoiser)), name
        assert all(p == other for p in found) and moved.process == other, name
        assert type(moved) is type(denoiser)
    # And nothing but the processes: back again it is the same.
    again = eqd.on(eqd.on(wrapped["interval"], other), one)
    assert eqx.tree_equal(again, wrapped["interval"])


@pytest.mark.parametrize("which", ["interval", "classifier"])
def test_on_gives_what_building_on_the_other_process_gives(which, getkey):
    one, other = eqd.cosine_schedule(50), eqd.VPSDE()

    def net(c_noise, x, args, *, key=None):
        shift = 0 if args is None else 0.1 * jnp.asarray(args, x.dtype)
        return jnp.tanh(x + jnp.sin(c_noise / 100).astype(x.dtype) + shift)

    def build(process):
        inner = eqd.Denoiser(net, process, variance=eqd.FixedSmall())
        if which == "classifier":
            return eqd.ClassifierGuidance(inner, eqd.Classifier(net, process), 2.0)
        return eqd.GuidanceInterval(eqd.ClassifierFree(inner, 2.0), inner, 0.3, 5.0)

    x, y = jax.random.normal(getkey(), (3,)), jnp.asarray(1)
    moved, built = eqd.on(build(one), other), build(other)
    # Within the interval, below it and above it.
    for t in (0.4, 0.01, 0.95):
        a, b = moved(t, x, y), built(t, x, y)
        np.testing.assert_allclose(a.x0, b.x0, rtol=1e-6)
        np.testing.assert_allclose(a.noise, b.noise, rtol=1e-6)


def test_on_a_respaced_schedule_the_network_sees_the_original_times():
    thin = eqd.respace(SCHEDULE, np.array([0, 10, 49]))
    seen = []

    def net(c_noise, x, args, *, key):
        seen.append(float(c_noise))
        return x

    denoiser = eqd.on(eqd.Clip(eqd.Denoiser(net, SCHEDULE)), thin)
    for t in range(3):
        denoiser(t, jnp.zeros(2))
    np.testing.assert_allclose(seen, [0, 200, 980])


# What they refuse


INTEGERS = [jnp.zeros(3, jnp.int32), np.zeros((1, 2, 2), np.uint8)]
CALLS = {
    "denoiser": lambda d, x: d(3, x),
    "predict": lambda d, x: eqd.predict(d, 3, x, key=jax.random.key(0)),
    "noise": lambda d, x: eqd.predict(d, 3, x, noise=jnp.zeros(x.shape)),
}


@pytest.mark.parametrize("x", INTEGERS, ids=["int32", "uint8"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_integer_images_are_refused_where_floats_belong(call, x, monkeypatch):
    # Users run without the type checker that would speak first here.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=rf"{x.dtype} of shape.*127\.5 - 1"):
        call(eqd.Denoiser(zeros, SCHEDULE), x)


@processes
def test_a_time_out_of_range_is_refused_while_it_is_known(process, getkey):
    denoiser, x = eqd.Denoiser(zeros, process), jnp.zeros(3)
    low, high = (0, 49) if process is SCHEDULE else (process.t0, process.t1)
    for t in (low, high, jnp.asarray(high, jnp.float32), np.asarray(high)):
        assert np.all(np.isfinite(denoiser(t, x).noise))
    for t in (low - 1, high + 1, jnp.asarray(high + 1), float("nan")):
        with pytest.raises(ValueError, match="is outside"):
            denoiser(t, x)
        with pytest.raises(ValueError, match="is outside"):
            eqd.predict(denoiser, t, x, key=getkey())


def test_traced_times_are_not_looked_at():
    """The training step holds no check: its program is that of the arithmetic alone."""
    denoiser, x = eqd.Denoiser(zeros, SCHEDULE), jnp.zeros(3)
    text = str(jax.make_jaxpr(lambda t: denoiser(t, x).x0)(jnp.asarray(3)))
    assert "callback" not in text and "error" not in text


REFUSED = [
    ({"noise": jnp.zeros((4, 3))}, r"noise has shape \(4, 3\), the data \(3,\).*vmap"),
    ({}, "needs a key: write key="),
]


@pytest.mark.parametrize(("options", "match"), REFUSED)
def test_predict_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        eqd.predict(eqd.Denoiser(zeros, SCHEDULE), 3, jnp.zeros(3), **options)
