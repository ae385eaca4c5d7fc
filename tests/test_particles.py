"""The twisted diffusion sampler against exact posteriors, and what its particles can do."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


MEAN = np.array([0.5, -1.0, 0.3])
COVARIANCE = np.array([[0.9, 0.4, -0.2], [0.4, 0.6, 0.1], [-0.2, 0.1, 0.8]])
A = np.array([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]])
Y = np.array([0.2, 1.4])
STD = np.array([0.5, 0.4])
SDE = eqd.VPSDE()


def measurement(y=Y, matrix=A, std=STD):
    return eqd.Measurement(
        jnp.asarray(y, float), lambda x: jnp.asarray(matrix, x.dtype) @ x, jnp.asarray(std, float)
    )


def conditioned(mean, covariance, y=Y, matrix=A, std=STD):
    """Mean and covariance of x given Ax + std n = y, and log p(y): the textbook's formulas."""
    total = matrix @ covariance @ matrix.T + np.diag(std**2)
    gain = covariance @ matrix.T @ np.linalg.inv(total)
    residual = y - matrix @ mean
    log_evidence = -0.5 * (
        residual @ np.linalg.solve(total, residual) + np.linalg.slogdet(2 * np.pi * total)[1]
    )
    return mean + gain @ residual, covariance - gain @ matrix @ covariance, log_evidence


def chains_own(times, s):
    """Mean and covariance of what the chain draws for Gaussian data, by hand: every step is affine.

    p(x_s|x_t, x0) in the form of Ho et al. (2020), equations 6 and 7, and x0 with the variance of
    Gaussian data of standard deviation s.
    """
    levels = [(float(SDE.alpha(t)), float(SDE.sigma(t))) for t in times]
    mean, covariance = np.zeros(3), np.eye(3)

    def denoised(alpha, sigma):
        slope = alpha * COVARIANCE @ np.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * np.eye(3))
        return slope, MEAN - alpha * slope @ MEAN

    for (alpha, sigma), (alpha_s, sigma_s) in itertools.pairwise(levels):
        a = alpha / alpha_s
        b2 = sigma**2 - a**2 * sigma_s**2
        of_x0, of_x = alpha_s * b2 / sigma**2, a * sigma_s**2 / sigma**2
        spread = s**2 * sigma**2 / (alpha**2 * s**2 + sigma**2)
        slope, offset = denoised(alpha, sigma)
        matrix = of_x0 * slope + of_x * np.eye(3)
        mean = matrix @ mean + of_x0 * offset
        noise = sigma_s**2 * b2 / sigma**2 + of_x0**2 * spread
        covariance = matrix @ covariance @ matrix.T + noise * np.eye(3)
    slope, offset = denoised(*levels[-1])
    return slope @ mean + offset, slope @ covariance @ slope.T


CASES = {
    "resampled": dict(data_std=1.0, threshold=0.9),
    "never resampled": dict(data_std=0.6, threshold=0.0, covariance=eqd.JacobianCovariance(2)),
}


@pytest.mark.parametrize("case", CASES)
def test_particles_approach_the_chains_posterior(case, getkey, x64):
    """Few steps, so that the chain is far from the data; the twists far from its p(y|x_t)."""
    times = np.array([1.0, 0.7, 0.4, 0.2, 0.05])
    options = CASES[case]
    prior = chains_own(times, options.get("data_std", 1.0))
    mean, covariance, log_evidence = conditioned(*prior)
    denoiser = eqd.GaussianMixtureDenoiser(SDE, np.ones(1), MEAN[None], COVARIANCE[None])

    def errors(num, repeats):
        smc = eqd.TwistedSMC(num_particles=num, times=times, **options)

        def one(key):
            particles = smc(denoiser, measurement(), (3,), key=key)
            centred = particles.x - mean[None]
            second = centred.T @ (jnp.exp(particles.log_weights)[:, None] * centred)
            first = particles.mean() - mean
            ratio = jnp.exp(particles.log_evidence - log_evidence) - 1
            return jnp.concatenate([first, (second - covariance).reshape(-1), ratio[None]])

        return np.asarray(quick_jit(jax.vmap(one))(jax.random.split(getkey(), repeats)))

    few, many = errors(100, 100), errors(2500, 25)
    # Right on average; the weights of few particles have a bias, but of order 1/N.
    assert np.all(np.abs(many.mean(0)) < 4 * many.std(0) / 5 + 2e-3)
    # The estimate of the evidence itself has none.
    assert abs(few[:, -1].mean()) < 4 * few[:, -1].std() / 10
    # 25 times as many particles: errors a fifth.
    fall = np.sqrt(np.mean(few**2, 0) / np.mean(many**2, 0))
    assert 3.3 < np.exp(np.mean(np.log(fall))) < 7.5


