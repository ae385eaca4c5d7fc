"""What a sample costs: every network call is counted as it runs."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


X1 = np.array([0.7, -1.3])
SMOOTH = eqd.VPSDE(0.1, 5.0, t0=0.02)


class Counting:
    """A noise network that counts its calls as they run."""

    def __init__(self, wobble=0.0):
        self.calls, self.wobble = 0, wobble

    def __call__(self, c_noise, x, args=None, *, key=None):
        return jnp.tanh(x) + self.wobble * jnp.sin(c_noise) + self.tick(x)

    def tick(self, x):
        """0, and its derivative; the callback reads x, lest it be hoisted from a loop."""

        @jax.custom_jvp
        def zero(x):
            shape = jax.ShapeDtypeStruct((), x.dtype)
            return jax.pure_callback(self._count, shape, x, vmap_method="sequential")

        zero.defjvp(lambda primals, tangents: (zero(*primals), 0 * jnp.sum(tangents[0])))
        return zero(x)

    def _count(self, x):
        self.calls += 1
        return np.zeros((), np.asarray(x).dtype)


def calls_of(run, wobble=0.0, process=SMOOTH):
    """What `run(denoiser, x)` returns, and how many calls it made."""
    net = Counting(wobble)
    denoiser = eqd.Denoiser(net, process)
    out = quick_jit(lambda x: run(denoiser, x))(jnp.asarray(X1, float))
    return jax.block_until_ready(out), net.calls


DDIM_ONCE = eqd.Constrained(eqd.DDIM(3), eqd.Inpaint(np.zeros(2), np.array([True, False])))
CHAINS = [
    (eqd.DDIM(5, eta=0.5), 5),
    (eqd.DDIM(times=np.array([0.9, 0.4, 0.1])), 3),
    (DDIM_ONCE, 3),
    (eqd.Constrained(eqd.DDIM(3), DDIM_ONCE.constraint, repeats=4), 12),
    (eqd.PredictorCorrector(4, corrector=eqd.Langevin(steps=2)), 12),
    (eqd.PredictorCorrector(4, predictor=None), 5),
    (eqd.PredictorCorrector(4, predictor=eqd.AncestralPredictor(), corrector=None), 4),
    (eqd.PredictorCorrector(4, predictor=eqd.EulerMaruyama()), 8),
    # ShARK has two stages; the estimate at every time is one more.
    (eqd.PredictorCorrector(4, predictor=eqd.DiffraxPredictor(), corrector=None), 10),
    (eqd.StochasticHeun(4, churn=1.0), 7),
    (eqd.StochasticHeun(1), 1),
    (eqd.DPMSolverPP(5), 5),
    (eqd.DPMSolverPP(1), 1),
    (eqd.UniPC(5, order=3), 5),
    (eqd.SDEDPMSolverPP(5), 5),
    (eqd.DiffPIR(eqd.Measurement(np.zeros(2), lambda x: x, 0.1), 5), 5),
    (eqd.DAPS(eqd.Measurement(np.zeros(2), lambda x: x, 0.1), 3, flow_steps=4), 12),
    (eqd.ProbabilityFlow(diffrax.Euler(), num_steps=3), 4),
    (eqd.ProbabilityFlow(diffrax.Heun(), times=np.array([0.9, 0.5, 0.1])), 5),
    (eqd.ProbabilityFlow(diffrax.Tsit5(), num_steps=3), 20),
    (eqd.ReverseSDE(diffrax.Euler(), num_steps=3), 4),
    (eqd.ReverseSDE(diffrax.ShARK(), num_steps=3), 7),
    (eqd.ReverseSDE(diffrax.SlowRK(), num_steps=2), None),
]


@pytest.mark.parametrize("i", range(len(CHAINS)))
def test_calls_of_given_steps(i):
    sampler, expected = CHAINS[i]
    _, calls = calls_of(lambda d, x: sampler(d, x, key=jax.random.key(0)))
    assert sampler.num_calls == calls
    assert expected is None or calls == expected


@pytest.mark.parametrize("sampler", [eqd.Ancestral(6), eqd.Ancestral(times=np.array([40, 7, 0]))])
def test_calls_of_a_schedules_steps(sampler):
    def run(denoiser, x):
        return sampler(denoiser, x, key=jax.random.key(0))

    assert calls_of(run, process=eqd.cosine_schedule(50))[1] == sampler.num_calls


def test_what_only_a_solve_or_a_schedule_can_tell():
    for sampler in (eqd.ProbabilityFlow(), eqd.ReverseSDE(), eqd.Ancestral()):
        assert sampler.num_calls is None


ADAPTIVE = {
    "tsit5": (eqd.ProbabilityFlow(rtol=1e-2, atol=1e-2), 6, 0.0),
    "bosh3": (eqd.ProbabilityFlow(diffrax.Bosh3(), rtol=1e-3, atol=1e-3), 3, 0.0),
    # So rough in time that the first step is rejected, several times.
    "rejected": (eqd.ProbabilityFlow(diffrax.Bosh3(), rtol=1e-3, atol=1e-3), 3, 3.0),
    "heun": (eqd.ProbabilityFlow(diffrax.Heun(), rtol=1e-2, atol=1e-2), 2, 0.0),
    "shark": (eqd.ReverseSDE(rtol=0.1, atol=0.1), 2, 0.0),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_calls_of_adaptive_steps(name):
    """`solve`, and the final denoising that the statistics include."""
    sampler, each, wobble = ADAPTIVE[name]

    def run(denoiser, x):
        solution = sampler.solve(denoiser, x, key=jax.random.key(0))
        return sampler.stats(solution), denoiser(SMOOTH.t0, solution.ys[-1]).x0

    (stats, _), calls = calls_of(run, wobble)
    assert int(stats.num_calls) == calls
    accepted, rejected = int(stats.num_accepted_steps), int(stats.num_rejected_steps)
    assert accepted + rejected > 1
    # First stages that were no step's last: one, and one for each rejection before any was.
    early = calls - 1 - each * (accepted + rejected)
    if name == "rejected":
        assert early > 2
    else:
        assert early == (1 if name in ("tsit5", "bosh3") else 0)


@pytest.mark.parametrize("trace", [eqd.ExactTrace(), eqd.Hutchinson()])
@pytest.mark.parametrize("solver", [diffrax.Bosh3(), diffrax.Heun()])
def test_calls_of_a_likelihood(trace, solver):
    flow = eqd.ProbabilityFlow(solver, rtol=1e-3, atol=1e-3)

    def run(denoiser, x):
        key = jax.random.key(0)
        return eqd.log_likelihood(denoiser, x, flow=flow, trace=trace, key=key).stats

    stats, calls = calls_of(run)
    assert int(stats["num_calls"]) == calls > 2


def test_unknown_costs_are_refused():
    sampler = eqd.ReverseSDE(diffrax.HalfSolver(diffrax.Euler()), num_steps=1)
    denoiser = eqd.GaussianDenoiser(SMOOTH)

    def run(x):
        return sampler.stats(sampler.solve(denoiser, x, key=jax.random.key(0)))

    with pytest.raises(ValueError, match=r"Read solution\.stats"):
        jax.eval_shape(run, jnp.asarray(X1, float))
