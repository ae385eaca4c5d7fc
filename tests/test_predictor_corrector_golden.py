"""Predictors, correctors and whole chains against score_sde, with its recorded noise."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden
from published import BatchLangevin, draw, step_between, steps_along
from tape import in_precision, PRECISIONS, Tape
from toys import quick_jit, sde_denoiser, SdeToy

import eqdiff as eqd


FILE = "public_sde_samplers"
N, EPS = 1000, 1e-3
SDES = {
    "VESDE": eqd.VESDE(t0=0.0),
    "VPSDE": eqd.VPSDE(),
    "subVPSDE": eqd.SubVPSDE(),
}


@pytest.fixture(autouse=True, params=PRECISIONS)
def precision(request):
    with in_precision(request.param):
        yield request.param


def golden(key):
    return jnp.asarray(load_golden(FILE)[key], float)


def official_score(name, t, x, c_noise, sigma, continuous):
    """What score_sde's `get_score_fn` returns for the toy network."""
    net = SdeToy(golden("in/p"), name == "VESDE")
    if name == "VESDE":
        return net(c_noise if continuous else 0.05 * c_noise, x)
    return -net(c_noise, x) / sigma


SCHEDULE = eqd.linear_schedule(N)


def setting(name, t, continuous):
    """The official score at t, and the index of the official tables there."""
    process = SDES[name]
    index = jnp.floor(t * (N - 1) + 1e-4).astype(jnp.int32)
    sigma, c_noise = process.sigma(t), 999 * t
    if name == "VESDE":
        c_noise = sigma if continuous else jnp.rint((1 - t) * (N - 1))
    if name == "VPSDE" and not continuous:
        sigma = SCHEDULE.sigma(index)
    return ft.partial(
        official_score, name, t, c_noise=c_noise, sigma=sigma, continuous=continuous
    ), index


def denoiser_of(score, process):
    return eqd.Denoiser(lambda c_noise, x, args, key: score(x=x), process, eqd.PredictScore())


PREDICTORS = {
    "euler_maruyama": lambda name, eta: eqd.EulerMaruyama(eta),
    # The official code falls back to Euler–Maruyama for sub-VP, whose transition has no table.
    "reverse_diffusion": lambda name, eta: (
        eqd.EulerMaruyama(eta) if name == "subVPSDE" else eqd.ReverseDiffusion(eta)
    ),
    "ancestral_sampling": lambda name, eta: eqd.AncestralPredictor(
        eqd.FixedSmall() if name == "VESDE" else eqd.FixedLarge()
    ),
}


def steps_of(name):
    """The steps of the predictors from the recorded times, and the steps that stay there."""
    t = np.asarray(golden("in/t"), np.float64)
    index = np.floor(np.asarray(golden("in/t")) * (N - 1) + 1e-4).astype(int)
    place, end = index, np.maximum(index - 1, 0)
    process = SCHEDULE if name == "VPSDE" else SDES[name]
    if name != "VPSDE":
        place, end = place / (N - 1), end / (N - 1)
    levels = step_between(process, place, end, index == 0)
    return {
        "euler_maruyama": step_between(SDES[name], t, t - 1 / N),
        "levels": levels,
        "stay": step_between(SDES[name], t, t),
    }


def predict(name, kind, eta, continuous, steps, t, x, key):
    score, _ = setting(name, t, continuous)
    predictor = PREDICTORS[kind](name, eta)
    if isinstance(predictor, eqd.EulerMaruyama):
        process, step = SDES[name], steps["euler_maruyama"]
    else:
        process = SCHEDULE if name == "VPSDE" else SDES[name]
        step = steps["levels"]
    return predictor(denoiser_of(score, process), step, x, None, key=key)[:2]


CORRECTORS = {
    "langevin": lambda steps: BatchLangevin(0.16, steps),
    "ald": lambda steps: eqd.AnnealedLangevin(0.16, steps),
}


def correct(name, kind, num_steps, continuous, steps, t, x, key):
    score, index = setting(name, t, continuous)
    # The official factor is 1 − β of the table, though the level is the continuous σ(t).
    betas = jnp.asarray(SCHEDULE.betas, t.dtype)
    a = jnp.sqrt(1 - betas[index]) if name == "VPSDE" else jnp.ones_like(t)
    step = eqx.tree_at(lambda s: (s.alpha_t, s.alpha_s), steps["stay"], (a, jnp.ones_like(t)))
    corrector = CORRECTORS[kind](num_steps)
    return corrector(denoiser_of(score, SDES[name]), step, x, None, key=key)[:2]


