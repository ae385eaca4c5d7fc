"""log p(x|y) of guided and conditional denoisers against exact posteriors.

Gaussian data measured as y = A x + noise have a Gaussian posterior, and PosteriorGuidance and the
exact classifier's gradient both give its flow.
"""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


PROCESS = eqd.VPSDE(t0=1e-3)
MEAN, COVARIANCE = np.array([0.5, -1.0]), np.array([[0.5, 0.45], [0.45, 0.8]])
OPERATOR, STD, Y = np.array([[1.0, 0.5]]), 0.3, np.array([0.7])
POINTS = np.array([[0.4, -1.2], [1.0, -0.3], [0.9, 0.4]])


def gaussian(mean, covariance):
    return eqd.GaussianMixtureDenoiser(PROCESS, np.ones(1), mean[None], covariance[None])


PRIOR = gaussian(MEAN, COVARIANCE)


def posterior(y):
    precision = np.linalg.inv(COVARIANCE) + OPERATOR.T @ OPERATOR / STD**2
    covariance = np.linalg.inv(precision)
    mean = covariance @ (np.linalg.solve(COVARIANCE, MEAN) + OPERATOR.T @ y / STD**2)
    return gaussian(mean, covariance)


def measure(x):
    return jnp.asarray(OPERATOR, x.dtype) @ x


class _Measured(eqd.AbstractWrapper):
    """Guidance by a measurement that comes as `args`."""

    denoiser: eqd.AbstractDenoiser

    def __call__(self, t, x, args=None, *, key=None):
        measurement = eqd.Measurement(args, measure, STD)
        return eqd.PosteriorGuidance(self.denoiser, measurement)(t, x)


def log_classifier(t, x, y):
    """log p(y|x_t), which for Gaussian data is known."""
    alpha, sigma = PROCESS.levels(t, like=x)
    inverse = jnp.asarray(np.linalg.inv(COVARIANCE), x.dtype)
    of_x0 = jnp.linalg.inv(inverse + (alpha / sigma) ** 2 * jnp.eye(2, dtype=x.dtype))
    residual = y - measure(PRIOR(t, x).x0)
    variance = measure(measure(of_x0).T)[0, 0] + STD**2
    return -0.5 * residual[0] ** 2 / variance - 0.5 * jnp.log(variance)


class _Conditional(eqd.AbstractWrapper):
    """The posterior's denoiser if asked for it, the prior's otherwise: what a network learns."""

    denoiser: eqd.AbstractDenoiser
    null: eqd.AbstractDenoiser

    def __call__(self, t, x, args=None, *, key=None):
        estimates = self.denoiser(t, x), self.null(t, x)
        return jax.tree.map(lambda a, b: jnp.where(args[0] > 0, a, b), *estimates)


GUIDED = {
    "PosteriorGuidance": _Measured(PRIOR),
    "ClassifierGuidance": eqd.ClassifierGuidance(eqd.FixedArgs(PRIOR), log_classifier),
    "ClassifierFree": eqd.ClassifierFree(_Conditional(posterior(Y), PRIOR), 1.0, null=-jnp.ones(1)),
}


@pytest.mark.parametrize("name", GUIDED)
def test_the_density_is_the_posteriors(name, x64):
    """The flow's prior stands for p_t1, so the latent's two densities there make up for it."""
    denoiser, exact = GUIDED[name], posterior(Y)
    flow = eqd.ProbabilityFlow(rtol=1e-7, atol=1e-7)

    @quick_jit
    @jax.vmap
    def solve(x):
        found = eqd.log_likelihood(denoiser, x, jnp.asarray(Y), flow=flow, trace=eqd.ExactTrace())
        latent = found.latent
        correction = exact.log_prob(PROCESS.t1, latent) - PROCESS.prior_log_prob(latent)
        return found.log_prob + correction

    points = jnp.asarray(POINTS)
    truth = jax.vmap(lambda x: exact.log_prob(PROCESS.t0, x))(points)
    np.testing.assert_allclose(solve(points), truth, atol=2e-6)


def test_what_has_no_density_or_no_condition_says_so(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x = jnp.zeros(2, jnp.float32)
    inpaint = eqd.Constrained(eqd.DDIM(5), eqd.Inpaint(x, np.array([True, False])))
    with pytest.raises(ValueError, match="the sampler Constrained.*log_likelihood.Posterior"):
        eqd.log_likelihood(inpaint, x)
    with pytest.raises(ValueError, match=r"given none.*log_likelihood\(denoiser, x, args\)"):
        eqd.log_likelihood(GUIDED["ClassifierFree"], x, trace=eqd.ExactTrace())
