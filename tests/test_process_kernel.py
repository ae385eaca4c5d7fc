"""A process from two functions α(t), σ(t): against closed forms, by inversion, and refusals."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


class Gaussian(eqx.Module):
    """α = exp(−kt²) or, as `sigma`, √(1 − α²), with a rate that may be learned."""

    rate: jax.Array
    sigma: bool = eqx.field(static=True)

    def __call__(self, t):
        exponent = self.rate * t**2
        return jnp.sqrt(-jnp.expm1(-2 * exponent)) if self.sigma else jnp.exp(-exponent)


def process(rate):
    return eqd.KernelSDE(Gaussian(rate, False), Gaussian(rate, True), t0=1e-3, t1=3.0)


def exponential(t):
    return 0.01 * jnp.exp(8.5 * t)


@pytest.mark.parametrize(
    "ours,theirs",
    [
        (
            eqd.KernelSDE(lambda t: 1.0, exponential, t0=1e-5, t1=1.0),
            eqd.VESDE(0.01, 0.01 * math.exp(8.5)),
        ),
        (eqd.KernelSDE(lambda t: 1 - t, lambda t: t, t0=1e-3, t1=0.999), eqd.RectifiedFlow()),
        (eqd.KernelSDE(lambda t: 1, lambda t: t, t0=0.002, t1=80.0), eqd.EDMSDE()),
    ],
    ids=["ve", "flow", "edm"],
)
def test_the_same_functions_make_the_same_process(ours, theirs, getkey, x64):
    t = jnp.asarray(np.geomspace(theirs.t0, theirs.t1, 30))
    names = ["alpha", "sigma", "alpha_dot", "sigma_dot", "diffusion", "log_snr"]

    @quick_jit
    @jax.vmap
    def all_of(t):
        values = [{n: getattr(p, n)(t) for n in names} for p in (ours, theirs)]
        x = jnp.asarray([1.0, -2.0])
        inverse = ours.time(theirs.log_snr(t))
        return *values, ours.drift(t, x), theirs.drift(t, x), inverse

    one, other, drift, true_drift, inverse = all_of(t)
    for name in names:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-10, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(drift, true_drift, rtol=1e-10)
    np.testing.assert_allclose(inverse, t, rtol=1e-11)
    np.testing.assert_allclose(ours.prior_scale(), theirs.sigma(theirs.t1), rtol=1e-10)
    assert float(ours.c_noise(ours.t1)) == 1000


def test_the_inverse_is_differentiable_in_everything(x64):
    """t = √(log(1 + e^{−λ})/(2k)): by hand, to second order."""
    rate, level = jnp.asarray(0.7), jnp.asarray(1.3)

    def truth(rate, level):
        return jnp.sqrt(jax.nn.softplus(-level) / (2 * rate))

    def inverse(rate, level):
        return process(rate).time(level)

    for order in (lambda f: f, lambda f: jax.grad(f, (0, 1)), lambda f: jax.hessian(f, (0, 1))):
        actual, expected = (jax.jit(order(f))(rate, level) for f in (inverse, truth))
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-8), actual, expected)
    forward = jax.jvp(inverse, (rate, level), (jnp.ones(()), jnp.zeros(())))[1]
    np.testing.assert_allclose(forward, -0.5 * truth(rate, level) / rate, rtol=1e-8)


def closures(rate):
    """The same process from two closures over a parameter, traced or not."""
    return eqd.KernelSDE(
        lambda t: jnp.exp(-rate * t**2),
        lambda t: jnp.sqrt(-jnp.expm1(-2 * rate * t**2)),
        t0=1e-3,
        t1=3.0,
    )


USES = {
    "alpha": lambda p: p.alpha(0.6),
    "sigma": lambda p: p.sigma(0.6),
    "drift": lambda p: p.drift(0.6, jnp.ones(())),
    "diffusion": lambda p: p.diffusion(0.6),
    "time": lambda p: p.time(jnp.asarray(0.5)),
    "log_snr_fall": lambda p: p.log_snr_fall(0.59, 0.6),
    "far": lambda p: p.log_snr_fall(0.1, 2.0),
    "step": lambda p: p.transition(0.59, 0.6)[1],
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_closure_over_a_traced_parameter_is_differentiable(use, x64):
    """Under jit, grad and both; as closures and as modules; against finite differences."""
    rate, h = jnp.asarray(0.7), 1e-5
    finite = (float(use(closures(rate + h))) - float(use(closures(rate - h)))) / (2 * h)
    for make in (closures, process):
        value, slope = jax.jit(jax.value_and_grad(lambda rate, make=make: use(make(rate))))(rate)
        np.testing.assert_allclose(value, use(closures(rate)), rtol=1e-9)
        np.testing.assert_allclose(slope, finite, rtol=1e-6)
        eager = jax.grad(lambda rate, make=make: use(make(rate)))(rate)
        np.testing.assert_allclose(eager, finite, rtol=1e-6)


def test_a_process_with_parameters_is_a_jitted_argument(x64):
    """An Equinox module's parameters are the process's own leaves, and one trace serves all
    values.
    """
    traces = []

    @eqx.filter_jit
    @eqx.filter_grad
    def slope(p, level):
        traces.append(None)
        return p.time(level)

    level = jnp.asarray(0.4)
    for rate in (0.5, 1.5):
        got = slope(process(jnp.asarray(rate)), level)
        # The gradient in the rate of α plus that in the rate of σ is the total one.
        total = sum(jax.tree.leaves(got))
        truth = jax.grad(lambda r: jnp.sqrt(jax.nn.softplus(-level) / (2 * r)))(rate)
        np.testing.assert_allclose(total, truth, rtol=1e-8)
    assert len(traces) == 1


def test_a_closed_over_process_solves(x64):
    """The flow of Gaussian data, by an adaptive solve inside jit, with the parameter traced."""

    @jax.jit
    def sample(rate):
        denoiser = eqd.GaussianDenoiser(closures(rate), 0.3, 0.5)
        return eqd.ProbabilityFlow(rtol=1e-7, atol=1e-7)(denoiser, jnp.asarray([0.4, -1.0]))

    p = closures(0.9)
    alpha, sigma = float(p.alpha(3.0)), float(p.sigma(3.0))
    whitened = (np.array([0.4, -1.0]) - 0.3 * alpha) / np.hypot(0.5 * alpha, sigma)
    np.testing.assert_allclose(sample(jnp.asarray(0.9)), 0.3 + 0.5 * whitened, atol=2e-3)


def test_beyond_the_interval_the_inverse_is_the_nearer_end():
    p = process(jnp.asarray(1.0))
    ends = jax.vmap(p.time)(jnp.asarray([100.0, -100.0]))
    np.testing.assert_allclose(ends, [1e-3, 3.0], rtol=2e-7)


def test_the_inverse_has_the_precision_of_small_times():
    """Bisection ends when no number is left between, not at a fixed fraction of the interval."""
    p = eqd.KernelSDE(lambda t: 1.0, lambda t: t, t0=1e-5, t1=100.0)
    t = jnp.geomspace(1.1e-5, 90.0, 40, dtype=jnp.float32)
    inverse = quick_jit(jax.vmap(lambda t: p.time(p.log_snr(t))))(t)
    assert inverse.dtype == jnp.float32
    np.testing.assert_allclose(inverse, t, rtol=4e-6)


def test_a_learned_process_reaches_the_loss(getkey, x64):
    """The gradient of a likelihood-weighted loss in the rate, against finite differences."""
    x0, key = jnp.asarray([0.5, -1.0]), getkey()

    def loss(rate):
        p = process(rate)
        denoiser = eqd.GaussianDenoiser(p, 0.2, 0.6)
        t = p.time(jnp.asarray(0.4))
        return eqd.score_matching(eqd.predict(denoiser, t, x0, key=key), eqd.LikelihoodWeighting())

    rate, h = jnp.asarray(0.8), 1e-5
    value = jax.jit(loss)
    finite = (value(rate + h) - value(rate - h)) / (2 * h)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(rate), finite, rtol=1e-6)


def test_prior_and_time_input_may_be_given():
    p = eqd.KernelSDE(lambda t: 1.0, lambda t: t, t0=0.1, t1=2.0, prior_scale=2.5, c_noise=jnp.log)
    assert float(p.prior_scale()) == 2.5
    np.testing.assert_allclose(p.c_noise(2.0), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(
        p.prior_log_prob(jnp.zeros(3)), -1.5 * np.log(2 * np.pi) - 3 * np.log(2.5), rtol=1e-6
    )


def good(t):
    return t


def made(alpha, sigma, t0=0.1, t1=1.0, **kwargs):
    return lambda: eqd.KernelSDE(alpha, sigma, t0=t0, t1=t1, **kwargs)


def one(t):
    return 1.0


REFUSED = [
    (made(lambda t: 1 - t, good), r"alpha\(t\) is 0 at t = 1, expected a positive"),
    (made(one, good, 0.0), r"sigma\(t\) is 0 at t = 0.*Choose t0 above"),
    (made(one, lambda t: jnp.log(t - 0.5)), r"sigma\(t\) is nan"),
    (made(one, lambda t: 1 / t), "log-SNR .* must fall, but goes from .* to"),
    (made(one, lambda t: 0.5), "log-SNR .* must fall"),
    (made(lambda t: jnp.ones(2), good), r"alpha\(t\) returned shape \(2,\)"),
    (made(one, good, 1.0, 0.1), "expected finite times, t0 < t1"),
    (made(one, good, 0.1, float("inf")), "expected finite times, t0 < t1"),
    (made(one, good, prior_scale=0.0), r"prior_scale=0.0.*positive finite"),
]


@pytest.mark.parametrize(("make", "match"), REFUSED)
def test_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_functions_cannot_be_saved(tmp_path):
    denoiser = eqd.Denoiser(lambda c_noise, x, args, *, key: x, process(jnp.asarray(1.0)))
    with pytest.raises(
        ValueError, match="KernelSDE, which holds functions.*eqdiff.AbstractProcess"
    ):
        eqd.save_model(tmp_path / "model", denoiser)


@pytest.mark.parametrize(
    "process,parameterisation",
    [
        (eqd.EDMSDE(t0=0.01, t1=30.0), eqd.EDMPreconditioning(0.7)),
        (eqd.RectifiedFlow(t1=1.0), eqd.PredictFlow()),
        (eqd.CosineVPSDE(log_snr_shift=-1.5, t0=1e-4), eqd.PredictVelocity()),
    ],
    ids=["edm", "flow", "cosine"],
)
def test_what_consists_of_numbers_comes_back(process, parameterisation, tmp_path, getkey):
    net = eqd.nn.MLP(2, 2, width=4, depth=1, key=getkey())
    denoiser = eqd.Denoiser(net, process, parameterisation)
    eqd.save_model(tmp_path / "model", denoiser)
    assert eqx.tree_equal(eqd.load_model(tmp_path / "model"), denoiser, typematch=True)
