"""Kinds of classifier-free guidance against the published formulas, written in NumPy."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_guidance import CASES, labelled, mixture, X
from toys import quick_jit

import eqdiff as eqd


Y, SCALE = jnp.asarray(2), 2.5
KINDS = {
    "rescaled": eqd.RescaledClassifierFree,
    "projected": eqd.ProjectedClassifierFree,
    "zero-star": ft.partial(eqd.ZeroStarClassifierFree, zero_fraction=0.0),
}


def call(denoiser, name, x=X):
    _, t = CASES[name]
    return quick_jit(lambda x: denoiser(t, x, Y))(jnp.asarray(x, float))


@ft.cache
def pair(name):
    """The conditional and the unconditional estimate, as NumPy arrays."""
    process, t = CASES[name]
    denoiser = labelled(process)
    both = quick_jit(lambda x: (denoiser(t, x, Y), denoiser(t, x)))(jnp.asarray(X, float))
    return [(np.asarray(e.x0), np.asarray(e.noise)) for e in both]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_scale_one_is_unguided_and_the_estimates_agree(name, kind, x64):
    process, t = CASES[name]
    one = call(KINDS[kind](labelled(process), 1.0), name)
    (x0, noise), _ = pair(name)
    np.testing.assert_allclose(one.x0, x0, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(one.noise, noise, rtol=1e-9, atol=1e-9)
    guided = call(KINDS[kind](labelled(process), SCALE), name)
    again = process.alpha(t) * guided.x0 + process.sigma(t) * guided.noise
    np.testing.assert_allclose(again, X, rtol=1e-9)
    assert not np.allclose(guided.x0, x0, rtol=1e-3), "guidance does something"


@pytest.mark.parametrize("name", CASES)
def test_each_has_plain_guidance_as_a_limit(name, x64):
    process, _ = CASES[name]
    plain = call(eqd.ClassifierFree(labelled(process), SCALE), name)
    for guided in (
        eqd.RescaledClassifierFree(labelled(process), SCALE, rescale=0.0),
        eqd.ProjectedClassifierFree(labelled(process), SCALE, parallel=1.0),
        eqd.ProjectedClassifierFree(labelled(process), SCALE, parallel=1.0, radius=1e6),
        eqd.AutoGuidance(eqd.FixedArgs(labelled(process), Y), mixture(process), SCALE),
    ):
        found = call(guided, name)
        np.testing.assert_allclose(found.x0, plain.x0, rtol=1e-8)
        np.testing.assert_allclose(found.noise, plain.noise, rtol=1e-8)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_rescaled_as_published(name, x64):
    """On ε, which these denoisers predict: diffusers' rescale_noise_cfg."""
    (_, given), (_, null) = pair(name)
    guided = null + SCALE * (given - null)
    expected = 0.7 * guided * given.std(ddof=1) / guided.std(ddof=1) + 0.3 * guided
    found = call(eqd.RescaledClassifierFree(labelled(CASES[name][0]), SCALE), name)
    np.testing.assert_allclose(found.noise, expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["vp", "flow"])
def test_projected_as_published(name, x64):
    """The paper's algorithm 1 without its momentum."""
    (given, _), (null, _) = pair(name)
    delta = given - null
    radius = 0.5 * np.linalg.norm(delta)
    delta = delta * min(1, radius / np.linalg.norm(delta))
    unit = given / np.linalg.norm(given)
    parallel = (delta @ unit) * unit
    expected = given + (SCALE - 1) * (delta - parallel + 0.3 * parallel)
    guidance = eqd.ProjectedClassifierFree(
        labelled(CASES[name][0]), SCALE, parallel=0.3, radius=radius
    )
    np.testing.assert_allclose(call(guidance, name).x0, expected, rtol=1e-9)


def test_zero_star_as_published(x64):
    """On a rectified flow, where the velocity is ε − x₀."""
    (x0, noise), (null_x0, null_noise) = pair("flow")
    given, null = noise - x0, null_noise - null_x0
    star = (given @ null) / (null @ null)
    expected = star * null + SCALE * (given - star * null)
    process, t = CASES["flow"]
    found = call(eqd.ZeroStarClassifierFree(labelled(process), SCALE, zero_fraction=0.3), "flow")
    np.testing.assert_allclose(found.noise - found.x0, expected, rtol=1e-9)
    # The first fraction of the way leaves a sample where it is.
    still = eqd.ZeroStarClassifierFree(labelled(process), SCALE, zero_fraction=0.5)
    stopped = call(still, "flow")
    np.testing.assert_allclose(stopped.noise, stopped.x0, rtol=1e-9)
    assert t > process.t1 - 0.5 * (process.t1 - process.t0)


def test_nothing_is_divided_by_zero(x64):
    """A denoiser that does not know its args, at the origin: no guidance, no NaN, and gradients."""
    process = eqd.VPSDE()
    denoiser = eqd.Denoiser(lambda c, x, args, *, key: 0 * x, process)
    for kind in KINDS.values():
        guided = kind(denoiser, 3.0)
        value, gradient = jax.value_and_grad(lambda x, g=guided: jnp.sum(g(0.5, x, Y).x0))(
            jnp.zeros(2)
        )
        assert value == 0 and np.all(np.isfinite(gradient))


def test_bad_input():
    denoiser = labelled(eqd.VPSDE())
    with pytest.raises(ValueError, match="zero_fraction=1"):
        eqd.ZeroStarClassifierFree(denoiser, 2.0, zero_fraction=1.0)
    with pytest.raises(ValueError, match="radius=0"):
        eqd.ProjectedClassifierFree(denoiser, 2.0, radius=0.0)
    with pytest.raises(ValueError, match="rescale=nan"):
        eqd.RescaledClassifierFree(denoiser, 2.0, rescale=float("nan"))
    with pytest.raises(ValueError, match="same process"):
        eqd.AutoGuidance(denoiser, labelled(eqd.VESDE()), 2.0)
    for kind in KINDS.values():
        with pytest.raises(ValueError, match="guides towards args"):
            kind(denoiser, 2.0)(0.5, jnp.zeros(2))
