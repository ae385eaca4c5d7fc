"""Ancestral sampling and DDIM against improved-diffusion, with its recorded noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden
from tape import in_precision, PRECISIONS, Tape
from toys import idiff_denoiser, quick_jit

import eqdiff as eqd


FILE = "public_idiff_sampling"
COSINE, LINEAR = eqd.cosine_schedule(4000), eqd.linear_schedule(1000)
SPACED = {
    "cosine4000_20": (COSINE, eqd.section_timesteps(4000, (20,))),
    "linear1000_ddim20": (LINEAR, eqd.ddim_timesteps(1000, 20)),
}
HUNDRED = eqd.respace(COSINE, eqd.section_timesteps(4000, (100,)))
STEPS = [
    *("EPSILON-LEARNED_RANGE-clip1", "EPSILON-LEARNED_RANGE-clip0", "EPSILON-FIXED_LARGE-clip1"),
    *("EPSILON-FIXED_LARGE-clip0", "START_X-FIXED_SMALL-clip1", "START_X-FIXED_SMALL-clip0"),
    *("PREVIOUS_X-LEARNED-clip1", "PREVIOUS_X-LEARNED-clip0"),
]
CHAINS = [
    *("EPSILON-LEARNED_RANGE-clip1", "START_X-FIXED_SMALL-clip0", "EPSILON-FIXED_LARGE-clip1")
]


@pytest.fixture(autouse=True, params=PRECISIONS)
def precision(request):
    with in_precision(request.param):
        yield


def denoiser_of(case: str, schedule) -> eqd.AbstractDenoiser:
    mean, variance, clip = case.split("-")
    denoiser = idiff_denoiser(schedule, load_golden(FILE)["step/toy_abcd"], mean, variance, float)
    return eqd.Clip(denoiser) if clip == "clip1" else denoiser


def one_step(tape, make, denoiser):
    """One step from each of the five stored states: the first of a sampler that starts there."""
    golden = load_golden(FILE)
    times = np.asarray(eqd.uniform_times(denoiser.process, 100))
    # The stored index counts from the clean end.
    starts = [times[len(times) - 1 - t :] for t in golden["step/t"]]

    @quick_jit
    def run(states, noises):
        out = []
        for x, noise, times in zip(states, noises, starts, strict=True):
            key = tape.play(jnp.broadcast_to(noise, (len(times), *noise.shape)))
            out.append(make(times).trajectory(denoiser, x, key=key).x[0])
        return jnp.stack(out)

    return run(*(jnp.asarray(golden[f"step/{name}"], float) for name in ("x", "noise")))


# The official p_sample takes a predicted mean as it is, also with clip_denoised=True: only the x̂0
# that it reports is clipped. Its samples are those of our denoiser unwrapped; Clip moves the mean
# as for every other parameterisation. (The official DDIM clips them all, as ours.)
UNCLIPPED = "PREVIOUS_X-LEARNED-clip1"


@pytest.mark.parametrize("case", STEPS)
def test_ancestral_step(case, monkeypatch):
    denoiser = denoiser_of(case.replace("1", "0") if case == UNCLIPPED else case, HUNDRED)
    x = one_step(Tape(monkeypatch), lambda times: eqd.Ancestral(times=times), denoiser)
    assert_golden(x, FILE, f"p_sample/{case}/sample")


@pytest.mark.parametrize("case", ["EPSILON-LEARNED_RANGE-clip1", "START_X-FIXED_SMALL-clip0"])
def test_ancestral_step_from_the_whole_schedule(case, monkeypatch):
    """Respacing inside the sampler, the denoiser on the schedule it was trained on."""
    denoiser = denoiser_of(case, COSINE)
    x = one_step(Tape(monkeypatch), lambda times: eqd.Ancestral(times=times), denoiser)
    assert_golden(x, FILE, f"p_sample/{case}/sample")


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("case", STEPS)
def test_ddim_step(case, eta, monkeypatch):
    denoiser, tape = denoiser_of(case, HUNDRED), Tape(monkeypatch)
    x = one_step(tape, lambda times: eqd.DDIM(times=times, eta=eta), denoiser)
    assert_golden(x, FILE, f"ddim_sample/{case}-eta{eta}/sample")


@pytest.mark.parametrize("case", STEPS)
def test_ddim_encoding_step(case):
    """From each stored state to the next time; from the last the official code goes on to noise."""
    golden, denoiser = load_golden(FILE), denoiser_of(case, HUNDRED)
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
    golden, tape = load_golden(FILE), Tape(monkeypatch)
    noises, x1 = golden[f"chain/{name}/p_sample/noises"], golden[f"chain/{name}/p_sample/x_T"]

    def run(x, noise):
        return sampler.trajectory(denoiser, x, key=tape.play(noise)).x

    batch = jax.jit(jax.vmap(run, in_axes=(0, 1), out_axes=1))
    return batch(jnp.asarray(x1, float), jnp.asarray(noises, float))


@pytest.mark.parametrize("case", CHAINS)
@pytest.mark.parametrize("spacing", SPACED)
def test_ancestral_chain(spacing, case, monkeypatch):
    schedule, kept = SPACED[spacing]
    x = whole(
        monkeypatch,
        eqd.Ancestral(times=kept[::-1]),
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
    sampler = eqd.DDIM(times=kept[::-1], eta=eta)
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
    sampler = eqd.DDIM(times=kept[::-1])

    @quick_jit
    @jax.vmap
    def run(x0):
        return denoiser(int(kept[-1]), sampler.encode(denoiser, x0)).noise

    x0 = jnp.asarray(load_golden(FILE)[f"{key}/x0"], float)
    assert_golden(run(x0), FILE, f"{key}/out")


@pytest.mark.parametrize("precision", ["float32"], indirect=True)
@pytest.mark.parametrize("case", CHAINS)
def test_ddim_with_all_its_noise_is_finite_in_float32(case):
    """At the clipped step 1 − ᾱ_prev − σ² is 2e-8; the official code finds -6e-8, and NaN."""
    schedule, kept = SPACED["cosine4000_20"]
    golden = load_golden(FILE)[f"chain/cosine4000_20/{case}/p_sample/x_T"]
    sampler = eqd.DDIM(times=kept[::-1], eta=1.0)

    @quick_jit
    @jax.vmap
    def run(x, key):
        return sampler.trajectory(denoiser_of(case, schedule), x, key=key)

    path = run(jnp.asarray(golden, jnp.float32), jax.random.split(jax.random.key(0), 2))
    assert path.x.dtype == path.x0.dtype == jnp.float32
    assert np.all(np.isfinite(path.x)) and np.all(np.isfinite(path.x0))


@pytest.mark.parametrize("spacing", SPACED)
@pytest.mark.parametrize("make", [eqd.DDIM, eqd.Ancestral])
def test_the_network_has_the_original_times(spacing, make):
    """A network that answers with its time input: the estimates spell it out."""
    schedule, kept = SPACED[spacing]
    denoiser = eqd.Denoiser(
        lambda c_noise, x, args, key: jnp.broadcast_to(c_noise, x.shape),
        schedule,
        eqd.PredictData(),
    )
    sampler = make(times=kept[::-1])
    path = sampler.trajectory(denoiser, jnp.zeros(1), key=jax.random.key(0))
    expected = load_golden(FILE)[f"chain/{spacing}/{CHAINS[0]}/p_sample/model_t"]
    np.testing.assert_allclose(path.x0[:, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(path.t, kept[::-1])
