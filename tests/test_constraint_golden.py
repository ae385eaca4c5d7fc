"""Published inpainting and colourisation against score_sde_pytorch, with its recorded noise."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden
from published import BatchLangevin, draw, steps_along
from tape import in_precision, PRECISIONS, Tape
from toys import quick_jit, sde_denoiser

import eqdiff as eqd


FILE = "public_sde_controllable"
LANGEVIN = BatchLangevin(0.16, 1)
CASES = {
    "VESDE_reverse_diffusion_langevin_cont1_N1": (eqd.ReverseDiffusion(), LANGEVIN, 1),
    "VESDE_reverse_diffusion_langevin_cont1_N4": (eqd.ReverseDiffusion(), LANGEVIN, 4),
    "VPSDE_euler_maruyama_none_cont1_N25": (eqd.EulerMaruyama(), None, 25),
    "VPSDE_ancestral_sampling_langevin_cont0_N25": (
        eqd.AncestralPredictor(eqd.FixedLarge()),
        LANGEVIN,
        25,
    ),
}


@pytest.fixture(autouse=True, params=PRECISIONS)
def precision(request):
    with in_precision(request.param):
        yield


def ve(num_steps):
    """The official reverse diffusion of VE has the noise of N levels, the last followed by 0."""
    process, times = eqd.VESDE(0.01, 50.0), np.linspace(1, 1e-5, num_steps)
    sigmas = np.exp(np.linspace(np.log(0.01), np.log(50.0), num_steps))
    variance = (sigmas**2 - np.append(0.0, sigmas[:-1]) ** 2)[::-1]
    steps = steps_along(process, jnp.asarray(times, float))
    # b² = −σ² expm1(λ_t − λ_s), so this is the fall that gives it; under VE a = 1.
    fall = -np.log1p(-variance / np.asarray(steps.sigma_t, np.float64) ** 2)
    steps = eqx.tree_at(
        lambda s: (s.log_snr_fall, s.alpha_s), steps, (jnp.asarray(fall, float), steps.alpha_t)
    )
    return process, steps, None


def vp(num_steps):
    process, times = eqd.VPSDE(0.1, 20.0), np.linspace(1, 1e-5, num_steps)
    return process, steps_along(process, jnp.asarray(times, float), size=1 / num_steps), None


def vp_schedule(num_steps):
    """Its network is given t(N − 1) unrounded, and known data are noised in continuous time."""
    process, times = eqd.VPSDE(0.1, 20.0), np.linspace(1, 1e-5, num_steps)
    betas = np.linspace(0.1, 20.0, num_steps) / num_steps
    schedule = eqd.Schedule(betas, c_noise=(num_steps - 1) * times[::-1])
    levels = tuple(jax.vmap(f)(jnp.asarray(times, float)) for f in (process.alpha, process.sigma))
    return schedule, steps_along(schedule, np.arange(num_steps)[::-1].copy()), levels


def tape_of(draws, num_steps, corrected):
    """The recorded draws where `draw` looks for them: corrector, known, predictor, known."""
    each = draws[1:].reshape(num_steps, 3 + corrected, *draws.shape[1:])
    if not corrected:
        each = jnp.concatenate([jnp.zeros_like(each[:, :1]), each], axis=1)
    return each.reshape(-1, *draws.shape[1:])


@pytest.mark.parametrize("kind", ["inpaint", "colorize"])
@pytest.mark.parametrize("case", CASES)
def test_published(case, kind, monkeypatch):
    golden, tape = load_golden(FILE), Tape(monkeypatch)
    predictor, corrector, num_steps = CASES[case]
    make = ve if case.startswith("VE") else vp_schedule if "cont0" in case else vp
    process, steps, levels = make(num_steps)
    denoiser = sde_denoiser(process, golden["in/p"], float)
    draws = jnp.asarray(golden[f"{kind}/{case}_denoise0/draws"], float)
    x1 = draws[0] * (50.0 if case.startswith("VE") else 1.0)

    def run(x, data, mask, grey, noise):
        known = eqd.Inpaint(data, mask) if kind == "inpaint" else eqd.Colourise(grey[0])
        kwargs = dict(predictor=predictor, corrector=corrector, known=known, levels=levels)
        return draw(denoiser, steps, x, key=tape.play(noise), **kwargs)

    inputs = [jnp.asarray(golden[f"in/{name}"], float) for name in ("data", "mask", "gray")]
    noise = tape_of(draws, num_steps, corrector is not None)
    batch = jax.vmap(run, in_axes=(0, 0, 0, 0, 1), axis_name="batch")
    out = quick_jit(batch)(x1, *inputs, noise)
    for denoise, x in enumerate(out):
        assert_golden(x, FILE, f"{kind}/{case}_denoise{denoise}/out")
