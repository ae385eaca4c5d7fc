"""Implicit score matching: denoising in expectation, by quadrature; minimal at the true score."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


MEAN, STD = 0.3, 0.7
PROCESSES = {
    "vp": eqd.VPSDE(),
    "sub_vp": eqd.SubVPSDE(),
    "edm": eqd.EDMSDE(),
    "flow": eqd.RectifiedFlow(),
    "schedule": eqd.cosine_schedule(50),
}
processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
# Gauss–Hermite: exact for the expectation of a polynomial under N(0, 1), and very good for a smooth
# function.
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
SIGNS = jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=3)))


class Bent(eqx.Module):
    """A smooth network that is nobody's score."""

    scale: jax.Array

    def __call__(self, c_noise, x, args=None, *, key=None):
        return jnp.tanh(self.scale * x + 0.2) + 0.1 * x


def expectation(values, axes):
    for _ in range(axes):
        values = jnp.tensordot(jnp.asarray(WEIGHTS), values, axes=1)
    return values


def losses(denoiser, t):
    """E of implicit and of denoising score matching for data N(MEAN, STD²) in one dimension, by
    quadrature.
    """
    process, nodes = denoiser.process, jnp.asarray(NODES)
    std = jnp.sqrt((process.alpha(t) * STD) ** 2 + process.sigma(t) ** 2)
    xs = process.alpha(t) * MEAN + std * nodes
    implicit = jax.vmap(lambda x: eqd.implicit_score_matching(denoiser, t, x[None]))(xs)

    def denoising(z0, noise):
        p = eqd.predict(denoiser, t, (MEAN + STD * z0)[None], noise=noise[None])
        return eqd.score_matching(p)

    pairs = jax.vmap(lambda a: jax.vmap(lambda b: denoising(a, b))(nodes))(nodes)
    return expectation(implicit, 1), expectation(pairs, 2)


@processes
def test_implicit_is_denoising_less_a_constant(process, x64):
    """In expectation over Gaussian data, for a network that is not a score; also its gradient."""

    @quick_jit
    @jax.vmap
    def run(t):
        def both(scale):
            return losses(eqd.Denoiser(Bent(scale), process, eqd.PredictNoise()), t)

        scale = jnp.asarray(0.8)
        return both(scale), jax.jacfwd(both)(scale)

    middle = process.time(jnp.asarray(1.0))
    (implicit, denoising), (slope, true_slope) = run(jnp.stack([middle, 1.3 * middle]))
    np.testing.assert_allclose(implicit, denoising - 1, rtol=1e-6, atol=1e-8)
    # The quadrature of a tanh is not exact; without the −1 or with half the trace these are off by
    # tenths.
    np.testing.assert_allclose(slope, true_slope, rtol=1e-6, atol=3e-6)


def test_the_true_score_is_the_minimum(x64):
    """Among Gaussian scores, the derivatives in mean and width vanish at the truth, and nowhere
    near it.
    """
    process = eqd.VPSDE()

    @quick_jit
    def run(mean, std):
        def loss(mean, std):
            return losses(eqd.GaussianDenoiser(process, mean, std), jnp.asarray(0.3))[0]

        return loss(mean, std), jnp.stack(jax.grad(loss, (0, 1))(mean, std))

    value, slope = run(jnp.asarray(MEAN), jnp.asarray(STD))
    np.testing.assert_allclose(slope, 0, atol=1e-10)
    # There it is −E‖σ s‖² itself, known in closed form.
    alpha2, sigma2 = float(process.alpha(0.3)) ** 2, float(process.sigma(0.3)) ** 2
    np.testing.assert_allclose(value, -sigma2 / (alpha2 * STD**2 + sigma2), rtol=1e-9)
    for mean, std in ((MEAN + 0.1, STD), (MEAN, STD + 0.1), (MEAN, STD - 0.1)):
        other, slope = run(jnp.asarray(mean), jnp.asarray(std))
        assert other > value + 1e-4 and np.max(np.abs(slope)) > 1e-2


def all_signs(key, shape, dtype):
    return SIGNS.astype(dtype)


