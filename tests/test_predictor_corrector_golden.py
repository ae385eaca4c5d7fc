"""Predictors, correctors and whole chains against score_sde, with its recorded noise."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, golden_tolerance, load_golden
from toys import quick_jit, SdeToy

import eqdiff as eqd


FILE = "public_sde_samplers"
N, EPS = 1000, 1e-3
SDES = {
    "VESDE": eqd.VESDE(t0=1e-9),
    "VPSDE": eqd.VPSDE(),
    "subVPSDE": eqd.SubVPSDE(),
}


class Tape:
    """Recorded noise, and keys that are places on it: a key's children share its stretch out evenly."""

    def play(self, noise):
        """The key that stands for the whole tape, one draw per row."""
        self.noise = noise
        return self._key(jnp.uint32(0), jnp.uint32(len(noise)))

    def _key(self, start, length):
        return jax.random.wrap_key_data(jnp.stack([start, length], axis=-1), impl="threefry2x32")

    def split(self, key, num=2):
        start, length = jax.random.key_data(key)
        each = jnp.broadcast_to(length // num, (num,))
        return self._key(start + each * jnp.arange(num, dtype=jnp.uint32), each)

    def normal(self, key, shape, dtype):
        assert self.noise.shape[1:] == shape
        return self.noise[jax.random.key_data(key)[0]].astype(dtype)


@pytest.fixture
def tape(monkeypatch):
    tape = Tape()
    monkeypatch.setattr(jax.random, "split", tape.split)
    monkeypatch.setattr(jax.random, "normal", tape.normal)
    return tape


def golden(key):
    return jnp.asarray(load_golden(FILE)[key], float)


def official_score(name, t, x, label, sigma, continuous):
    """What score_sde's `get_score_fn` returns for the toy network."""
    net = SdeToy(golden("in/p"), name == "VESDE")
    if name == "VESDE":
        return net(label if continuous else 0.05 * label, x)
    return -net(label, x) / sigma


def levels(alpha, sigma, log_snr, next_alpha, next_sigma, next_log_snr):
    return eqd.Levels(
        *map(jnp.asarray, (alpha, sigma, log_snr, next_alpha, next_sigma, next_log_snr))
    )


def between(process, t, s, first):
    """The levels of a step from t to s, or into the data from the first time of a chain."""
    data = (1.0, 0.0, jnp.inf)
    ends = [f(s) for f in (process.alpha, process.sigma, process.log_snr)]
    return levels(
        *(f(t) for f in (process.alpha, process.sigma, process.log_snr)),
        *(jnp.where(first, d, e) for d, e in zip(data, ends, strict=True)),
    )


CHAIN = eqd.linear_schedule(N)


def setting(name, t, continuous):
    """The official score at t, the index of the official tables there, and the process that has their levels."""
    process = SDES[name]
    index = jnp.floor(t * (N - 1) + 1e-4).astype(int)
    sigma, label = process.sigma(t), 999 * t
    if name == "VESDE":
        label = sigma if continuous else jnp.rint((1 - t) * (N - 1))
    if name == "VPSDE" and not continuous:
        sigma = CHAIN.sigma(index)
    score = ft.partial(official_score, name, t, label=label, sigma=sigma, continuous=continuous)
    return score, index


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


def predict(name, kind, eta, continuous, t, x, key):
    score, index = setting(name, t, continuous)
    predictor = PREDICTORS[kind](name, eta)
    if predictor.needs_end:
        process, place, end = SDES[name], t, t - 1 / N
        step = eqd.Step(end, between(process, t, t, False), jnp.asarray(False))
    else:
        process = CHAIN if name == "VPSDE" else SDES[name]
        place, end = index, jnp.maximum(index - 1, 0)
        if name == "VESDE":
            place, end = (i.astype(t.dtype) / (N - 1) for i in (place, end))
        step = eqd.Step(end, between(process, place, end, index == 0), index == 0)
    proposal = predictor(denoiser_of(score, process), place, step, x, None, key=key)
    return proposal.x, proposal.mean


CORRECTORS = {
    "langevin": lambda steps: eqd.Langevin(0.16, steps, norms=eqd.BatchMean("batch")),
    "ald": lambda steps: eqd.AnnealedLangevin(0.16, steps),
}


def correct(name, kind, steps, continuous, t, x, key):
    score, index = setting(name, t, continuous)
    process = SDES[name]
    # The official factor is 1 − β of the table beside the continuous σ(t).
    alpha = jnp.sqrt(1 - jnp.asarray(CHAIN.betas)[index]) if name == "VPSDE" else 1.0
    here = levels(alpha, process.sigma(t), 0.0, 1.0, process.sigma(t), 0.0)
    step = eqd.Step(t, here, jnp.asarray(False))
    corrected = CORRECTORS[kind](steps)(denoiser_of(score, process), t, step, x, None, key=key)
    return corrected.x, corrected.mean


CASES = [
    key.rpartition("/")[0]
    for key in load_golden(FILE)
    if ("/predictor_" in key or "/corrector_" in key) and key.endswith("/x")
]


def single(tape, case, x, t, noise):
    name, _, rest = case.partition("/")
    role, _, rest = rest.partition("_")
    kind, continuous, last = rest.rsplit("_", 2)
    continuous = continuous == "cont1"
    if role == "predictor":
        eta = 0.0 if last == "pf1" else 1.0
        return predict(name, kind, eta, continuous, t, x, tape.play(noise))
    steps = int(last[1:])
    return correct(name, kind, steps, continuous, t, x, tape.play(noise[:steps]))


@pytest.mark.parametrize("name", SDES)
def test_single_steps(name, tape):
    """All predictors and correctors of an SDE, in one compilation."""
    cases = [case for case in CASES if case.startswith(name + "/")]
    run = jax.vmap(
        lambda x, t, noise: [single(tape, case, x, t, noise) for case in cases],
        in_axes=(0, 0, 1),
        axis_name="batch",
    )
    results = quick_jit(run)(golden("in/x"), golden("in/t"), golden("in/noise"))
    assert len(cases) == {"VESDE": 16, "VPSDE": 16, "subVPSDE": 6}[name]
    for case, outputs in zip(cases, results, strict=True):
        for key, actual in zip((f"{case}/x", f"{case}/x_mean"), outputs, strict=True):
            if actual.dtype == jnp.float32:
                # In float32 a σ that is an exponential is known to 5e-7, and the size of one step in a thousand, a
                # difference of two times or of two λ near 9, to 6e-5 of itself.
                expected = load_golden(FILE)[key]
                tolerance = max(golden_tolerance(FILE, key), 1e-4 if "predictor" in case else 5e-6)
                assert np.abs(actual - expected).max() < tolerance * np.abs(expected).max()
            else:
                assert_golden(actual, FILE, key)


def time_of_step(num_steps):
    """The official times, as a function of the place on a grid from 1 to 0."""
    return lambda u: 1 - (1 - u) * (1 - EPS)


def chain_betas(num_steps):
    return np.linspace(0.1 / num_steps, 20 / num_steps, num_steps)


def ve(steps, label, predictor, corrector, **kwargs):
    """VE through the levels of its table, at uniform places u from 1 to 0, and a network told of the official times."""
    process = SDES["VESDE"]

    def tell(u):
        t = time_of_step(steps)(u)
        return process.sigma(t) if label is None else 0.05 * jnp.rint((1 - t) * (steps - 1))

    net = SdeToy(golden("in/p"), True)
    denoiser = eqd.Denoiser(net, process, eqd.PredictScore(), label=tell)
    times = jnp.linspace(1.0, 0.0, steps)
    return denoiser, dict(predictor=predictor, corrector=corrector, times=times, **kwargs)


def ve_annealed():
    """No predictor steps through a table here, so the noise level is that of the official time."""
    net = SdeToy(golden("in/p"), True)
    denoiser = eqd.Denoiser(
        net, SDES["VESDE"], eqd.PredictScore(), label=lambda t: 0.05 * jnp.rint((1 - t) * 11)
    )
    corrector = eqd.AnnealedLangevin(0.16, 2)
    return denoiser, dict(predictor=None, corrector=corrector, times=jnp.linspace(1.0, EPS, 12))


def maruyama(name, steps, eta=1.0):
    """Published as it stands: N times down to ε, and steps of 1/N from each."""
    times = jnp.linspace(1.0, EPS, steps)
    denoiser = eqd.Denoiser(SdeToy(golden("in/p"), False), SDES[name], eqd.PredictNoise())
    kwargs = dict(predictor=eqd.EulerMaruyama(eta), corrector=None)
    return denoiser, dict(times=times, ends=times - 1 / steps, **kwargs)


def vp_langevin():
    process, schedule = SDES["VPSDE"], eqd.Schedule(chain_betas(24), c_noise=np.arange(24) / 23)

    def net(u, x, args, key):
        t = time_of_step(24)(u)
        return official_score("VPSDE", t, x, 999 * t, process.sigma(t), True)

    corrector = eqd.Langevin(0.16, norms=eqd.BatchMean("batch"))
    denoiser = eqd.Denoiser(net, schedule, eqd.PredictScore())
    return denoiser, dict(num_steps=24, predictor=eqd.ReverseDiffusion(), corrector=corrector)


def vp_ancestral():
    times = np.linspace(1, EPS, 24)[::-1]
    schedule = eqd.Schedule(chain_betas(24), c_noise=23 * times)
    denoiser = eqd.Denoiser(SdeToy(golden("in/p"), False), schedule, variance=eqd.FixedLarge())
    return denoiser, dict(num_steps=24, predictor=eqd.AncestralPredictor(), corrector=None)


CHAINS = {
    "VESDE_reverse_diffusion_langevin_cont1_n1_pf0": lambda: ve(
        12, None, eqd.ReverseDiffusion(), eqd.Langevin(0.16, norms=eqd.BatchMean("batch"))
    ),
    "VESDE_ancestral_sampling_none_cont0_n1_pf0": lambda: ve(
        12, "index", eqd.AncestralPredictor(eqd.FixedSmall()), None
    ),
    "VESDE_none_ald_cont0_n2_pf0": ve_annealed,
    "VPSDE_euler_maruyama_none_cont1_n1_pf0": lambda: maruyama("VPSDE", 24),
    "VPSDE_reverse_diffusion_langevin_cont1_n1_pf0": vp_langevin,
    "VPSDE_ancestral_sampling_none_cont0_n1_pf0": vp_ancestral,
    "subVPSDE_euler_maruyama_none_cont1_n1_pf0": lambda: maruyama("subVPSDE", 12),
    "subVPSDE_reverse_diffusion_none_cont1_n1_pf1": lambda: maruyama("subVPSDE", 12, 0.0),
}


def tape_of(draws, num_steps, corrections, predicts):
    """The recorded draws where the sampler will look for them: each step has four keys, each of `corrections` draws."""
    each = draws[1:].reshape(num_steps, corrections + predicts, *draws.shape[1:])
    noise = jnp.zeros((num_steps, 4, max(corrections, 1), *draws.shape[1:]), draws.dtype)
    if corrections:
        noise = noise.at[:, 0].set(each[:, :corrections])
    if predicts:
        noise = noise.at[:, 1, 0].set(each[:, -1])
    return noise.reshape(-1, *draws.shape[1:])


@pytest.mark.parametrize("name", CHAINS)
def test_whole_chains(name, tape):
    denoiser, kwargs = CHAINS[name]()
    draws = golden(f"pc/{name}_denoise0/draws")
    corrector = kwargs["corrector"]
    corrections = 0 if corrector is None else corrector.steps
    steps = kwargs.get("num_steps") or len(kwargs["times"])
    noise = tape_of(draws, steps, corrections, kwargs["predictor"] is not None)
    x1 = draws[0] * denoiser.process.prior_scale()

    def run(x1, noise):
        key = tape.play(noise)
        samplers = [
            eqd.PredictorCorrector(**kwargs, final=final)
            for final in (eqd.FinalSample(), eqd.FinalMean())
        ]
        return [sampler(denoiser, x1, key=key) for sampler in samplers]

    out = quick_jit(jax.vmap(run, in_axes=(0, 1), axis_name="batch"))(x1, noise)
    for denoised, x in enumerate(out):
        assert_golden((x + 1) / 2, FILE, f"pc/{name}_denoise{denoised}/out")
    # The official count is N (steps + 1) with and without a corrector; without one, or a predictor, fewer are made.
    calls = eqd.PredictorCorrector(**kwargs, final=eqd.FinalMean()).num_calls
    official = int(load_golden(FILE)[f"pc/{name}_denoise0/nfe"])
    assert calls == official if corrections and kwargs["predictor"] else calls < official


@pytest.mark.parametrize("name", SDES)
def test_runge_kutta_sampler(name, x64):
    """Adaptive as theirs but to a tighter tolerance, so that only theirs (1e-5 a step) is seen."""
    process = type(SDES[name])(t0=EPS)
    net = SdeToy(golden("in/p"), name == "VESDE")
    if name == "VESDE":
        denoiser = eqd.Denoiser(net, process, eqd.PredictScore(), label=process.sigma)
    else:
        denoiser = eqd.Denoiser(net, process)
    flow = eqd.ProbabilityFlow(rtol=1e-8, atol=1e-8)
    solve = jax.jit(jax.vmap(lambda x: flow.solve(denoiser, x).ys[-1]))
    expected = golden(f"ode/{name}_denoise0/out")
    np.testing.assert_allclose(
        solve(golden(f"ode/{name}_denoise0/z")),
        expected,
        atol=1e-4 * float(jnp.abs(expected).max()),
    )
