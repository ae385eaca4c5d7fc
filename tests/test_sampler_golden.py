"""Ancestral sampling and DDIM against improved-diffusion, with its recorded noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden
from toys import quick_jit

import eqdiff as eqd


FILE = "public_idiff_sampling"
COSINE, LINEAR = eqd.cosine_schedule(4000), eqd.linear_schedule(1000)
SPACED = {
    "cosine4000_20": (COSINE, eqd.section_timesteps(4000, (20,))),
    "linear1000_ddim20": (LINEAR, eqd.ddim_timesteps(1000, 20)),
}
MEANS = {
    "EPSILON": eqd.PredictNoise(),
    "START_X": eqd.PredictData(),
    "PREVIOUS_X": eqd.PreviousMean(),
}
VARIANCES = {
    "FIXED_SMALL": eqd.FixedSmall(),
    "FIXED_LARGE": eqd.FixedLarge(),
    "LEARNED": eqd.Learned(),
    "LEARNED_RANGE": eqd.LearnedRange(),
}
STEPS = [
    *("EPSILON-LEARNED_RANGE-clip1", "EPSILON-LEARNED_RANGE-clip0", "EPSILON-FIXED_LARGE-clip1"),
    *("EPSILON-FIXED_LARGE-clip0", "START_X-FIXED_SMALL-clip1", "START_X-FIXED_SMALL-clip0"),
    *("PREVIOUS_X-LEARNED-clip1", "PREVIOUS_X-LEARNED-clip0"),
]
CHAINS = [
    *("EPSILON-LEARNED_RANGE-clip1", "START_X-FIXED_SMALL-clip0", "EPSILON-FIXED_LARGE-clip1")
]


def toy(mean: str, variance: str):
    """The golden file's toy network (its README gives the formula)."""
    a, b, c, _ = load_golden(FILE)["step/toy_abcd"]
    scale, shift = {"LEARNED": (1.5, -3.0), "LEARNED_RANGE": (0.8, 0.0)}.get(variance, (0.0, 0.0))
    on_x, on_h = {"EPSILON": (0.0, 1.0), "START_X": (0.998, 0.01), "PREVIOUS_X": (0.995, 0.01)}[
        mean
    ]

    def net(c_noise, x, args, *, key=None):
        channel = jnp.arange(3, dtype=x.dtype).reshape(3, 1, 1) - 1
        h = jnp.tanh(float(a) * x + float(b) * label / 1000 + float(c) * channel)
        out = on_x * x + on_h * h
        if variance.startswith("FIXED"):
            return out
        return jnp.concatenate([out, scale * jnp.sin(1.3 * x + 2 * label / 1000 + 0.5) + shift])

    return net


def denoiser_of(case: str, schedule) -> eqd.AbstractDenoiser:
    mean, variance, clip = case.split("-")
    net = toy(mean, variance)
    denoiser = eqd.Denoiser(net, schedule, MEANS[mean], variance=VARIANCES[variance])
    return eqd.Clip(denoiser) if clip == "clip1" else denoiser


def replay(monkeypatch, keys, noises):
    """Makes `jax.random.normal(keys[i], …)` return `noises[i]`, also under scan and vmap."""
    table = jax.random.key_data(keys)
    noises = jnp.asarray(noises, float)

    def normal(key, shape=(), dtype=float):
        i = jnp.argmax(jnp.all(table == jax.random.key_data(key)[None], axis=1))
        assert noises.shape[1:] == shape
        return noises[i].astype(dtype)

    monkeypatch.setattr(jax.random, "normal", normal)


def one_step(monkeypatch, sampler, denoiser):
    """One step from each of the five stored states, each at a time of its own."""
    golden = load_golden(FILE)
    keys = jax.random.split(jax.random.key(0), 5)
    replay(monkeypatch, keys, golden["step/noise"])
    times, each = sampler.steps(denoiser.process)
    # The stored index counts from the clean end.
    place = len(times) - 1 - golden["step/t"]

    def step(i, x, key):
        this = jax.tree.map(lambda leaf: leaf[i], each)
        return sampler.step(denoiser, times[i], this, x, None, key=key)[0]

    x = jnp.asarray(golden["step/x"], float)
    return jax.jit(jax.vmap(step))(jnp.asarray(place), x, keys)


# The official p_sample takes a predicted mean as it is, also with clip_denoised=True: only the x̂0 that it reports is
# clipped. Its samples are those of our denoiser unwrapped; Clip moves the mean as for every other parameterisation. (The
# official DDIM clips for every parameterisation, as ours.)
UNCLIPPED = "PREVIOUS_X-LEARNED-clip1"


@pytest.mark.parametrize("case", STEPS)
def test_ancestral_step(case, monkeypatch):
    schedule = eqd.respace(COSINE, COSINE.spaced(100))
    ours = case.replace("clip1", "clip0") if case == UNCLIPPED else case
    x = one_step(monkeypatch, eqd.Ancestral(), denoiser_of(ours, schedule))
    assert_golden(x, FILE, f"p_sample/{case}/sample")


@pytest.mark.parametrize("case", ["EPSILON-LEARNED_RANGE-clip1", "START_X-FIXED_SMALL-clip0"])
def test_ancestral_step_from_the_whole_chain(case, monkeypatch):
    """Respacing inside the sampler, the denoiser on the chain it was trained on."""
    x = one_step(monkeypatch, eqd.Ancestral(100), denoiser_of(case, COSINE))
    assert_golden(x, FILE, f"p_sample/{case}/sample")


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("case", STEPS)
def test_ddim_step(case, eta, monkeypatch):
    schedule = eqd.respace(COSINE, COSINE.spaced(100))
    x = one_step(monkeypatch, eqd.DDIM(100, eta=eta), denoiser_of(case, schedule))
    assert_golden(x, FILE, f"ddim_sample/{case}-eta{eta}/sample")


