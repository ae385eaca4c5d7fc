"""Reversing SDEs that are not processes: a rotating Ornstein–Uhlenbeck process, known in law."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from toys import quick_jit

import eqdiff as eqd


# dx = A (x − args) dt + g(t) dw: contracts, shears and rotates. Its variance is an integral over t.
A = np.array([[-0.6, -2.0], [1.0, -1.2]])
M0, S0 = np.array([1.5, -0.5]), np.array([[0.3, 0.1], [0.1, 0.15]])
SHIFT = jnp.array([0.4, 0.2])
T1 = 1.0


def drift(t, x, args):
    return jnp.asarray(A, x.dtype) @ (x - args)


def diffusion(t):
    return 0.5 + t


def moments(t):
    """Mean and covariance, e^{At} S0 e^{Aᵀt} + ∫ g(s)² e^{A(t−s)} e^{Aᵀ(t−s)} ds, by quadrature."""
    shift = np.asarray(SHIFT)
    flow = expm(A * t)
    nodes, weights = np.polynomial.legendre.leggauss(30)
    covariance = flow @ S0 @ flow.T
    for s, w in zip(0.5 * t * (nodes + 1), 0.5 * t * weights, strict=True):
        part = expm(A * (t - s))
        covariance = covariance + w * (0.5 + s) ** 2 * part @ part.T
    return shift + flow @ (M0 - shift), covariance


# The score at any time, between Chebyshev nodes: exact to rounding, the moments are entire in t.
_NODES = 0.5 * T1 * (1 + np.cos(np.pi * (np.arange(24) + 0.5) / 24))
_FIT = np.polynomial.Chebyshev.fit
_TABLE = np.array([np.concatenate([m, C.ravel()]) for m, C in map(moments, _NODES)])
_SERIES = np.stack(
    [
        _FIT(_NODES, column, 23, domain=(0, T1)).convert(kind=np.polynomial.Polynomial).coef
        for column in _TABLE.T
    ]
)[:, ::-1]


def score(t, x, args):
    values = jnp.stack([jnp.polyval(jnp.asarray(c, x.dtype), t) for c in _SERIES])
    return -jnp.linalg.solve(values[2:].reshape(2, 2), x - values[:2])


@pytest.mark.slow
def test_the_flow_transports_the_density_exactly(x64):
    """A Gaussian's flow is affine: m1 = φ(m0), C1 = J C0 Jᵀ with J its Jacobian; and back."""
    term = eqd.terms.general_probability_flow(drift, diffusion, score)

    def solve(x, t0, t1):
        return diffrax.diffeqsolve(
            term,
            diffrax.Dopri8(),
            t0=t0,
            t1=t1,
            dt0=(t1 - t0) / 100,
            y0=x,
            args=SHIFT,
            stepsize_controller=diffrax.PIDController(rtol=1e-9, atol=1e-9),
            adjoint=diffrax.ForwardMode(),
        ).ys[-1]

    flow = quick_jit(solve)
    mean, covariance = moments(T1)
    found = flow(jnp.asarray(M0), 0.0, T1)
    np.testing.assert_allclose(found, mean, atol=1e-7)
    jacobian = quick_jit(lambda x: jax.jacfwd(lambda y: solve(y, 0.0, T1))(x))(jnp.asarray(M0))
    np.testing.assert_allclose(jacobian @ S0 @ jacobian.T, covariance, atol=1e-7)
    np.testing.assert_allclose(flow(found, T1, 0.0), M0, atol=1e-7)
    # The log-density by the same velocity: log |J| = ∫ div v.
    value, divergence = eqd.ExactTrace().divergence(lambda y: term.vf(0.3, y, SHIFT), found, None)
    expected = jnp.trace(jax.jacfwd(lambda y: term.vf(0.3, y, SHIFT))(found))
    np.testing.assert_allclose(divergence, [expected], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver", [diffrax.ShARK(), diffrax.Euler()], ids=lambda s: type(s).__name__
)
def test_forward_and_reversed_have_the_marginals(solver, x64):
    n, steps = 4000, 200 if isinstance(solver, diffrax.Euler) else 24

    def solve(make, x, key, t0, t1):
        brownian = diffrax.UnsafeBrownianPath((2,), key, diffrax.SpaceTimeLevyArea)
        return diffrax.diffeqsolve(
            make(brownian),
            solver,
            t0=t0,
            t1=t1,
            dt0=(t1 - t0) / steps,
            y0=x,
            args=SHIFT,
            adjoint=diffrax.ForwardMode(),
            max_steps=steps + 1,
        ).ys[-1]

    @quick_jit
    @jax.vmap
    def there(x, key):
        return solve(lambda b: eqd.terms.forward_general_sde(drift, diffusion, b), x, key, 0.0, T1)

    @quick_jit
    @jax.vmap
    def back(x, key):
        return solve(
            lambda b: eqd.terms.reverse_general_sde(drift, diffusion, score, b), x, key, -T1, 0.0
        )

    rng = np.random.default_rng(0)
    keys = jax.random.split(jax.random.key(0), n)
    for run, start, end in ((there, 0.0, T1), (back, T1, 0.0)):
        mean, covariance = moments(start)
        x = run(jnp.asarray(rng.multivariate_normal(mean, covariance, n)), keys)
        mean, covariance = moments(end)
        spread = np.sqrt(np.diag(covariance))
        # Four standard errors, and the bias of the steps.
        np.testing.assert_allclose(np.mean(x, 0), mean, atol=4 * spread.max() / n**0.5 + 0.005)
        np.testing.assert_allclose(
            np.cov(x.T), covariance, atol=4 * np.sqrt(2) * spread.max() ** 2 / n**0.5 + 0.005
        )


