"""Constraints: what is known has the right law at every level, and is exact at the end."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


RHO, KNOWN = 0.9, 1.2
DENOISER = eqd.GaussianMixtureDenoiser(
    eqd.cosine_schedule(50), np.ones(1), np.zeros((1, 2)), np.array([[[1, RHO], [RHO, 1]]])
)
# Pixels of their own mean and standard deviation.
PIXELS = eqd.GaussianDenoiser(eqd.cosine_schedule(50), 0.3, 0.5)
GREY = np.linspace(-0.8, 0.8, 4).reshape(2, 2)


def inpaint():
    return eqd.Inpaint(jnp.asarray([KNOWN, jnp.nan], float), np.array([True, False]))


def pool(x):
    """2×2 means, scaled so that the rows are orthonormal."""
    c, h, w = x.shape
    return 2 * x.reshape(c, h // 2, 2, w // 2, 2).mean((2, 4))


def many(sampler, num, getkey):
    """The paths of many samples, and the levels after each step."""
    x1 = jax.random.normal(getkey(), (num, 2))
    draw = jax.vmap(lambda x, key: sampler.trajectory(DENOISER, x, key=key), out_axes=1)
    path = quick_jit(draw)(x1, jax.random.split(getkey(), num))
    alpha, sigma = (
        jax.vmap(f)(path.t[:, 0]) for f in (DENOISER.process.alpha, DENOISER.process.sigma)
    )
    return path, np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)


CHAINS = {
    "ddim": eqd.Constrained(eqd.DDIM(8), inpaint()),
    "ancestral": eqd.Constrained(eqd.Ancestral(8), inpaint(), repeats=2),
    "predictor_corrector": eqd.PredictorCorrector(
        8, predictor=eqd.AncestralPredictor(), constrain=inpaint()
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_known_pixels_are_noised_to_the_level_after_each_step(chain, getkey):
    num = 1000
    path, alpha, sigma = many(CHAINS[chain], num, getkey)
    known = np.asarray(path.x[..., 0])
    assert np.all(np.abs(known.mean(1) - alpha * KNOWN) <= 4 * sigma / np.sqrt(num) + 1e-6)
    assert np.all(np.abs(known.std(1) - sigma) <= 4 * sigma / np.sqrt(2 * num) + 1e-6)
    # The last step puts the data, to the last digit, and leaves the rest denoised.
    np.testing.assert_array_equal(known[-1], jnp.asarray(KNOWN, float))
    np.testing.assert_allclose(path.x[-1, :, 1], path.x0[-1, :, 1], rtol=1e-6)


@pytest.mark.slow
def test_repeats_approach_the_posterior(getkey):
    """Replacement alone is not conditional sampling; repeated steps (RePaint) approach it."""
    expected = np.array([RHO * KNOWN, np.sqrt(1 - RHO**2)])
    errors = {}
    for repeats in (1, 10):
        sampler = eqd.Constrained(eqd.Ancestral(), inpaint(), repeats=repeats)
        x = np.asarray(many(sampler, 1000, getkey)[0].x[-1, :, 1])
        errors[repeats] = np.abs(np.array([x.mean(), x.std()]) - expected).max()
    # What is left is the chain's: fifty steps, whose variance β̃ is too small for spread-out data.
    assert errors[10] < 0.1
    assert errors[1] > 3 * errors[10]


def trajectory(constraint, getkey):
    """One path of pixels, always with the same randomness."""
    x1 = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 2)), float)
    sampler = eqd.Constrained(eqd.DDIM(4), constraint)
    return quick_jit(lambda key: sampler.trajectory(PIXELS, x1, key=key).x)(jax.random.key(7))


def test_masks_and_grey_axes_are_orthonormal_systems(getkey):
    """Inpainting is a special case of replacing, to the last draw of noise."""
    rng = np.random.default_rng(1)
    image = jnp.asarray(rng.uniform(-1, 1, (3, 2, 2)), float)
    mask = jnp.asarray(rng.random((3, 2, 2)) < 0.5, float)
    special = trajectory(eqd.Inpaint(image, mask), getkey)
    general = trajectory(eqd.Replace(mask * image, lambda x: mask * x), getkey)
    np.testing.assert_allclose(special, general, rtol=0, atol=1e-5)

    weights = (0.299, 0.587, 0.114)
    axis = np.array(weights) / np.linalg.norm(weights)

    def on_axis(x):
        return jnp.tensordot(jnp.asarray(axis, x.dtype), x, 1)[None]

    special = trajectory(eqd.Colourise(GREY, weights=weights), getkey)
    grey = jnp.asarray(GREY / np.linalg.norm(weights), float)[None]
    general = trajectory(eqd.Replace(grey, on_axis), getkey)
    np.testing.assert_allclose(special, general, rtol=0, atol=1e-5)


def test_colourised_images_have_their_grey(getkey):
    path = trajectory(eqd.Colourise(GREY), getkey)
    np.testing.assert_allclose(path[-1].mean(0), GREY, atol=1e-6)
    # Along the other axes nothing is constrained: the unconstrained chain's step is pixel by pixel.
    x1 = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 2)), float)
    free = quick_jit(eqd.DDIM(4).trajectory)(PIXELS, x1).x
    colour = np.array([1, -2, 1]) / np.sqrt(6)
    along = ft.partial(np.einsum, "c,tchw->thw", colour)
    np.testing.assert_allclose(along(path), along(free), atol=1e-5)


def test_coarse_pixels_are_kept(getkey):
    small = jnp.asarray([[[0.4]], [[-0.2]], [[0.9]]], float)
    path = trajectory(eqd.Replace(2 * small, pool), getkey)
    np.testing.assert_allclose(pool(path[-1]) / 2, small, atol=1e-6)


def test_a_batch_of_images(getkey):
    """Constraints hold arrays, so that samplers are built inside `jax.vmap`, masks too."""
    masks = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    x1 = jnp.asarray([0.3, -0.4], float)

    def one(mask):
        constraint = eqd.Inpaint(jnp.full(2, KNOWN), mask)
        return eqd.Constrained(eqd.DDIM(3), constraint)(DENOISER, x1, key=jax.random.key(0))

    x = quick_jit(jax.vmap(one))(masks)
    np.testing.assert_array_equal(x[masks == 1], jnp.full(2, KNOWN))


def on_pixels(constraint):
    return eqd.Constrained(eqd.DDIM(2), constraint)(
        PIXELS, jnp.zeros((3, 2, 2)), key=jax.random.key(0)
    )


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: eqd.Inpaint(np.zeros((3, 2, 2)), np.ones((2, 3))), "does not broadcast"),
        (lambda: eqd.Inpaint(np.zeros(2), np.array([0.5, 1])), "soft mask"),
        (lambda: eqd.Inpaint(np.array([np.nan, 0]), np.ones(2)), "not finite"),
        (lambda: on_pixels(eqd.Inpaint(np.zeros((3, 4, 2)), np.ones(2))), "must agree"),
        (lambda: eqd.Colourise(np.zeros((3, 2, 2))), r"image\[0\]"),
        (lambda: eqd.Colourise(GREY, weights=(1.0, 1.0, 1.0)), "sum to 1"),
        (lambda: eqd.Colourise(np.full((2, 2), np.nan)), "not finite"),
        (lambda: on_pixels(eqd.Colourise(np.zeros((4, 2)))), r"expected \(3, 4, 2\)"),
        (lambda: on_pixels(eqd.Replace(np.zeros((3, 1, 1)), lambda x: pool(x) / 2)), "orthonormal"),
        (lambda: on_pixels(eqd.Replace(np.zeros((3, 2, 1)), pool)), "must agree"),
        (lambda: eqd.Replace(np.array([np.inf]), pool), "not finite"),
        (lambda: eqd.Constrained(eqd.DDIM(2), inpaint(), repeats=0), "repeats=0"),
        (lambda: eqd.Constrained(eqd.PredictorCorrector(), inpaint()), "constrain="),
    ],
)
def test_bad_arguments(build, match):
    with pytest.raises(ValueError, match=match):
        build()


def test_traced_masks_are_looked_at_when_they_run():
    @jax.jit
    def build(mask):
        return eqd.Inpaint(jnp.zeros(2), mask).mask

    with pytest.raises(Exception, match="soft mask"):
        build(jnp.asarray([0.5, 1.0]))
