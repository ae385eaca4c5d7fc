"""Traces, terms, and what the terms refuse."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqdiff as eqd
from eqdiff._term import reverse_drift, velocity


CHAIN = eqd.cosine_schedule(100)
PROCESSES = {
    "vp": (eqd.VPSDE(), 0.3),
    "sub_vp": (eqd.SubVPSDE(), 0.3),
    "ve": (eqd.VESDE(), 0.3),
    "continuous": (CHAIN.continuous(), 30.3),
}
MEAN, COVARIANCE = np.array([0.5, -1.0]), np.array([[0.5, 0.3], [0.3, 0.4]])


def correlated(process) -> eqd.GaussianMixtureDenoiser:
    return eqd.GaussianMixtureDenoiser(process, np.ones(1), MEAN[None], COVARIANCE[None])


def field(matrix):
    """A vector field with a full, unsymmetric, x-dependent Jacobian."""
    return lambda x: jnp.sin(matrix @ x.reshape(-1)).reshape(x.shape) + x**2


def jacobian(f, x):
    return jax.jacfwd(f)(x).reshape(x.size, x.size)


@pytest.mark.parametrize(("shape", "chunk"), [((5,), 1), ((5,), 2), ((1, 2, 3), 64)])
def test_exact_trace_is_jacfwds(shape, chunk, getkey):
    x = jax.random.normal(getkey(), shape)
    f = field(jax.random.normal(getkey(), (x.size, x.size)))
    trace = eqd.ExactTrace(chunk=chunk)
    value, divergence = trace.divergence(f, x, trace.probes(x, key=None))
    np.testing.assert_allclose(value, f(x), rtol=1e-6)
    np.testing.assert_allclose(divergence, [jnp.trace(jacobian(f, x))], rtol=1e-5)


def all_signs(key, shape, dtype):
    """Each of the 2^D sign vectors once: averages over them are expectations, without Monte Carlo."""
    signs = np.array(np.meshgrid(*[[-1, 1]] * shape[-1])).reshape(shape[-1], -1).T
    return jnp.asarray(signs, dtype)


def test_hutchinson_is_unbiased_with_the_stated_variance(getkey, x64):
    x = jax.random.normal(getkey(), (4,))
    f = field(jax.random.normal(getkey(), (4, 4)))
    trace = eqd.Hutchinson(16, all_signs)
    value, estimates = trace.divergence(f, x, trace.probes(x, key=getkey()))
    j = jacobian(f, x)
    symmetric = 0.5 * (j + j.T)
    off_diagonal = symmetric - jnp.diag(jnp.diag(symmetric))
    np.testing.assert_allclose(value, f(x), rtol=1e-12)
    np.testing.assert_allclose(estimates.mean(), jnp.trace(j), rtol=1e-10)
    np.testing.assert_allclose(estimates.var(), 2 * jnp.sum(off_diagonal**2), rtol=1e-10)


@pytest.mark.parametrize("distribution", [eqd.rademacher, jax.random.normal])
def test_probes_have_unit_covariance(distribution, getkey):
    trace = eqd.Hutchinson(20000, distribution)
    probes = trace.probes(jnp.zeros((2, 2), jnp.float32), key=getkey())
    assert probes.shape == (20000, 2, 2) and probes.dtype == jnp.float32
    flat = np.asarray(probes).reshape(-1, 4)
    np.testing.assert_allclose(flat.mean(0), 0, atol=5 / 20000**0.5)
    np.testing.assert_allclose(flat.T @ flat / 20000, np.eye(4), atol=5 * (2 / 20000) ** 0.5)


def test_traces_refuse_what_they_cannot_do(getkey):
    with pytest.raises(ValueError, match=r"needs a key: write key=jax\.random\.key\(0\)"):
        eqd.Hutchinson().probes(jnp.zeros(2), key=None)
    with pytest.raises(ValueError, match="at least one probe"):
        eqd.Hutchinson(0)
    with pytest.raises(ValueError, match="at least 1"):
        eqd.ExactTrace(chunk=0)


@pytest.mark.parametrize("name", PROCESSES)
def test_velocity_is_the_papers(name, getkey, x64):
    """v = f·x − ½ g² s (Song et al. 2021, equation 13), with s from autodiff of the log-density."""
    process, t = PROCESSES[name]
    denoiser = correlated(process)
    x = jax.random.normal(getkey(), (2,))
    score = jax.grad(lambda y: denoiser.log_prob(t, y))(x)
    drift, g = process.drift(t, x), process.diffusion(t)
    np.testing.assert_allclose(velocity(denoiser, t, x), drift - 0.5 * g**2 * score, rtol=1e-9)
    np.testing.assert_allclose(reverse_drift(denoiser, t, x), -drift + g**2 * score, rtol=1e-9)
    flow = eqd.probability_flow(denoiser)
    np.testing.assert_allclose(flow.vf(t, x, None), velocity(denoiser, t, x), rtol=1e-12)


def test_augmented_flow_keeps_its_probes(getkey, x64):
    denoiser = correlated(eqd.VPSDE())
    x = jax.random.normal(getkey(), (2,))
    probes = eqd.Hutchinson(3, jax.random.normal).probes(x, key=getkey())
    term = eqd.augmented_flow(denoiser, eqd.Hutchinson(3, jax.random.normal), probes)
    for t in (0.2, 0.7):
        value, rates = term.vf(t, (x, jnp.zeros(3)), None)
        j = jax.jacfwd(lambda y, t=t: velocity(denoiser, t, y))(x)
        np.testing.assert_allclose(value, velocity(denoiser, t, x), rtol=1e-12)
        np.testing.assert_allclose(rates, [e @ j @ e for e in probes], rtol=1e-9)


class _Conditional(eqd.AbstractDenoiser):
    """A Gaussian whose mean is `args`."""

    process: eqd.AbstractProcess
    parameterisation = eqd.Noise()
    variance = eqd.FixedSmall()

    def __call__(self, t, x, args=None, *, key=None):
        return eqd.GaussianDenoiser(self.process, args, 0.5)(t, x)


def test_args_reach_the_denoiser(getkey):
    x, args = jax.random.normal(getkey(), (2,)), jnp.array([3.0, -4.0])
    plain = eqd.GaussianDenoiser(eqd.VPSDE(), args, 0.5)
    denoiser = _Conditional(eqd.VPSDE())
    expected = eqd.probability_flow(plain).vf(0.4, x, None)
    np.testing.assert_allclose(eqd.probability_flow(denoiser).vf(0.4, x, args), expected, rtol=1e-6)


def unsafe(shape=(2,)):
    """Cheap to compile; the steps are then fixed and the adjoint is direct."""
    return lambda key: diffrax.UnsafeBrownianPath(shape, key, diffrax.SpaceTimeLevyArea)


@pytest.mark.parametrize("process", [eqd.VPSDE(), eqd.VESDE(0.1, 5.0)])
def test_forward_sde_has_the_marginals(process):
    """From one x0: mean α x0 and variance σ² (VE carries σ_min² from t = 0 on)."""
    x0, t, n = jnp.array([1.0, -2.0]), 0.3, 3000

    @jax.jit
    @jax.vmap
    def sample(key):
        return diffrax.diffeqsolve(
            eqd.forward_sde(process, unsafe()(key)),
            diffrax.Euler(),
            t0=0.0,
            t1=t,
            dt0=t / 300,
            y0=x0,
            adjoint=diffrax.ForwardMode(),
        ).ys[-1]

    x = np.asarray(sample(jax.random.split(jax.random.key(0), n)))
    start = 0.1**2 if isinstance(process, eqd.VESDE) else 0.0
    variance = float(process.sigma(t)) ** 2 - start
    np.testing.assert_allclose(x.mean(0), process.alpha(t) * x0, atol=4 * (variance / n) ** 0.5)
    np.testing.assert_allclose(x.var(0), variance, rtol=4 * (2 / n) ** 0.5)


SDE_SOLVERS = [
    *(diffrax.ShARK(), diffrax.SRA1(), diffrax.SPaRK(), diffrax.SEA()),
    *(diffrax.Euler(), diffrax.Heun()),
]


@pytest.mark.parametrize("solver", SDE_SOLVERS, ids=lambda s: type(s).__name__)
def test_reverse_sde_runs_one_way_only(solver, getkey):
    """Diffrax's SRK solvers go wrong silently on a decreasing clock; the term must not let them."""
    # Under VE everything is finite at negative times too, so nothing but the checks can notice.
    process = eqd.VESDE(0.1, 5.0, t0=0.1)
    denoiser = eqd.GaussianDenoiser(process, 0.5, 0.3)

    @eqx.filter_jit
    def solve(t0, t1, key):
        return diffrax.diffeqsolve(
            eqd.reverse_sde(denoiser, unsafe()(key)),
            solver,
            t0=t0,
            t1=t1,
            dt0=(t1 - t0) / 4,
            y0=jnp.array([3.0, -1.0]),
            max_steps=8,
            adjoint=diffrax.ForwardMode(),
        ).ys[-1]

    # The same compiled function, with the ends the right way round, is fine.
    assert np.all(np.isfinite(solve(jnp.array(-1.0), jnp.array(-0.1), getkey())))
    for t0, t1, problem in [
        (1.0, 0.1, "(decreasing|positive) time"),
        (-0.1, -1.0, "decreasing time"),
        (0.1, 1.0, "positive time"),
    ]:
        with pytest.raises(eqx.EquinoxRuntimeError, match=f"{problem}.*write t0=-process.t1"):
            solve(jnp.array(t0), jnp.array(t1), getkey())


def test_terms_need_continuous_time():
    denoiser = eqd.GaussianDenoiser(CHAIN)
    for make in (
        eqd.probability_flow,
        lambda d: eqd.augmented_flow(d, eqd.ExactTrace(), None),
        lambda d: eqd.reverse_sde(d, unsafe()(jax.random.key(0))),
        lambda d: velocity(d, 3, jnp.zeros(2)),
    ):
        with pytest.raises(
            ValueError, match=r"on a Schedule. Build it on schedule\.continuous\(\)"
        ):
            make(denoiser)