def test_without_information_the_chain_of_gaussian_data_is_exact(getkey):
    """Equal weights, and the data's variance after four steps, which is what `data_std` is for."""
    denoiser = eqd.GaussianDenoiser(SDE, 0.3, 0.5)
    nothing = measurement(np.zeros(2), std=np.full(2, 1e4))
    smc = eqd.TwistedSMC(4, 20_000, data_std=0.5, spacing=eqd.log_snr_times)
    particles = quick_jit(lambda key: smc(denoiser, nothing, (3,), key=key))(getkey())
    np.testing.assert_allclose(particles.log_weights, -np.log(20_000), atol=1e-4)
    np.testing.assert_allclose(particles.effective_sample_sizes, 20_000, rtol=1e-4)
    x = np.asarray(particles.x, float)
    assert np.all(np.abs(x.mean(0) - 0.3) < 4 * 0.5 / np.sqrt(20_000))
    assert np.all(np.abs(x.var(0) / 0.25 - 1) < 4 * np.sqrt(2 / 20_000))


def test_mixture(getkey):
    """Modes of a mixture in the right proportion, on a discrete schedule."""
    means = np.array([[1.0, 1.0], [-1.0, 0.8], [0.2, -1.2]])
    covariances = np.array([0.2, 0.1, 0.15])[:, None, None] ** 2 * np.eye(2)
    weights, matrix, y, std = np.array([0.5, 0.2, 0.3]), np.array([[0.3, 1.0]]), [0.8], [0.4]
    y, std = np.array(y), np.array(std)
    denoiser = eqd.GaussianMixtureDenoiser(eqd.discretise(SDE, 1000), weights, means, covariances)
    parts = [conditioned(*p, y, matrix, std) for p in zip(means, covariances, strict=True)]
    joint = np.log(weights) + np.array([p[2] for p in parts])
    log_evidence = np.logaddexp.reduce(joint)
    shares = np.exp(joint - log_evidence)
    posterior_mean = shares @ [p[0] for p in parts]
    smc, repeats = eqd.TwistedSMC(100, 1000), 32

    def errors(key):
        particles = smc(denoiser, measurement(y, matrix, std), (2,), key=key)
        centres = jnp.asarray(means, float)
        nearest = jax.vmap(lambda x: jnp.argmin(jnp.sum((x[None] - centres) ** 2, 1)))(particles.x)
        found = jnp.exp(particles.log_weights) @ jax.nn.one_hot(nearest, 3)
        ratio = jnp.exp(particles.log_evidence - log_evidence)
        return jnp.concatenate(
            [found - shares, particles.mean() - posterior_mean, ratio[None] - 1], dtype=float
        )

    found = np.asarray(quick_jit(jax.vmap(errors))(jax.random.split(getkey(), repeats)))
    standard_error = found.std(0) / np.sqrt(repeats)
    assert np.all(standard_error < 0.02)
    # The chain's own error, which falls with its steps.
    assert np.all(np.abs(found.mean(0)) < 4 * standard_error + 0.02)


