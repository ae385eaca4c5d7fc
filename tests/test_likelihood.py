"""Likelihoods against closed forms: the flow of Gaussian data is linear, with a known Jacobian."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


PROCESSES = {
    "vp": eqd.VPSDE(),
    "sub_vp": eqd.SubVPSDE(),
    "ve": eqd.VESDE(),
    "cosine": eqd.cosine_schedule(1000),
}
POINTS = np.array([[0.4, -1.5], [1.0, 1.0], [-0.2, 0.3]])
MEAN, STD = np.array([0.5, -1.0]), np.array([0.3, 1.2])
WEIGHTS = np.array([0.4, 0.6])
MEANS = np.array([[-1.0, 0.3], [0.8, -0.6]])
COVARIANCES = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.5]]])
COVARIANCE = np.array([[0.5, 0.45], [0.45, 0.8]])


def gaussian(process):
    """N(m, diag s²) as a mixture of twice the same, so that it shares the mixture's compiled
    program.
    """
    twice = np.array([MEAN, MEAN]), np.array([np.diag(STD**2)] * 2)
    return eqd.GaussianMixtureDenoiser(process, np.ones(2), *twice)


def mixture(process):
    return eqd.GaussianMixtureDenoiser(process, WEIGHTS, MEANS, COVARIANCES)


def correlated(process):
    """Its flow's Jacobian is full, so that Hutchinson's estimate has a variance."""
    return eqd.GaussianMixtureDenoiser(process, np.ones(1), MEAN[None], COVARIANCE[None])


@ft.cache
def solver_of(name: str):
    """(arrays of a denoiser, points, tolerance) -> both likelihoods."""
    static = eqx.partition(mixture(PROCESSES[name]), eqx.is_array)[1]

    @quick_jit
    def run(arrays, points, tolerance):
        denoiser = eqx.combine(arrays, static)
        process = denoiser.process

        def one(x):
            flow = eqd.ProbabilityFlow(rtol=tolerance, atol=tolerance)
            found = eqd.log_likelihood(denoiser, x, flow=flow, trace=eqd.ExactTrace())
            exact = denoiser.log_prob(process.t1, found.latent)
            return found, found.log_prob - process.prior_log_prob(found.latent) + exact

        return jax.vmap(one)(points)

    return run


# A schedule's interpolant has a third derivative that jumps at each of its times, which error
# control does not see.
TOLERANCES = {"vp": 1e-7, "sub_vp": 1e-7, "ve": 1e-7, "cosine": 1e-9}


def run(name, denoiser, points=POINTS, tolerance=None):
    tolerance = TOLERANCES[name] if tolerance is None else tolerance
    arrays = eqx.filter(denoiser, eqx.is_array)
    points = jnp.asarray(points)
    return solver_of(name)(arrays, points, jnp.asarray(tolerance, points.dtype))


def closed_form(process, x):
    """x(t1) of the linear flow, and log N(x(t1); 0, s²I) + log |∂x(t1)/∂x|."""

    def moments(t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        return alpha * MEAN, jnp.sqrt(alpha**2 * STD**2 + sigma**2)

    (m0, c0), (m1, c1) = moments(process.t0), moments(process.t1)
    latent = m1 + c1 / c0 * (x - m0)
    scale = process.prior_scale()
    log_prior = jnp.sum(jax.scipy.stats.norm.logpdf(latent / scale) - jnp.log(scale))
    return latent, log_prior + jnp.sum(jnp.log(c1 / c0))


@pytest.mark.parametrize("name", PROCESSES)
def test_the_models_density_is_its_prior_through_the_flow(name, x64):
    """Within 1e-5 nats/dim, at tolerance 1e-7 (a schedule: 1e-9)."""
    process = PROCESSES[name]
    found, _ = run(name, gaussian(process))
    for i, x in enumerate(POINTS):
        latent, log_prob = closed_form(process, x)
        np.testing.assert_allclose(found.log_prob[i], log_prob, atol=2 * 1e-5)
        np.testing.assert_allclose(found.latent[i], latent, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.stderr, 0.0)
    assert np.all(found.stats["num_accepted_steps"] > 0)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("make", [gaussian, mixture])
def test_with_the_exact_prior_it_is_the_datas_density(name, make, x64):
    """Within 1e-5 nats/dim of log p_t0; a mixture's flow is not linear."""
    denoiser = make(PROCESSES[name])
    _, found = run(name, denoiser)
    exact = [denoiser.log_prob(PROCESSES[name].t0, jnp.asarray(x)) for x in POINTS]
    np.testing.assert_allclose(found, exact, atol=2 * 1e-5)


