"""DPM-Solver++(2M) as a Diffrax solver and as a sampler, and what solves cost."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


X1 = np.array([0.7, -1.3])
SMOOTH = eqd.VPSDE(0.1, 5.0, t0=0.02)


def mixture(process):
    means, covariances = np.array([[1.0, 0.5], [-0.8, -0.3]]), np.stack([0.2 * np.eye(2)] * 2)
    return eqd.GaussianMixtureDenoiser(process, np.array([0.4, 0.6]), means, covariances)


def textbook(denoiser, times, x):
    """Lu et al. 2022b, algorithm 2, as printed: on x, with ratios r and the exponentials of −h."""
    process = denoiser.process
    alpha, sigma = ([float(f(t)) for t in times] for f in (process.alpha, process.sigma))
    clock = np.log(np.array(alpha) / np.array(sigma))
    estimates, estimate = [], quick_jit(lambda t, x: denoiser(t, x).x0)
    for i in range(1, len(times)):
        estimates.append(np.asarray(estimate(times[i - 1], jnp.asarray(x))))
        h = clock[i] - clock[i - 1]
        d = estimates[-1]
        if i > 1:
            r = (clock[i - 1] - clock[i - 2]) / h
            d = (1 + 1 / (2 * r)) * estimates[-1] - 1 / (2 * r) * estimates[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (np.exp(-h) - 1) * d
    return estimate(times[-1], jnp.asarray(x))


@pytest.mark.parametrize("process", [SMOOTH, eqd.linear_schedule(50)], ids=["sde", "chain"])
def test_is_the_published_algorithm(process, x64):
    denoiser = mixture(process)
    times = process.grid(6)
    expected = textbook(denoiser, times, X1)
    sample = quick_jit(lambda x: eqd.DPMSolverPP(times=times)(denoiser, x))(jnp.asarray(X1))
    np.testing.assert_allclose(sample, expected, rtol=1e-9)


def solve(denoiser, times, x, solver):
    """The probability flow by its data-prediction term, from the first of some times to the last."""
    process = denoiser.process
    clock = 0.5 * jax.vmap(process.log_snr)(times)
    solution = diffrax.diffeqsolve(
        eqd.data_prediction(denoiser),
        solver,
        t0=clock[0],
        t1=clock[-1],
        dt0=None,
        y0=x / process.sigma(times[0]),
        stepsize_controller=diffrax.StepTo(clock),
    )
    return process.sigma(times[-1]) * solution.ys[-1]


def test_euler_on_its_term_is_ddim(x64):
    """The first step of 2M, repeated: order 1. DDIM goes on from the last time to the data, by its estimate there."""
    denoiser, times, x1 = mixture(SMOOTH), eqd.log_snr_times(SMOOTH, 7), jnp.asarray(X1)
    x = quick_jit(lambda: solve(denoiser, times, x1, diffrax.Euler()))()
    ddim = quick_jit(lambda: eqd.DDIM(times=times).trajectory(denoiser, x1).x)()
    np.testing.assert_allclose(x, ddim[-2], rtol=1e-10)


def slope(errors):
    steps = np.array(list(errors))
    return -np.polyfit(np.log(steps), np.log(list(errors.values())), 1)[0]


@pytest.mark.slow
def test_is_of_second_order_in_both_directions(x64):
    """Against 400 steps of fifth order of the probability flow in natural time; and from data back to noise."""
    denoiser, x1 = mixture(SMOOTH), jnp.asarray(X1)
    flow = eqd.ProbabilityFlow(diffrax.Tsit5(), num_steps=400)
    exact = np.asarray(quick_jit(lambda: flow.solve(denoiser, x1).ys[-1])())
    run = quick_jit(lambda times, x: solve(denoiser, times, x, eqd.DPMSolverPP2M()))
    down, up = {}, {}
    for n in (40, 160):
        times = eqd.log_snr_times(SMOOTH, n + 1)
        down[n] = np.abs(run(times, x1) - exact).max()
        up[n] = np.abs(run(times[::-1], jnp.asarray(exact)) - X1).max()
    assert abs(slope(down) - 2) < 0.2 and abs(slope(up) - 2) < 0.2
    assert down[160] < 1e-4


def test_is_adams_bashforth_on_an_ordinary_term(x64):
    """Its extrapolation knows nothing of diffusion: on dy/dt = cos t · y, on an uneven grid, second order."""

    def run(grid):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: {"y": jnp.cos(t) * y["y"]}),
            eqd.DPMSolverPP2M(),
            t0=0.0,
            t1=2.0,
            dt0=None,
            y0={"y": jnp.ones(2)},
            stepsize_controller=diffrax.StepTo(grid),
        ).ys["y"][-1]

    errors = {}
    for n in (50, 200):
        y = quick_jit(run)(2 * jnp.linspace(0.0, 1.0, n + 1) ** 1.5)
        errors[n] = float(jnp.abs(y - jnp.exp(jnp.sin(2.0))).max())
    assert abs(slope(errors) - 2) < 0.1


@pytest.mark.slow
def test_sampler_is_differentiable_and_keeps_float32():
    denoiser = eqd.GaussianDenoiser(SMOOTH, 0.5, 0.3)
    x = jnp.asarray(X1, jnp.float32)
    run = jax.vmap(jax.value_and_grad(lambda x: eqd.DPMSolverPP(6)(denoiser, x).sum()))
    (here, there), (gradient, same) = quick_jit(run)(jnp.stack([x, x + 1.0]))
    assert gradient.dtype == jnp.float32
    # Gaussian data: the sample is an affine function of x1.
    np.testing.assert_allclose(gradient, same, rtol=1e-4)
    np.testing.assert_allclose(gradient.sum(), there - here, rtol=1e-3)
    assert eqx.filter_eval_shape(eqd.DPMSolverPP(1), denoiser, x).dtype == jnp.float32
    with pytest.raises(ValueError, match="at least two times"):
        eqd.DPMSolverPP(1).solve(denoiser, x)


class Counting:
    """A noise network that counts its calls as they run."""

    def __init__(self):
        self.calls = 0

    def _tick(self, x):
        self.calls += 1
        return np.zeros((), np.asarray(x).dtype)

    def __call__(self, label, x, args=None, *, key=None):
        # Of x, lest a loop at one time be given one call.
        zero = jax.pure_callback(self._tick, jax.ShapeDtypeStruct((), x.dtype), x)
        return jnp.tanh(x) + zero


CHAINS = [
    (eqd.PredictorCorrector(4, corrector=eqd.Langevin(steps=2)), 12),
    (eqd.PredictorCorrector(4, predictor=None), 5),
    (eqd.PredictorCorrector(4, predictor=None, final=eqd.FinalSample()), 4),
    (eqd.PredictorCorrector(4, predictor=eqd.AncestralPredictor(), corrector=None), 4),
    # ShARK has two stages; the estimate at every time is one more.
    (eqd.PredictorCorrector(4, predictor=eqd.DiffraxPredictor(), corrector=None), 10),
    (eqd.StochasticHeun(4, churn=1.0), 7),
    (eqd.DPMSolverPP(5), 5),
]


@pytest.mark.parametrize("i", range(len(CHAINS)))
def test_calls_of_chains(i):
    sampler, expected = CHAINS[i]
    assert sampler.num_calls == expected
    net = Counting()
    denoiser, x = eqd.Denoiser(net, SMOOTH), jnp.asarray(X1, float)
    run = quick_jit(lambda x: sampler(denoiser, x, key=jax.random.key(0)))
    jax.block_until_ready(run(x))
    assert net.calls == expected


SOLVES = {
    "tsit5": eqd.ProbabilityFlow(rtol=1e-2, atol=1e-2),
    "heun": eqd.ProbabilityFlow(diffrax.Heun(), num_steps=3),
    "slow_rk": eqd.ReverseSDE(diffrax.SlowRK(), num_steps=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVES)
def test_calls_of_solves(name):
    """`solve`, and the final denoising that the statistics include."""
    sampler, net = SOLVES[name], Counting()
    denoiser = eqd.Denoiser(net, SMOOTH)
    kwargs = {"key": jax.random.key(0)} if isinstance(sampler, eqd.ReverseSDE) else {}

    def run(x):
        solution = sampler.solve(denoiser, x, **kwargs)
        return sampler.stats(solution), denoiser(SMOOTH.t0, solution.ys[-1]).x0

    stats, _ = jax.block_until_ready(quick_jit(run)(jnp.asarray(X1, float)))
    assert int(stats.num_calls) == net.calls
    accepted, rejected = int(stats.num_accepted_steps), int(stats.num_rejected_steps)
    assert accepted + rejected > 1
    if sampler.num_steps is not None:
        assert (accepted, rejected) == (sampler.num_steps, 0)


def test_unknown_costs_are_refused():
    sampler = eqd.ReverseSDE(diffrax.HalfSolver(diffrax.Euler()), num_steps=1)
    denoiser = eqd.GaussianDenoiser(SMOOTH)

    def run(x):
        return sampler.stats(sampler.solve(denoiser, x, key=jax.random.key(0)))

    with pytest.raises(ValueError, match=r"Read solution\.stats"):
        jax.eval_shape(run, jnp.asarray(X1, float))
    with pytest.raises(ValueError, match="cannot be counted"):
        eqd.DiffraxPredictor(diffrax.HalfSolver(diffrax.Euler()))


@pytest.mark.slow
def test_reverse_sde_on_a_grid(x64):
    """Karras's times for Euler–Maruyama on EDM's process: the variance of Gaussian data."""
    process = eqd.EDMSDE(t0=0.01, t1=10.0)
    denoiser = eqd.GaussianDenoiser(process, 0.0, 0.5)
    sampler = eqd.ReverseSDE(diffrax.Euler(), times=eqd.karras_times(process, 100))
    n = 1000
    x1 = 10 * jax.random.normal(jax.random.key(1), (n, 1))
    draw = quick_jit(jax.vmap(lambda x, k: sampler(denoiser, x, key=k)))
    x = draw(x1, jax.random.split(jax.random.key(0), n))
    assert abs(float(x.std()) - 0.5) < 4 * 0.5 / np.sqrt(2 * n) + 0.01