def test_any_operator(getkey):
    """Counts of the square of one number: two modes, by quadrature."""
    s, rate, repeats = 0.7, 4.0, 48
    denoiser = eqd.GaussianDenoiser(SDE, 0.2, s)
    counted = eqd.Measurement(np.array([1.0]), lambda x: x**2 + 0.1, eqd.PoissonNoise(rate))
    smc = eqd.TwistedSMC(60, 2000, data_std=s, covariance=eqd.IsotropicCovariance(s))
    grid = np.linspace(-4, 4, 4001)
    prior = np.exp(-0.5 * ((grid - 0.2) / s) ** 2) / (s * np.sqrt(2 * np.pi))
    expected = rate * (grid**2 + 0.1)
    joint = prior * expected**4 * np.exp(-expected) / 24
    evidence = joint.sum() * (grid[1] - grid[0])
    truth = np.array([np.sum(joint * grid**power) / np.sum(joint) for power in (1, 2)])

    def errors(key):
        particles = smc(denoiser, counted, (1,), key=key)
        w, x = jnp.exp(particles.log_weights), particles.x[:, 0]
        moments = jnp.stack([jnp.sum(w * x), jnp.sum(w * x**2)]) - truth.astype(x.dtype)
        return jnp.append(moments, jnp.exp(particles.log_evidence) / evidence - 1)

    found = np.asarray(quick_jit(jax.vmap(errors))(jax.random.split(getkey(), repeats)))
    standard_error = found.std(0) / np.sqrt(repeats)
    assert np.all(standard_error < [0.02, 0.006, 0.03])
    # The bias of the weights is of order 1/2000; that of the chain falls with its steps.
    assert np.all(np.abs(found.mean(0)) < 4 * standard_error + 0.01)


def test_chunks_and_batches_of_measurements_change_nothing(getkey):
    denoiser, key = eqd.GaussianDenoiser(SDE, 0.3, 0.5), getkey()

    def run(y, batch_size=None):
        smc = eqd.TwistedSMC(3, 10, batch_size=batch_size)
        return smc(denoiser, measurement(y), (3,), key=key)

    ys = jnp.stack([jnp.asarray(Y, float), jnp.zeros(2)])
    whole, chunked, batched = quick_jit(lambda: (run(ys[0]), run(ys[0], 4), jax.vmap(run)(ys)))()
    for a, b, c in zip(*(jax.tree.leaves(p) for p in (whole, chunked, batched)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(a, c[0], rtol=1e-4, atol=1e-5)
    assert whole.effective_sample_sizes.shape == (3,)


def test_resampled_particles_are_as_many_as_their_weights_say(getkey):
    weights = np.array([0.0, 0.45, 0.05, 0.3, 0.2, 0.0])
    particles = eqd.Particles(
        jnp.arange(6.0)[:, None],
        jnp.log(jnp.asarray(weights, float)),
        jnp.ones(1),
        jnp.zeros(()),
    )
    draw = quick_jit(jax.vmap(lambda key: particles.resample(7, key=key)))
    drawn = np.asarray(draw(jax.random.split(getkey(), 2000)))[..., 0].astype(int)
    counts = np.stack([np.bincount(row, minlength=6) for row in drawn])
    assert np.all((counts >= np.floor(7 * weights)) & (counts <= np.ceil(7 * weights)))
    assert np.all(np.abs(counts.mean(0) - 7 * weights) < 4 * 0.5 / np.sqrt(2000))
    # In random order: the first is any of them.
    assert np.all(np.abs(np.bincount(drawn[:, 0], minlength=6) / 2000 - weights) < 4 * 0.5 / 44)
    np.testing.assert_allclose(particles.mean(), [weights @ np.arange(6)], rtol=1e-6)


def test_what_is_refused():
    denoiser, key = eqd.GaussianDenoiser(SDE), jax.random.key(0)
    smc = eqd.TwistedSMC(2, 3)
    exact = measurement(std=np.zeros(2))
    with pytest.raises(ValueError, match="TwistedSMC: .*no density"):
        smc(denoiser, exact, (3,), key=key)
    with pytest.raises(ValueError, match="TwistedSMC: .*shape"):
        smc(denoiser, eqd.Measurement(np.zeros(3), exact.operator, 0.1), (3,), key=key)
    flow = eqd.GaussianDenoiser(eqd.RectifiedFlow(t1=1.0))
    with pytest.raises(ValueError, match="TwistedSMC: .*no signal is left"):
        smc(flow, measurement(), (3,), key=key)
    with pytest.raises(ValueError, match=r"TwistedSMC\(threshold=1.5\)"):
        eqd.TwistedSMC(threshold=1.5)
    with pytest.raises(ValueError, match=r"TwistedSMC\(data_std=-1.0\)"):
        eqd.TwistedSMC(data_std=-1.0)