@pytest.mark.parametrize("case", STEPS)
def test_ddim_encoding_step(case):
    """From each stored state to the next time; from the last one the official code goes on to pure noise."""
    schedule = eqd.respace(COSINE, COSINE.spaced(100))
    golden, denoiser = load_golden(FILE), denoiser_of(case, schedule)
    states, t = jnp.asarray(golden["step/x"], float), golden["step/t"]
    assert 99 in t

    @quick_jit
    def run(states):
        def step(t, x):
            if t == 99:
                return denoiser(99, x).noise
            return eqd.DDIM(times=jnp.asarray([t + 1, t])).encode(denoiser, x)

        return jnp.stack([step(int(t), x) for t, x in zip(t, states, strict=True)])

    assert_golden(run(states), FILE, f"ddim_reverse/{case}/sample")


def whole(monkeypatch, sampler, denoiser, name):
    """Both stored chains, with their recorded noise."""
    golden = load_golden(FILE)
    noises, x1 = golden[f"chain/{name}/p_sample/noises"], golden[f"chain/{name}/p_sample/x_T"]
    keys = jax.random.split(jax.random.key(0), 2)
    steps = jnp.concatenate([jax.random.split(key, 20) for key in keys])
    replay(monkeypatch, steps, np.concatenate([noises[:, 0], noises[:, 1]]))
    run = jax.jit(jax.vmap(lambda x, key: sampler.trajectory(denoiser, x, key=key).x, out_axes=1))
    return run(jnp.asarray(x1, float), keys)


@pytest.mark.parametrize("case", CHAINS)
@pytest.mark.parametrize("spacing", SPACED)
def test_ancestral_chain(spacing, case, monkeypatch):
    schedule, kept = SPACED[spacing]
    x = whole(
        monkeypatch,
        eqd.Ancestral(timesteps=kept),
        denoiser_of(case, schedule),
        f"{spacing}/{case}",
    )
    assert_golden(x, FILE, f"chain/{spacing}/{case}/p_sample/traj")


@pytest.mark.parametrize("case", CHAINS)
@pytest.mark.parametrize(
    ("spacing", "eta"),
    [
        *(("cosine4000_20", 0.0), ("cosine4000_20", 0.5), ("cosine4000_20", 0.9)),
        *(("linear1000_ddim20", 0.0), ("linear1000_ddim20", 0.5), ("linear1000_ddim20", 1.0)),
    ],
)
def test_ddim_chain(spacing, eta, case, monkeypatch):
    schedule, kept = SPACED[spacing]
    sampler = eqd.DDIM(times=jnp.asarray(kept[::-1].copy()), eta=eta)
    x = whole(monkeypatch, sampler, denoiser_of(case, schedule), f"{spacing}/{case}")
    key = f"chain/{spacing}/{case}/ddim_eta{eta}/traj"
    # Except at η = 0.5 only the last state is stored.
    assert_golden(x if eta == 0.5 else x[-1:], FILE, key)


@pytest.mark.parametrize("case", CHAINS)
@pytest.mark.parametrize("spacing", SPACED)
def test_ddim_encoding_chain(spacing, case):
    """The official chain's last step, to ᾱ = 0, is the noise estimate of our latent."""
    schedule, kept = SPACED[spacing]
    denoiser, key = denoiser_of(case, schedule), f"chain/{spacing}/{case}/ddim_encode"
    sampler = eqd.DDIM(times=kept[::-1].copy())

    @quick_jit
    @jax.vmap
    def run(x0):
        return denoiser(int(kept[-1]), sampler.encode(denoiser, x0)).noise

    x0 = jnp.asarray(load_golden(FILE)[f"{key}/x0"], float)
    assert_golden(run(x0), FILE, f"{key}/out")


@pytest.mark.parametrize("case", CHAINS)
def test_ddim_with_all_its_noise_is_finite_in_float32(case):
    """1 − ᾱ_prev − σ² at the cosine chain's clipped step is +2e-8; the official float32 code finds -6e-8 and returns NaN."""
    schedule, kept = SPACED["cosine4000_20"]
    golden = load_golden(FILE)[f"chain/cosine4000_20/{case}/p_sample/x_T"]
    sampler = eqd.DDIM(times=kept[::-1].copy(), eta=1.0)

    @quick_jit
    @jax.vmap
    def run(x, key):
        return sampler.trajectory(denoiser_of(case, schedule), x, key=key)

    path = run(jnp.asarray(golden, jnp.float32), jax.random.split(jax.random.key(0), 2))
    assert path.x.dtype == path.x0.dtype == jnp.float32
    assert np.all(np.isfinite(path.x)) and np.all(np.isfinite(path.x0))


@pytest.mark.parametrize("spacing", SPACED)
@pytest.mark.parametrize("ddim", [False, True])
def test_network_is_told_the_original_times(spacing, ddim):
    """A network that answers with its label: the estimates spell out what it was told."""
    schedule, kept = SPACED[spacing]
    denoiser = eqd.Denoiser(
        lambda c_noise, x, args, key: jnp.broadcast_to(label, x.shape), schedule, eqd.PredictData()
    )
    times = jnp.asarray(kept[::-1].copy())
    sampler = eqd.DDIM(times=times) if ddim else eqd.Ancestral(timesteps=kept)
    path = sampler.trajectory(denoiser, jnp.zeros(1), key=jax.random.key(0))
    told = load_golden(FILE)[f"chain/{spacing}/{CHAINS[0]}/p_sample/model_t"]
    np.testing.assert_allclose(path.x0[:, 0], told, rtol=1e-6)
    np.testing.assert_array_equal(path.t, times)
