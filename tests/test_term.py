"""The terms of a denoiser, and what they refuse."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd
from eqdiff._term import reverse_drift, velocity


SCHEDULE = eqd.cosine_schedule(100)
PROCESSES = {
    "vp": (eqd.VPSDE(), 0.3),
    "sub_vp": (eqd.SubVPSDE(), 0.3),
    "ve": (eqd.VESDE(), 0.3),
    "schedule": (SCHEDULE, 30.3),
}
MEAN, COVARIANCE = np.array([0.5, -1.0]), np.array([[0.5, 0.3], [0.3, 0.4]])


def correlated(process) -> eqd.GaussianMixtureDenoiser:
    return eqd.GaussianMixtureDenoiser(process, np.ones(1), MEAN[None], COVARIANCE[None])


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
    flow = eqd.terms.probability_flow(denoiser)
    np.testing.assert_allclose(flow.vf(t, x, None), velocity(denoiser, t, x), rtol=1e-12)


@pytest.mark.slow
def test_augmented_flow_keeps_its_probes(getkey, x64):
    denoiser = correlated(eqd.VPSDE())
    x = jax.random.normal(getkey(), (2,))
    probes = eqd.Hutchinson(3, jax.random.normal).probes(x, key=getkey())
    term = eqd.terms.augmented_flow(denoiser, eqd.Hutchinson(3, jax.random.normal), probes)
    for t in (0.2, 0.7):
        value, rates = term.vf(t, (x, jnp.zeros(3)), None)
        j = jax.jacfwd(lambda y, t=t: velocity(denoiser, t, y))(x)
        np.testing.assert_allclose(value, velocity(denoiser, t, x), rtol=1e-12)
        np.testing.assert_allclose(rates, [e @ j @ e for e in probes], rtol=1e-9)


class _Conditional(eqd.AbstractDenoiser):
    """A Gaussian whose mean is `args`."""

    process: eqd.AbstractProcess
    parameterisation = eqd.PredictNoise()
    variance = eqd.FixedSmall()

    def __call__(self, t, x, args=None, *, key=None):
        return eqd.GaussianDenoiser(self.process, args, 0.5)(t, x)


def test_args_reach_the_denoiser(getkey):
    x, args = jax.random.normal(getkey(), (2,)), jnp.array([3.0, -4.0])
    plain = eqd.GaussianDenoiser(eqd.VPSDE(), args, 0.5)
    denoiser = _Conditional(eqd.VPSDE())
    expected = eqd.terms.probability_flow(plain).vf(0.4, x, None)
    np.testing.assert_allclose(
        eqd.terms.probability_flow(denoiser).vf(0.4, x, args), expected, rtol=1e-6
    )


def unsafe(shape=(2,)):
    """Cheap to compile; the steps are then fixed and the adjoint is direct."""
    return lambda key: diffrax.UnsafeBrownianPath(shape, key, diffrax.SpaceTimeLevyArea)


@pytest.mark.parametrize("process", [eqd.VPSDE(), eqd.VESDE(0.1, 5.0)])
def test_forward_sde_has_the_marginals(process):
    """From one state at t0: the mean a x and the variance b² of the transition."""
    x0, t, n = jnp.array([1.0, -2.0]), 0.3, 3000

    @quick_jit
    @jax.vmap
    def sample(key):
        return diffrax.diffeqsolve(
            eqd.terms.forward_sde(process, unsafe()(key)),
            diffrax.Euler(),
            t0=process.t0,
            t1=t,
            dt0=(t - process.t0) / 300,
            y0=x0,
            adjoint=diffrax.ForwardMode(),
        ).ys[-1]

    x = np.asarray(sample(jax.random.split(jax.random.key(0), n)))
    a, b = (float(value) for value in process.transition(process.t0, t))
    variance = b**2
    np.testing.assert_allclose(x.mean(0), a * np.asarray(x0), atol=4 * (variance / n) ** 0.5)
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
            eqd.terms.reverse_sde(denoiser, unsafe()(key)),
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


@pytest.mark.parametrize(
    "make",
    [
        lambda d: (eqd.terms.probability_flow(d), jnp.ones(2)),
        lambda d: (
            eqd.terms.augmented_flow(d, eqd.ExactTrace(), None),
            (jnp.ones(2), jnp.zeros(1)),
        ),
    ],
)
def test_flows_are_solved_where_the_process_is_used(make):
    """The usual mistakes: t = 0, where σ = 0 and its rate infinite, and steps of a schedule."""
    process = eqd.VPSDE()
    term, state = make(eqd.GaussianDenoiser(process))
    vf = eqx.filter_jit(lambda t: term.vf(t, state, None))
    for t in (process.t0, 0.3, process.t1):
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(vf(jnp.float32(t))))
    for t in (0.0, -0.3, 999.0, np.nan):
        with pytest.raises(eqx.EquinoxRuntimeError, match=r"outside \[t0, t1\].*process.t0"):
            vf(jnp.float32(t))


def test_the_reverse_sde_is_solved_where_the_process_is_used(getkey):
    term = eqd.terms.reverse_sde(eqd.GaussianDenoiser(eqd.VPSDE()), unsafe()(getkey())).terms[0]
    vf = eqx.filter_jit(lambda t: term.vf(t, jnp.ones(2), None))
    assert np.all(np.isfinite(vf(jnp.float32(-0.3))))
    for tau in (0.0, -2.0):
        with pytest.raises(eqx.EquinoxRuntimeError, match=r"outside \[-t1, -t0\]"):
            vf(jnp.float32(tau))


@pytest.mark.parametrize("solver", [diffrax.ShARK(), diffrax.SPaRK(), diffrax.SEA()])
def test_a_brownian_motion_without_levy_areas_is_named(solver, getkey):
    """Diffrax's own message shows two types of terms and no remedy."""
    process = eqd.VPSDE()
    brownian = diffrax.VirtualBrownianTree(-1.0, -1e-5, 1e-2, (2,), getkey())
    term = eqd.terms.reverse_sde(eqd.GaussianDenoiser(process), brownian)
    forward = eqd.terms.forward_sde(process, diffrax.UnsafeBrownianPath((2,), getkey()))
    for terms, ends, kind in [
        (term, (-1.0, -1e-5), "VirtualBrownianTree"),
        (forward, (1e-5, 1.0), "UnsafeBrownianPath"),
    ]:
        says = rf"diffrax\.{kind}\(\.\.\., levy_area=diffrax.SpaceTimeLevyArea\)"
        with pytest.raises(ValueError, match=says):
            diffrax.diffeqsolve(terms, solver, *ends, 0.1, jnp.ones(2))