CASES = [
    key.rpartition("/")[0]
    for key in load_golden(FILE)
    if ("/predictor_" in key or "/corrector_" in key) and key.endswith("/x")
]


def single(tape, case, steps, x, t, noise):
    name, _, rest = case.partition("/")
    role, _, rest = rest.partition("_")
    kind, continuous, last = rest.rsplit("_", 2)
    continuous = continuous == "cont1"
    if role == "predictor":
        eta = 0.0 if last == "pf1" else 1.0
        return predict(name, kind, eta, continuous, steps, t, x, tape.play(noise))
    num_steps = int(last[1:])
    key = tape.play(noise[:num_steps])
    return correct(name, kind, num_steps, continuous, steps, t, x, key)


@pytest.mark.parametrize("name", SDES)
def test_single_steps(name, monkeypatch):
    """All predictors and correctors of an SDE, in one compilation."""
    tape, cases = Tape(monkeypatch), [case for case in CASES if case.startswith(name + "/")]
    run = jax.vmap(
        lambda steps, x, t, noise: [single(tape, case, steps, x, t, noise) for case in cases],
        in_axes=(0, 0, 0, 1),
        axis_name="batch",
    )
    inputs = golden("in/x"), golden("in/t"), golden("in/noise")
    results = quick_jit(run)(steps_of(name), *inputs)
    assert len(cases) == {"VESDE": 16, "VPSDE": 16, "subVPSDE": 6}[name]
    for case, outputs in zip(cases, results, strict=True):
        for key, actual in zip((f"{case}/x", f"{case}/x_mean"), outputs, strict=True):
            assert_golden(actual, FILE, key)


def time_of_step(u):
    """The official times, as a function of the place on a grid from 1 to 0."""
    return 1 - (1 - u) * (1 - EPS)


def betas(num_steps):
    return np.linspace(0.1 / num_steps, 20 / num_steps, num_steps)


def ve(num_steps, indexed, predictor, corrector):
    """VE through its table, at places u from 1 to 0; the network is given the official times."""

    def c_noise(process, u):
        t = time_of_step(u)
        return 0.05 * jnp.rint((1 - t) * (num_steps - 1)) if indexed else process.sigma(t)

    net = SdeToy(golden("in/p"), True)
    denoiser = eqd.Denoiser(net, SDES["VESDE"], eqd.PredictScore(), c_noise=c_noise)
    times = jnp.linspace(1.0, 0.0, num_steps)
    return denoiser, steps_along(denoiser.process, times), predictor, corrector


def ve_annealed():
    """No predictor steps through a table here, so the noise level is that of the official time."""
    denoiser = eqd.Denoiser(
        SdeToy(golden("in/p"), True),
        SDES["VESDE"],
        eqd.PredictScore(),
        c_noise=lambda process, t: 0.05 * jnp.rint((1 - t) * 11),
    )
    steps = steps_along(denoiser.process, jnp.linspace(1.0, EPS, 12))
    # The official factor is 1 under VE.
    return denoiser, steps, None, eqd.AnnealedLangevin(0.16, 2)


def maruyama(name, num_steps, eta=1.0):
    """Published as it stands: N times down to ε, and steps of 1/N from each."""
    denoiser = sde_denoiser(SDES[name], golden("in/p"))
    steps = steps_along(SDES[name], jnp.linspace(1.0, EPS, num_steps), size=1 / num_steps)
    return denoiser, steps, eqd.EulerMaruyama(eta), None


def vp_langevin():
    process, schedule = SDES["VPSDE"], eqd.Schedule(betas(24), c_noise=np.arange(24) / 23)

    def net(u, x, args, key):
        t = time_of_step(u)
        return official_score("VPSDE", t, x, 999 * t, process.sigma(t), True)

    denoiser = eqd.Denoiser(net, schedule, eqd.PredictScore())
    steps = steps_along(schedule, np.arange(24)[::-1].copy())
    return denoiser, steps, eqd.ReverseDiffusion(), BatchLangevin(0.16, 1)


