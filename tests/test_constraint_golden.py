"""Published inpainting and colourisation against score_sde_pytorch, with its recorded noise."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden
from toys import quick_jit, sde_denoiser

import eqdiff as eqd


FILE = "public_sde_controllable"
RULES = eqd.Langevin(0.16, norms=eqd.BatchMean("batch"))
CASES = {
    "VESDE_reverse_diffusion_langevin_cont1_N1": (eqd.ReverseDiffusion(), RULES, 1),
    "VESDE_reverse_diffusion_langevin_cont1_N4": (eqd.ReverseDiffusion(), RULES, 4),
    "VPSDE_euler_maruyama_none_cont1_N25": (eqd.EulerMaruyama(), None, 25),
    "VPSDE_ancestral_sampling_langevin_cont0_N25": (
        eqd.AncestralPredictor(eqd.FixedLarge()),
        RULES,
        25,
    ),
}


def official_process(case, num):
    """The process, its times, and what of the steps the official code takes from elsewhere."""
    times = np.linspace(1, 1e-5, num)
    if case.startswith("VESDE"):
        return eqd.VESDE(0.01, 50.0), times, ft.partial(by_discrete_sigmas, times=times)
    vp = eqd.VPSDE(0.1, 20.0)
    if "cont1" in case:
        return vp, times, lambda this: this
    # Its network is told t(N − 1) unrounded, and its known data are noised by the process in continuous time.
    rates = np.linspace(0.1, 20.0, num) / num
    chain = eqd.Schedule(rates, c_noise=(num - 1) * times[::-1])

    def noised_continuously(this):
        each, _, _, first = this
        t = jnp.asarray(times)
        return each, jax.vmap(vp.alpha)(t), jax.vmap(vp.sigma)(t), first

    return chain, np.arange(num)[::-1].copy(), noised_continuously


def by_discrete_sigmas(this, times):
    """The official reverse diffusion of VE has the noise of N levels, the last of which is followed by 0."""
    each, alpha, sigma, first = this
    num = len(times)
    sigmas = np.exp(np.linspace(np.log(0.01), np.log(50.0), num))
    variance = (sigmas**2 - np.append(0.0, sigmas[:-1]) ** 2)[::-1]
    # b² = −σ² expm1(λ_t − λ_s), so this is the λ_s that gives it.
    next_log_snr = each.levels.log_snr - jnp.log1p(-jnp.asarray(variance) / each.levels.sigma**2)
    each = eqx.tree_at(
        lambda e: (e.levels.next_log_snr, e.levels.next_alpha), each, (next_log_snr, alpha)
    )
    return each, alpha, sigma, first


def replay(monkeypatch, keys, draws, corrected):
    """Makes every draw of `step` the recorded one. In a step: corrector, data, predictor, data."""
    table, values = [], []
    per_step = 4 if corrected else 3
    for b, i in np.ndindex(keys.shape):
        missing, rest = jax.random.split(keys[b, i])
        correct, predict, after_correct, after_predict = jax.random.split(rest, 4)
        order = [predict, after_predict]
        order = (
            [jax.random.split(correct, 1)[0], after_correct, *order]
            if corrected
            else [missing, *order]
        )
        table += [jax.random.key_data(key) for key in order]
        values += list(draws[1 + per_step * i : 1 + per_step * (i + 1), b])
    table, values = jnp.stack(table), jnp.asarray(np.stack(values), float)

    def normal(key, shape=(), dtype=float):
        i = jnp.argmax(jnp.all(table == jax.random.key_data(key)[None], axis=1))
        # Of the draws in the official orthonormal system only the grey axis is used.
        return values[i][: shape[0]].astype(dtype)

    monkeypatch.setattr(jax.random, "normal", normal)


@pytest.mark.parametrize("denoise", [0, 1])
@pytest.mark.parametrize("kind", ["inpaint", "colorize"])
@pytest.mark.parametrize("case", CASES)
def test_published(case, kind, denoise, monkeypatch, request):
    if case.startswith("VE"):
        # The official noise of its steps is not that of any two levels, and float32 has no λ_s that says so.
        request.getfixturevalue("x64")
    golden = load_golden(FILE)
    predictor, corrector, num = CASES[case]
    process, times, official = official_process(case, num)
    chain = eqd.PredictorCorrector(
        predictor=predictor,
        corrector=corrector,
        times=jnp.asarray(times),
        ends=jnp.asarray(times - 1 / num) if isinstance(predictor, eqd.EulerMaruyama) else None,
        final=eqd.FinalMean() if denoise else eqd.FinalSample(),
    )
    denoiser = sde_denoiser(process, golden["in/p"], float)
    draws = golden[f"{kind}/{case}_denoise0/draws"]
    keys = jax.random.split(jax.random.key(0), (2, num))
    x1 = jnp.asarray(draws[0], float) * (50.0 if case.startswith("VE") else 1.0)
    replay(monkeypatch, keys, draws, corrector is not None)

    def draw(x, data, mask, grey, keys):
        known = eqd.Inpaint(data, mask) if kind == "inpaint" else eqd.Colourise(grey[0])
        sampler = eqd.PublishedReplacement(chain, known)
        times, this = sampler.steps(process)

        def body(x, inputs):
            t, this, key = inputs
            return sampler.step(denoiser, t, this, x, None, key=key)[0], None

        return jax.lax.scan(body, x, (times, official(this), keys))[0]

    inputs = (jnp.asarray(golden[f"in/{name}"], float) for name in ("data", "mask", "gray"))
    x = quick_jit(jax.vmap(draw, axis_name="batch"))(x1, *inputs, keys)
    assert_golden(x, FILE, f"{kind}/{case}_denoise{denoise}/out")
