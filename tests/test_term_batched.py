"""A batch as one state: the same numbers as example by example, with steps in common."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


VP = eqd.VPSDE()
MIXTURE = eqd.GaussianMixtureDenoiser(
    VP,
    np.array([0.4, 0.6]),
    np.array([[-1.0, 0.3], [0.8, -0.6]]),
    np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.5]]]),
)
BATCH = np.array([[0.4, -1.5], [1.0, 1.0], [-0.2, 0.3], [-1.0, 0.2]])


class _Conditional(eqd.AbstractDenoiser):
    """A Gaussian whose mean is `args`, with noise in its estimate if given a key."""

    process: eqd.AbstractProcess
    parameterisation = eqd.PredictNoise()
    variance = eqd.LearnedRange()

    def __call__(self, t, x, args=None, *, key=None):
        estimate = eqd.GaussianDenoiser(self.process, args["mean"], 0.5)(t, x)
        raw = jnp.zeros_like(x) if key is None else jax.random.normal(key, x.shape, x.dtype)
        return eqd.Estimate(estimate.x0, estimate.noise, raw)


def test_it_is_the_denoiser_for_each_example(getkey):
    denoiser = _Conditional(VP)
    batched = eqd.Batched(denoiser)
    assert (batched.process, batched.parameterisation, batched.variance) == (
        VP,
        denoiser.parameterisation,
        denoiser.variance,
    )
    x = jnp.asarray(BATCH)
    args = {"mean": jnp.arange(4.0)}
    key = getkey()
    for keys in (None, key):
        found = batched(0.4, x, args, key=keys)
        for i in range(4):
            k = None if keys is None else jax.random.split(key, 4)[i]
            single = denoiser(0.4, x[i], {"mean": args["mean"][i]}, key=k)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(single), strict=True):
                np.testing.assert_allclose(a[i], b, rtol=1e-5)


@pytest.mark.slow
def test_likelihood_and_encoding_are_each_examples_own(x64):
    """One per example, each to the tolerance, with one number of steps for all."""
    x, batched = jnp.asarray(BATCH), eqd.Batched(MIXTURE)
    flow = eqd.ProbabilityFlow(rtol=1e-7, atol=1e-7)

    def prior(y):
        return MIXTURE.log_prob(1.0, y)

    @quick_jit
    def shared(x):
        found = eqd.log_likelihood(batched, x, flow=flow, trace=eqd.ExactTrace(), prior=prior)
        return found, flow.decode(batched, found.latent)

    @quick_jit
    @jax.vmap
    def alone(x):
        return flow.encode(MIXTURE, x)

    found, back = shared(x)
    assert found.log_prob.shape == found.stderr.shape == (4,) and found.latent.shape == (4, 2)
    assert found.stats["num_steps"].shape == ()
    exact = [MIXTURE.log_prob(1e-5, y) for y in x]
    np.testing.assert_allclose(found.log_prob, exact, atol=2e-5)
    np.testing.assert_allclose(back, x, atol=1e-5)
    np.testing.assert_allclose(found.latent, alone(x), atol=1e-5)


def test_every_example_meets_the_tolerance(x64):
    """The error norm is the worst example's: one hard one among many easy ones is not outvoted."""
    denoiser = eqd.Batched(_Conditional(VP))
    means = np.zeros(65)
    means[0] = 40.0
    x = jnp.asarray(np.where(means > 0, 40.5, 0.1)[:, None] * np.ones((65, 2)))

    @quick_jit
    def log_prob(x, means):
        flow = eqd.ProbabilityFlow(rtol=1e-6, atol=1e-6)
        args = {"mean": means}
        return eqd.log_likelihood(denoiser, x, args, flow=flow, trace=eqd.ExactTrace()).log_prob

    found = log_prob(x, jnp.asarray(means))
    # The linear flow of a Gaussian.
    for i in (0, 1):

        def moments(t, m=means[i]):
            return VP.alpha(t) * m, jnp.sqrt(0.25 * VP.alpha(t) ** 2 + VP.sigma(t) ** 2)

        (m0, c0), (m1, c1) = moments(1e-5), moments(1.0)
        latent = m1 + c1 / c0 * (x[i] - m0)
        expected = VP.prior_log_prob(latent) + 2 * jnp.log(c1 / c0)
        np.testing.assert_allclose(found[i], expected, rtol=1e-5)