def vp_ancestral():
    schedule = eqd.Schedule(betas(24), c_noise=23 * np.linspace(1, EPS, 24)[::-1])
    net = SdeToy(golden("in/p"), False)
    denoiser = eqd.Denoiser(net, schedule, variance=eqd.FixedLarge())
    steps = steps_along(schedule, np.arange(24)[::-1].copy())
    return denoiser, steps, eqd.AncestralPredictor(), None


CHAINS = {
    "VESDE_reverse_diffusion_langevin_cont1_n1_pf0": lambda: ve(
        12, False, eqd.ReverseDiffusion(), BatchLangevin(0.16, 1)
    ),
    "VESDE_ancestral_sampling_none_cont0_n1_pf0": lambda: ve(
        12, True, eqd.AncestralPredictor(eqd.FixedSmall()), None
    ),
    "VESDE_none_ald_cont0_n2_pf0": ve_annealed,
    "VPSDE_euler_maruyama_none_cont1_n1_pf0": lambda: maruyama("VPSDE", 24),
    "VPSDE_reverse_diffusion_langevin_cont1_n1_pf0": vp_langevin,
    "VPSDE_ancestral_sampling_none_cont0_n1_pf0": vp_ancestral,
    "subVPSDE_euler_maruyama_none_cont1_n1_pf0": lambda: maruyama("subVPSDE", 12),
    "subVPSDE_reverse_diffusion_none_cont1_n1_pf1": lambda: maruyama("subVPSDE", 12, 0.0),
}


def tape_of(draws, num_steps, corrections, predicts):
    """The recorded draws where `draw` looks for them: four keys a step, each of `corrections`."""
    each = draws[1:].reshape(num_steps, corrections + predicts, *draws.shape[1:])
    noise = jnp.zeros((num_steps, 4, max(corrections, 1), *draws.shape[1:]), draws.dtype)
    if corrections:
        noise = noise.at[:, 0].set(each[:, :corrections])
    if predicts:
        noise = noise.at[:, 2, 0].set(each[:, -1])
    return noise.reshape(-1, *draws.shape[1:])


@pytest.mark.parametrize("name", CHAINS)
def test_whole_chains(name, monkeypatch):
    draws, tape = golden(f"pc/{name}_denoise0/draws"), Tape(monkeypatch)
    denoiser, steps, predictor, corrector = CHAINS[name]()
    corrections = 0 if corrector is None else corrector.steps
    noise = tape_of(draws, len(steps.t), corrections, predictor is not None)

    def run(x1, noise):
        kwargs = dict(predictor=predictor, corrector=corrector)
        return draw(denoiser, steps, x1, key=tape.play(noise), **kwargs)

    x1 = draws[0] * denoiser.process.prior_scale()
    out = quick_jit(jax.vmap(run, in_axes=(0, 1), axis_name="batch"))(x1, noise)
    for denoised, x in enumerate(out):
        assert_golden((x + 1) / 2, FILE, f"pc/{name}_denoise{denoised}/out")
    # The official count is N (steps + 1) also where there is no corrector, or no predictor.
    ours = eqd.PredictorCorrector(len(steps.t), predictor=predictor, corrector=corrector)
    official = int(load_golden(FILE)[f"pc/{name}_denoise0/nfe"])
    assert ours.num_calls == official if corrections and predictor else ours.num_calls < official


@pytest.mark.parametrize("name", SDES)
def test_runge_kutta_sampler(name, precision):
    """Adaptive as theirs but to a tighter tolerance, so that only theirs (1e-5 a step) is seen."""
    if precision == "float32":
        pytest.skip("float32 holds no tolerance of 1e-8")
    denoiser = sde_denoiser(type(SDES[name])(t0=EPS), golden("in/p"))
    flow = eqd.ProbabilityFlow(rtol=1e-8, atol=1e-8)
    solve = jax.jit(jax.vmap(lambda x: flow.solve(denoiser, x).ys[-1]))
    expected = golden(f"ode/{name}_denoise0/out")
    np.testing.assert_allclose(
        solve(golden(f"ode/{name}_denoise0/z")),
        expected,
        atol=1e-4 * float(jnp.abs(expected).max()),
    )