@pytest.mark.parametrize("tolerance", [1e-6, 1e-7, 1e-8])
def test_error_follows_the_tolerance_on_narrow_data(tolerance, x64):
    """Within ten tolerances per dimension, on thin Gaussians that no first step may step over."""
    process = PROCESSES["vp"]
    thin = np.array([np.diag([0.05, 0.2]) ** 2, np.diag([0.2, 0.05]) ** 2])
    denoiser = eqd.GaussianMixtureDenoiser(process, WEIGHTS, 1.4 * np.eye(2), thin)
    points = 1.4 * np.eye(2)[[0, 0, 1, 1]] + 0.05 * np.array([[0, 1], [1, -2], [2, 1], [-1, 0]])
    arrays, _ = eqx.partition(denoiser, eqx.is_array)
    _, found = solver_of("vp")(arrays, jnp.asarray(points), tolerance)
    exact = jax.vmap(lambda x: denoiser.log_prob(process.t0, x))(jnp.asarray(points))
    np.testing.assert_allclose(found, exact, rtol=0, atol=2 * 10 * tolerance)


@pytest.mark.slow
def test_a_prior_of_ones_own(x64):
    """`prior=` is used for log p_t1, and −∞ is an answer of it."""
    denoiser = mixture(PROCESSES["vp"])

    @quick_jit
    def log_prob(x, outside):
        def prior(y):
            return jnp.where(outside, -jnp.inf, denoiser.log_prob(1.0, y))

        return eqd.log_likelihood(denoiser, x, prior=prior, trace=eqd.ExactTrace()).log_prob

    x = jnp.asarray(POINTS[0])
    np.testing.assert_allclose(log_prob(x, False), denoiser.log_prob(1e-5, x), atol=1e-3)
    assert log_prob(x, True) == -np.inf


@pytest.mark.parametrize(("name", "make"), [("vp", gaussian), ("sub_vp", mixture)])
def test_error_falls_with_the_tolerance(name, make, x64):
    """A fitted power of the tolerance near 1: what a controller of the local error promises."""
    denoiser, process = make(PROCESSES[name]), PROCESSES[name]
    exact = np.array([denoiser.log_prob(process.t0, jnp.asarray(x)) for x in POINTS])
    tolerances = 10.0 ** np.arange(-9, -2)
    errors = [np.abs(run(name, denoiser, tolerance=tol)[1] - exact).max() for tol in tolerances]
    power = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert 0.7 < power < 1.3, (power, errors)


@pytest.mark.parametrize("name", PROCESSES)
def test_in_float32(name):
    """Float32 in, float32 out, whatever the default precision is; the truth to its rounding."""
    denoiser = mixture(PROCESSES[name])
    found, exact = run(name, denoiser, POINTS.astype(np.float32), 1e-5)
    assert found.log_prob.dtype == found.latent.dtype == found.stderr.dtype == jnp.float32
    truth = [denoiser.log_prob(PROCESSES[name].t0, jnp.asarray(x)) for x in POINTS]
    np.testing.assert_allclose(exact, truth, atol=2e-3)