def test_probes_differ_between_examples(x64):
    denoiser, x = eqd.Batched(MIXTURE), jnp.tile(jnp.asarray(BATCH[0]), (16, 1))

    @quick_jit
    def run(x):
        flow = eqd.ProbabilityFlow(rtol=1e-4, atol=1e-4)
        options = dict(flow=flow, trace=eqd.Hutchinson(3), key=jax.random.key(0))
        return eqd.log_likelihood(denoiser, x, **options)

    found = run(x)
    assert found.log_prob.shape == found.stderr.shape == (16,)
    # Three Rademacher probes in two dimensions: ε₁ε₂ agrees 0 to 3 times, four values and no more.
    assert 2 <= len(np.unique(np.round(found.log_prob, 6))) <= 4
    np.testing.assert_allclose(found.latent, found.latent[:1].repeat(16, 0), rtol=1e-12)


@pytest.mark.slow
def test_bits_per_dim_of_a_batch(x64):
    images = jnp.array([[-1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    options = dict(trace=eqd.ExactTrace(), flow=eqd.ProbabilityFlow(rtol=1e-6, atol=1e-6))
    key, dequantise = jax.random.key(0), eqd.UniformDequantisation(levels=3)
    run = quick_jit(
        lambda images: eqd.bits_per_dim(
            eqd.Batched(MIXTURE), images, dequantise=dequantise, key=key, **options
        )
    )
    found = run(images)
    assert found.bits.shape == found.stderr.shape == (3,)
    offset = 2 * np.log(2 / 3)
    expected = -(found.likelihood.log_prob + offset) / (2 * np.log(2))
    np.testing.assert_allclose(found.bits, expected, rtol=1e-12)


@pytest.mark.slow
def test_samplers_take_shared_steps(x64):
    """Solves on a batched denoiser: one number of steps, and the samples of each alone."""
    x1 = jax.random.normal(jax.random.key(0), (5, 2))
    sampler = eqd.ProbabilityFlow(rtol=1e-7, atol=1e-7)
    batched = eqd.Batched(MIXTURE)

    @quick_jit
    def run(x1):
        return sampler.solve(batched, x1).stats, sampler(batched, x1)

    stats, found = run(x1)
    assert stats["num_steps"].shape == ()
    alone = quick_jit(jax.vmap(lambda x: sampler(MIXTURE, x)))(x1)
    np.testing.assert_allclose(found, alone, atol=1e-5)


@pytest.mark.slow
def test_reverse_sde_of_a_batch_has_the_datas_moments(x64):
    n = 2000
    denoiser = eqd.Batched(eqd.GaussianDenoiser(VP, 0.3, 0.5))
    x1 = jax.random.normal(jax.random.key(0), (n, 1))
    run = quick_jit(lambda x: eqd.ReverseSDE(num_steps=60)(denoiser, x, key=jax.random.key(1)))
    x = np.asarray(run(x1))
    assert abs(x.mean() - 0.3) < 4 * 0.5 / n**0.5
    assert abs(x.std() - 0.5) < 4 * 0.5 / (2 * n) ** 0.5 + 0.01


def test_batches_that_do_not_fit_are_refused():
    batched, x = eqd.Batched(_Conditional(VP)), jnp.asarray(BATCH)
    with pytest.raises(ValueError, match=r"4 examples, but args has arrays of shape \[\(3,\)\]"):
        batched(0.4, x, {"mean": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"args has arrays of shape \[\(\)\].*leading axis of 4"):
        eqd.log_likelihood(batched, x, {"mean": 0.3}, trace=eqd.ExactTrace())
    with pytest.raises(ValueError, match=r"x is a number.*x\[None\]"):
        batched(0.4, jnp.zeros(()))
    assert isinstance(eqx.filter(batched, eqx.is_array), eqd.Batched)
    assert isinstance(eqd.terms.probability_flow(batched), diffrax.ODETerm)
