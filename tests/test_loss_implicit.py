"""Implicit and sliced score matching: equal to denoising in expectation, by quadrature, and minimal at the true score."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


MEAN, STD = 0.3, 0.7
PROCESSES = {"vp": eqd.VPSDE(), "sub_vp": eqd.SubVPSDE(), "edm": eqd.EDMSDE(), "flow": eqd.RectifiedFlow()}  # fmt: skip
processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
# Gauss–Hermite: exact for the expectation of a polynomial under N(0, 1), and very good for a smooth function.
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
SIGNS = jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=3)))


class Bent(eqx.Module):
    """A smooth network that is nobody's score."""

    scale: jax.Array

    def __call__(self, label, x, args=None, *, key=None):
        return jnp.tanh(self.scale * x + 0.2) + 0.1 * x


def expectation(values, axes):
    for _ in range(axes):
        values = jnp.tensordot(jnp.asarray(WEIGHTS), values, axes=1)
    return values


def losses(denoiser, t):
    """E of implicit and of denoising score matching for data N(MEAN, STD²) in one dimension, by quadrature."""
    process, nodes = denoiser.process, jnp.asarray(NODES)
    std = jnp.sqrt((process.alpha(t) * STD) ** 2 + process.sigma(t) ** 2)
    xs = process.alpha(t) * MEAN + std * nodes
    implicit = jax.vmap(lambda x: eqd.implicit_score_matching(denoiser, t, x[None]))(xs)

    def denoising(z0, noise):
        p = eqd.predict(denoiser, t, (MEAN + STD * z0)[None], noise[None])
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
    # The quadrature of a tanh is not exact; without the −1 or with half the trace these are off by tenths.
    np.testing.assert_allclose(slope, true_slope, rtol=1e-6, atol=3e-6)


def test_the_true_score_is_the_minimum(x64):
    """Among Gaussian scores, the derivatives in mean and width vanish at the truth, and nowhere near it."""
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
            "sliced": eqd.sliced_score_matching(mixture, t, x, projections=every, **keyed),
            "one": eqd.sliced_score_matching(mixture, t, x, **keyed),
            "normal": eqd.sliced_score_matching(
                mixture, t, x, projections=eqd.Hutchinson(4000, jax.random.normal), **keyed
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
    """The eight corners of the cube have E vvᵀ = I: both forms average to Hyvärinen's loss; one corner does not."""
    _, _, values = evaluated
    np.testing.assert_allclose(values["reduced"], values["exact"], rtol=1e-9)
    np.testing.assert_allclose(values["sliced"], values["exact"], rtol=1e-9)
    assert abs(values["one"] - values["exact"]) > 1e-3
    np.testing.assert_allclose(values["normal"], values["exact"], atol=0.15)


def test_reduced_variance_has_less_variance(x64):
    """On a linear score: var over projections of ‖s‖² + 2vᵀ∇s v, against that of (vᵀs)² + 2vᵀ∇s v."""
    denoiser, t = eqd.GaussianDenoiser(eqd.VPSDE(), 0.0, jnp.asarray([0.2, 1.0, 2.0])), 0.5
    x = jnp.asarray([0.5, -1.5, 2.0])

    @quick_jit
    @jax.vmap
    def run(key):
        options = {"key": key}
        return (
            eqd.implicit_score_matching(denoiser, t, x, trace=eqd.Hutchinson(), **options),
            eqd.sliced_score_matching(denoiser, t, x, **options),
        )

    reduced, plain = run(jax.random.split(jax.random.key(0), 200))
    # Its Jacobian is diagonal, so with signs the trace is exact and all variance comes from the norm.
    assert np.std(reduced) < 1e-12 < 0.1 < np.std(plain)
    np.testing.assert_allclose(np.mean(plain), reduced[0], atol=4 * np.std(plain) / np.sqrt(200))


def test_a_network_learns_by_it(x64):
    """Gradients reach the network through the trace: against finite differences, exact and sliced."""
    process, t, x = eqd.VPSDE(), 0.4, jnp.asarray([0.3, -0.8, 0.1])
    key = jax.random.key(1)

    def loss(scale):
        denoiser = eqd.Denoiser(Bent(scale), process, eqd.PredictVelocity())
        return jnp.stack([
            eqd.implicit_score_matching(denoiser, t, x),
            eqd.sliced_score_matching(denoiser, t, x, key=key),
        ])  # fmt: skip

    value, scale, h = quick_jit(loss), jnp.asarray(0.8), 1e-5
    finite = (value(scale + h) - value(scale - h)) / (2 * h)
    np.testing.assert_allclose(quick_jit(jax.jacrev(loss))(scale), finite, rtol=1e-7)


def test_float32_at_small_noise(x64):
    """The score is 10⁶ there; in units of the noise nothing is lost. (Sub-VP has σ = 1e-6 at t0.)"""
    process = eqd.SubVPSDE()
    denoiser, x = eqd.GaussianDenoiser(process, MEAN, STD), jnp.asarray([0.25, -0.5])
    run = quick_jit(lambda t, x: eqd.implicit_score_matching(denoiser, t, x))
    t = jnp.asarray(1e-5, jnp.float32)
    low, high = run(t, x.astype(jnp.float32)), run(t.astype(float), x)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, high, rtol=1e-5)


def test_errors():
    denoiser, x = eqd.GaussianDenoiser(eqd.VPSDE()), jnp.zeros(3)
    with pytest.raises(ValueError, match="needs a key"):
        eqd.sliced_score_matching(denoiser, 0.5, x)
    with pytest.raises(ValueError, match="needs a key"):
        eqd.implicit_score_matching(denoiser, 0.5, x, trace=eqd.Hutchinson())
    with pytest.raises(ValueError, match=r"outside \[1e-05, 1\]"):
        eqd.implicit_score_matching(denoiser, 2.0, x)
    with pytest.raises(Exception, match="floating-point data|type-check|Type-check"):
        eqd.implicit_score_matching(denoiser, 0.5, jnp.zeros(3, jnp.int32))