def test_it_agrees_with_the_denoisers_terms(getkey, x64):
    """A process is a general SDE too."""
    process = eqd.VPSDE()
    denoiser = eqd.GaussianDenoiser(process, 0.3, 0.6)
    brownian = diffrax.UnsafeBrownianPath((2,), getkey())
    x, t = jax.random.normal(getkey(), (2,)), jnp.asarray(0.4)
    parts = (
        lambda t, x, args: process.drift(t, x),
        process.diffusion,
        lambda t, x, args: eqd.score(denoiser, t, x, args),
    )
    pairs = [
        (eqd.terms.general_probability_flow(*parts), eqd.terms.probability_flow(denoiser), t),
        (
            eqd.terms.reverse_general_sde(*parts, brownian).terms[0],
            eqd.terms.reverse_sde(denoiser, brownian).terms[0],
            -t,
        ),
        (
            eqd.terms.forward_general_sde(*parts[:2], brownian).terms[0],
            eqd.terms.forward_sde(process, brownian).terms[0],
            t,
        ),
    ]
    for mine, theirs, time in pairs:
        np.testing.assert_allclose(mine.vf(time, x, None), theirs.vf(time, x, None), rtol=1e-10)


def test_one_noise_level_for_each_element(x64):
    """g may be an array: two independent processes side by side are each itself."""
    g = jnp.array([0.3, 1.1])
    parts = (lambda t, x, a: -x, lambda t: g, lambda t, x, a: -x / (1 + t))
    x = jnp.array([0.5, -0.7])
    whole = eqd.terms.general_probability_flow(*parts).vf(0.4, x, None)
    for i in range(2):
        single = (parts[0], lambda t, i=i: g[i], parts[2])
        alone = eqd.terms.general_probability_flow(*single).vf(0.4, x[i : i + 1], None)
        np.testing.assert_allclose(whole[i], alone[0], rtol=1e-12)


@pytest.mark.parametrize(
    "solver", [diffrax.ShARK(), diffrax.SRA1(), diffrax.Euler()], ids=lambda s: type(s).__name__
)
def test_it_runs_one_way_only(solver, getkey):
    @eqx.filter_jit
    def solve(t0, t1, key):
        brownian = diffrax.UnsafeBrownianPath((2,), key, diffrax.SpaceTimeLevyArea)
        return diffrax.diffeqsolve(
            eqd.terms.reverse_general_sde(
                lambda t, x, a: -x, lambda t: 1.0, lambda t, x, a: -x, brownian
            ),
            solver,
            t0=t0,
            t1=t1,
            dt0=(t1 - t0) / 4,
            y0=jnp.zeros(2),
            max_steps=8,
            adjoint=diffrax.ForwardMode(),
        ).ys[-1]

    assert np.all(np.isfinite(solve(jnp.array(-1.0), jnp.array(-0.1), getkey())))
    for t0, t1, problem in [(-0.1, -1.0, "decreasing time"), (0.1, 1.0, "positive time")]:
        with pytest.raises(eqx.EquinoxRuntimeError, match=f"{problem}.*increasing clock"):
            solve(jnp.array(t0), jnp.array(t1), getkey())


def test_functions_that_do_not_fit_are_refused(getkey):
    x, brownian = jnp.zeros(2), diffrax.UnsafeBrownianPath((2,), getkey())

    def zero(t, x, args):
        return 0 * x

    with pytest.raises(ValueError, match=r"drift\(t, x, args\) returned shape \(\)"):
        eqd.terms.general_probability_flow(lambda t, x, a: 0.0, diffusion, zero).vf(0.1, x, None)
    with pytest.raises(ValueError, match=r"score\(t, x, args\) returned shape \(1,\)"):
        eqd.terms.reverse_general_sde(zero, diffusion, lambda t, x, a: x[:1], brownian).terms[0].vf(
            -0.1, x, None
        )
    with pytest.raises(ValueError, match=r"diffusion\(t\) returned shape \(2, 2\)"):
        eqd.terms.forward_general_sde(zero, lambda t: jnp.eye(2), brownian).terms[0].vf(
            0.1, x, None
        )