@pytest.fixture(scope="module")
def evaluated():
    """All forms at one point of three dimensions, where the score is coupled."""
    process = eqd.VPSDE()
    mixture = eqd.GaussianMixtureDenoiser(
        process,
        np.array([1, 2]),
        np.array([[0.5, -1, 0], [-0.5, 1, 0.3]]),
        np.stack([np.diag([0.3, 0.2, 0.1]), 0.3 * np.eye(3) + 0.1]),
    )
    x, t = jnp.asarray([0.4, -0.2, 0.9]), 0.35
    every = eqd.Hutchinson(8, all_signs)

    @eqx.filter_jit
    def run(x, key):
        score = lambda y: eqd.score(mixture, t, y)  # noqa: E731
        weighting = eqd.LikelihoodWeighting()
        keyed = {"key": key}
        return {
            "score": score(x),
            "jacobian": jax.jacfwd(score)(x),
            "exact": eqd.implicit_score_matching(mixture, t, x),
            "weighted": eqd.implicit_score_matching(mixture, t, x, weighting=weighting),
            "reduced": eqd.implicit_score_matching(mixture, t, x, trace=every, **keyed),
            "one": eqd.implicit_score_matching(mixture, t, x, trace=eqd.Hutchinson(), **keyed),
            "normal": eqd.implicit_score_matching(
                mixture, t, x, trace=eqd.Hutchinson(4000, jax.random.normal), **keyed
            ),
        }

    return process, t, run(x, jax.random.key(3))


def test_hyvarinens_loss_by_its_definition(evaluated, x64):
    process, t, values = evaluated
    hyvarinen = jnp.sum(values["score"] ** 2) + 2 * jnp.trace(values["jacobian"])
    sigma2, g2 = float(process.sigma(t)) ** 2, float(process.diffusion(t)) ** 2
    np.testing.assert_allclose(values["exact"], sigma2 * hyvarinen / 3, rtol=1e-9)
    np.testing.assert_allclose(values["weighted"], g2 * hyvarinen / 3, rtol=1e-9)


def test_over_all_projections_slices_are_exact(evaluated, x64):
    """The eight corners of the cube have E vvᵀ = I: they average to Hyvärinen's loss."""
    _, _, values = evaluated
    np.testing.assert_allclose(values["reduced"], values["exact"], rtol=1e-9)
    assert abs(values["one"] - values["exact"]) > 1e-3
    np.testing.assert_allclose(values["normal"], values["exact"], atol=0.15)


def test_a_network_learns_by_it(x64):
    """Gradients reach the network through the trace: against finite differences."""
    process, t, x = eqd.VPSDE(), 0.4, jnp.asarray([0.3, -0.8, 0.1])
    key = jax.random.key(1)

    def loss(scale):
        denoiser = eqd.Denoiser(Bent(scale), process, eqd.PredictVelocity())
        return jnp.stack([
            eqd.implicit_score_matching(denoiser, t, x),
            eqd.implicit_score_matching(denoiser, t, x, trace=eqd.Hutchinson(), key=key),
        ])  # fmt: skip

    value, scale, h = quick_jit(loss), jnp.asarray(0.8), 1e-5
    finite = (value(scale + h) - value(scale - h)) / (2 * h)
    np.testing.assert_allclose(quick_jit(jax.jacrev(loss))(scale), finite, rtol=1e-7)


def test_float32_at_small_noise(x64):
    """The score is 10⁶ there; in units of the noise nothing is lost (sub-VP has σ = 1e-6 at t0)."""
    process = eqd.SubVPSDE()
    denoiser, x = eqd.GaussianDenoiser(process, MEAN, STD), jnp.asarray([0.25, -0.5])
    run = quick_jit(lambda t, x: eqd.implicit_score_matching(denoiser, t, x))
    t = jnp.asarray(1e-5, jnp.float32)
    low, high = run(t, x.astype(jnp.float32)), run(t.astype(float), x)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, high, rtol=1e-5)


ORACLE = eqd.GaussianDenoiser(eqd.VPSDE())
REFUSED = [
    (0.5, jnp.zeros(3), {"trace": eqd.Hutchinson()}, "needs a key"),
    (2.0, jnp.zeros(3), {}, r"outside \[1e-05, 1\]"),
    (0.5, jnp.zeros(3, jnp.int32), {}, r"int32 of shape \(3,\).*127\.5 - 1"),
]


@pytest.mark.parametrize(("t", "x", "options", "match"), REFUSED)
def test_refused(t, x, options, match, monkeypatch):
    # Users run without the type checker that would speak first here.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=match):
        eqd.implicit_score_matching(ORACLE, t, x, **options)
