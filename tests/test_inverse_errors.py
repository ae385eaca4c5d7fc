"""Posterior guidance of denoisers with errors, which σ²/α² multiplies, against the closed posterior
of a mixture in five dimensions.
"""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import quick_jit

import eqdiff as eqd


SIZE = 5
_RNG = np.random.default_rng(1)
WEIGHTS, MEANS = np.array([0.5, 0.3, 0.2]), 0.8 * _RNG.standard_normal((3, SIZE))
SPREADS = np.stack(
    [0.1 * np.eye(SIZE) + 0.1 * np.outer(u, u) for u in _RNG.standard_normal((3, SIZE))]
)
ROWS, NOISE = 0.6 * _RNG.standard_normal((2, SIZE)), 0.3
SEEN = ROWS @ MEANS[0] + np.array([0.15, -0.3])
_ERROR = _RNG.standard_normal((2, SIZE, SIZE)) / np.sqrt(SIZE)


class Erring(eqd.AbstractWrapper):
    """A denoiser whose noise estimate is wrong by a few per cent, as a network's is."""

    denoiser: eqd.AbstractDenoiser
    symmetric: bool = False  # Of the Jacobian: the gradient of an energy.

    def __call__(self, t, x, args=None, *, key=None):
        alpha, sigma = self.process.levels(t, like=x)
        first, second = (jnp.asarray(matrix, x.dtype) for matrix in _ERROR)
        if self.symmetric:
            second = first.T * jnp.asarray([[1, -1, 1, -1, 1]], x.dtype)
        scaled = x / jnp.sqrt(alpha**2 + sigma**2)
        error = 0.03 * second @ jnp.tanh(first @ scaled)
        return self.denoiser(t, x).move(-sigma / alpha * error, alpha, sigma)


def the_mixture(process):
    return eqd.GaussianMixtureDenoiser(process, WEIGHTS, MEANS, SPREADS)


def draws_of_the_posterior(number):
    """Of the mixture given SEEN, in closed form: one Kalman update a component."""
    log_weights, moments = [], []
    for weight, mean, spread in zip(WEIGHTS, MEANS, SPREADS, strict=True):
        total = ROWS @ spread @ ROWS.T + NOISE**2 * np.eye(2)
        residual, gain = SEEN - ROWS @ mean, spread @ ROWS.T @ np.linalg.inv(total)
        quadratic = residual @ np.linalg.solve(total, residual) + np.linalg.slogdet(total)[1]
        log_weights.append(np.log(weight) - 0.5 * quadratic)
        moments.append((mean + gain @ residual, spread - gain @ ROWS @ spread))
    weights = np.exp(np.array(log_weights) - max(log_weights))
    rng = np.random.default_rng(2)
    which = rng.choice(3, number, p=weights / weights.sum())
    means, spreads = (np.stack(part)[which] for part in zip(*moments, strict=True))
    z = rng.standard_normal((number, SIZE))
    return means + np.einsum("nij,nj->ni", np.linalg.cholesky(spreads), z)


def energy_distance(a, b):
    def mean_distance(a, b):
        return np.mean(np.linalg.norm(a[:, None] - b[None], axis=-1))

    return 2 * mean_distance(a, b) - mean_distance(a, a) - mean_distance(b, b)


def draw(sampler, denoiser, covariance, keys):
    operator = lambda x: jnp.asarray(ROWS, x.dtype) @ x  # noqa: E731
    measurement = eqd.Measurement(jnp.asarray(SEEN, float), operator, NOISE)
    guided = eqd.PosteriorGuidance(denoiser, measurement, covariance=covariance)

    def one(key):
        key1, key2 = jax.random.split(key)
        return sampler(guided, denoiser.process.prior_sample((SIZE,), key=key1), key=key2)

    return np.asarray(quick_jit(jax.vmap(one))(keys))


TWEEDIE = eqd.JacobianCovariance()
ERRING = {
    "DDIM": (eqd.VPSDE(), eqd.DDIM(50), TWEEDIE, False),
    "DDIM, eta 1": (eqd.VPSDE(), eqd.DDIM(100, eta=1.0), TWEEDIE, False),
    "an energy's": (eqd.VPSDE(), eqd.DDIM(100, eta=1.0), TWEEDIE, True),
    "isotropic": (eqd.VPSDE(), eqd.DDIM(100, eta=1.0), eqd.IsotropicCovariance(0.8), False),
    "VE": (eqd.VESDE(), eqd.DPMSolverPP(40), TWEEDIE, False),
    "schedule": (eqd.cosine_schedule(200), eqd.Ancestral(100), TWEEDIE, False),
    "flow": (eqd.RectifiedFlow(), eqd.DDIM(60, eta=1.0), TWEEDIE, False),
}


@pytest.mark.parametrize("case", ERRING)
def test_a_networks_errors_do_not_diverge(case, getkey):
    """Samples near the truth, and near those that an exact denoiser gives."""
    process, sampler, covariance, symmetric = ERRING[case]
    keys, exact = jax.random.split(getkey(), 400), the_mixture(process)
    samples = draw(sampler, Erring(exact, symmetric), covariance, keys)
    without = draw(sampler, exact, covariance, keys)
    assert np.max(np.abs(samples)) < 10
    assert energy_distance(samples, draws_of_the_posterior(2000)) < 0.04
    np.testing.assert_allclose(samples.mean(0), without.mean(0), atol=0.1)
    np.testing.assert_allclose(np.cov(samples.T), np.cov(without.T), atol=0.15)


@pytest.fixture(scope="module")
def trained():
    """A small network that has learned the mixture by score matching, as well as 1,500 steps do."""
    process, optimiser = eqd.VPSDE(), optax.adam(optax.cosine_decay_schedule(2e-3, 1500))

    def loss_fn(net, t, x0, args, *, key):
        prediction = eqd.predict(eqd.Denoiser(net, process), t, x0, args, key=key)
        return eqd.score_matching(prediction), {}

    state = eqd.train.init(
        eqd.nn.MLP(SIZE, SIZE, 64, 2, key=jax.random.key(0)),
        optimiser,
        timesteps=eqd.LowDiscrepancy(process),
        ema=(0.99,),
        key=jax.random.key(1),
    )
    step, rng = eqd.train.make_step(loss_fn, optimiser), np.random.default_rng(0)
    factors = np.linalg.cholesky(SPREADS)
    for _ in range(1500):
        which = rng.choice(3, 256, p=WEIGHTS)
        z = rng.standard_normal((256, SIZE))
        x0 = MEANS[which] + np.einsum("nij,nj->ni", factors[which], z)
        state, _ = step(state, (jnp.asarray(x0, float), None))
    return eqd.Denoiser(state.ema_net(), process)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [
        eqd.DDIM(50),
        eqd.DDIM(200, eta=1.0),
        eqd.ReverseSDE(diffrax.ShARK(), rtol=1e-2, atol=1e-2),
    ],
    ids=["ddim", "ddim_eta", "reverse_sde"],
)
def test_a_trained_network_draws_from_the_posterior(trained, sampler, getkey):
    samples = draw(sampler, trained, TWEEDIE, jax.random.split(getkey(), 400))
    truth = draws_of_the_posterior(2000)
    # Without randomness, a network that is led away from its data is not led back.
    assert np.mean(np.max(np.abs(samples), axis=1) < 10) > 0.995
    assert energy_distance(samples, truth) < 0.05