def test_hutchinson_is_unbiased_and_its_stderr_honest(x64):
    denoiser, x = correlated(PROCESSES["vp"]), jnp.asarray(POINTS[0])

    def estimate(key):
        result = eqd.log_likelihood(denoiser, x, trace=eqd.Hutchinson(8), key=key)
        return result.log_prob, result.stderr

    found, stderr = quick_jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), 200))
    exact = denoiser.log_prob(1e-5, x) + (
        eqd.VPSDE().prior_log_prob(flow_end(x)) - denoiser.log_prob(1.0, flow_end(x))
    )
    spread = found.std(ddof=1)
    assert spread > 0.01
    assert abs(found.mean() - exact) < 4 * spread / 200**0.5
    # 200 repetitions know the spread to 5 %.
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(stderr**2)), spread, rtol=0.15)


def flow_end(x):
    """The linear flow of the correlated Gaussian: each axis of the eigenbasis is scaled."""
    process, (values, basis) = eqd.VPSDE(), np.linalg.eigh(COVARIANCE)

    def moments(t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        return alpha * MEAN, jnp.sqrt(alpha**2 * values + sigma**2)

    (m0, c0), (m1, c1) = moments(1e-5), moments(1.0)
    return m1 + basis @ (c1 / c0 * (basis.T @ (x - m0)))


def test_one_probe_has_no_stderr(getkey):
    x = jnp.asarray(POINTS[0], jnp.float32)
    denoiser = eqd.GaussianDenoiser(PROCESSES["vp"], MEAN, STD)
    flow, key = eqd.ProbabilityFlow(rtol=1e-3, atol=1e-3), getkey()
    result = quick_jit(lambda x: eqd.log_likelihood(denoiser, x, flow=flow, key=key))(x)
    assert np.isnan(result.stderr) and np.isfinite(result.log_prob)
    # Nor has a solve without a reference a known error.
    assert np.isnan(result.solver_error)
    with pytest.raises(ValueError, match=r"needs a key"):
        eqd.log_likelihood(denoiser, x)


def test_what_is_refused_before_any_compute(getkey, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x, denoiser = jnp.zeros(2), eqd.GaussianDenoiser(eqd.VPSDE())
    for data, says in [
        (jnp.zeros(2, jnp.int32), "log_likelihood works on floating-point data.*int32"),
        (jnp.zeros(2, jnp.bfloat16), "log_likelihood: the example is bfloat16"),
    ]:
        with pytest.raises(ValueError, match=says):
            eqd.log_likelihood(denoiser, data, key=getkey())
    with pytest.raises(ValueError, match="takes a denoiser, but was given a function"):
        eqd.log_likelihood(lambda c_noise, x, args, *, key=None: x, x, key=getkey())

    @jax.custom_vjp
    def fused(x):
        return 0.1 * x

    fused.defvjp(lambda x: (0.1 * x, None), lambda _, g: (0.1 * g,))
    denoiser = eqd.Denoiser(lambda c_noise, x, args, *, key=None: fused(x), eqd.VPSDE())
    for trace in (eqd.ExactTrace(), eqd.Hutchinson()):
        with pytest.raises(ValueError, match="forward-mode derivatives.*jax.custom_vjp"):
            eqd.log_likelihood(denoiser, x, trace=trace, key=getkey())


def test_a_failed_solve_says_so():
    """Under jit and vmap, where one example of the batch is enough."""

    def net(c_noise, x, args, *, key=None):
        return jnp.where((args > 0) & (c_noise > 500), jnp.nan, 0.5) * x

    denoiser = eqd.Denoiser(net, eqd.VPSDE())

    @eqx.filter_jit
    @jax.vmap
    def log_prob(x, broken):
        flow = eqd.ProbabilityFlow(rtol=1e-3, atol=1e-3, max_steps=32)
        trace = eqd.ExactTrace()
        return eqd.log_likelihood(denoiser, x, broken, flow=flow, trace=trace).log_prob

    points = jnp.asarray(POINTS)
    assert np.all(np.isfinite(log_prob(points, jnp.zeros(3))))
    says = "log_likelihood took max_steps=32 steps.*if the network returns NaN"
    with pytest.raises(eqx.EquinoxRuntimeError, match=says):
        log_prob(points, jnp.array([0.0, 1.0, 0.0]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="given values that are not finite"):
        log_prob(points.at[1, 0].set(jnp.nan), jnp.zeros(3))


def counting(calls):
    def net(c_noise, x, args, *, key=None):
        jax.debug.callback(lambda _: calls.append(1), c_noise)
        return 0.5 * jnp.tanh(x)

    return net


def test_network_calls_are_what_the_documentation_says():
    """`num_calls`, rejected steps included; the probes' derivatives ride along."""
    calls: list[int] = []
    denoiser = eqd.Denoiser(counting(calls), eqd.VESDE())
    flow = eqd.ProbabilityFlow(rtol=1e-4, atol=1e-4)
    options = dict(flow=flow, trace=eqd.Hutchinson(2), key=jax.random.key(0))
    found = quick_jit(lambda x: eqd.log_likelihood(denoiser, x, **options))(jnp.ones(3))
    jax.block_until_ready(found)
    jax.effects_barrier()
    assert int(found.stats["num_rejected_steps"]) > 0
    assert len(calls) == int(found.stats["num_calls"])


@pytest.mark.slow
def test_through_wrappers(x64):
    """Guidance between two Gaussians of one width is the Gaussian of the guided mean.

    A clip that holds everywhere is a point mass; one that never holds changes nothing.
    """
    process, x = eqd.VPSDE(), jnp.asarray(POINTS[0])
    low, high = (eqd.GaussianDenoiser(process, m, 0.5) for m in (-0.2, 0.3))

    def solve(denoiser, x):
        flow = eqd.ProbabilityFlow(rtol=1e-7, atol=1e-7)
        trace = eqd.ExactTrace()
        return quick_jit(lambda x: eqd.log_likelihood(denoiser, x, flow=flow, trace=trace))(x)

    guided = _Guided(low, high, jnp.asarray(2.0))
    truth = eqd.GaussianDenoiser(process, 0.8, 0.5)
    cases = [(guided, truth), (eqd.Clip(low, -1e3, 1e3), low)]
    for denoiser, equal in cases:
        found = solve(denoiser, x)
        latent = found.latent
        expected = equal.log_prob(1e-5, x) + (
            process.prior_log_prob(latent) - equal.log_prob(1.0, latent)
        )
        np.testing.assert_allclose(found.log_prob, expected, atol=2e-5)
    # Data at 5 ± 0.1 clipped to [−1, 1]: x̂0 = 1 wherever the flow goes, and ε̂ stays constant
    # along it.
    clipped = eqd.Clip(eqd.GaussianDenoiser(process, 5.0, 0.1))
    x = jnp.array([1.001, 1.002])
    found = solve(clipped, x)
    (a0, s0), (a1, s1) = ((process.alpha(t), process.sigma(t)) for t in (1e-5, 1.0))
    latent = a1 + s1 / s0 * (x - a0)
    np.testing.assert_allclose(found.latent, latent, rtol=1e-5)
    expected = process.prior_log_prob(latent) + 2 * jnp.log(s1 / s0)
    np.testing.assert_allclose(found.log_prob, expected, atol=2e-5)


class _Guided(eqd.AbstractDenoiser):
    """Classifier-free guidance between two denoisers."""

    unconditional: eqd.AbstractDenoiser
    conditional: eqd.AbstractDenoiser
    scale: jax.Array
    parameterisation = eqd.PredictNoise()
    variance = eqd.FixedSmall()

    @property
    def process(self):
        return self.unconditional.process

    def __call__(self, t, x, args=None, *, key=None):
        a, b = self.unconditional(t, x), self.conditional(t, x)
        return eqd.Estimate(
            a.x0 + self.scale * (b.x0 - a.x0), a.noise + self.scale * (b.noise - a.noise)
        )
