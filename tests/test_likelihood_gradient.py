"""Gradients of log-likelihoods, by each adjoint: finite differences and the closed form."""

import functools as ft

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


POINT = np.array([0.4, -1.5])
VP = eqd.VPSDE(t0=1e-3)


class _Net(eqx.Module):
    """A perceptron of one hidden layer."""

    weights: jax.Array

    def __call__(self, c_noise, x, args=None, *, key=None):
        hidden = jnp.tanh(self.weights[:, :2] @ x + self.weights[:, 2] * c_noise / 999)
        return self.weights[:, 3:].T @ hidden


WEIGHTS = np.random.default_rng(0).normal(size=(4, 5))
DIRECTION = np.random.default_rng(1).normal(size=(4, 5))


def log_prob(weights, adjoint, trace=eqd.ExactTrace()):
    denoiser = eqd.Denoiser(_Net(weights), VP)
    found = eqd.log_likelihood(
        denoiser,
        jnp.asarray(POINT),
        flow=eqd.ProbabilityFlow(rtol=1e-9, atol=1e-9, adjoint=adjoint, max_steps=256),
        trace=trace,
        key=jax.random.key(0),
    )
    return found.log_prob


@ft.cache
def finite_difference():
    f = quick_jit(lambda w: log_prob(w, diffrax.ForwardMode()))
    h = 1e-5
    ends = (f(jnp.asarray(WEIGHTS + s * h * DIRECTION)) for s in (1, -1))
    up, down = ends
    return (up - down) / (2 * h)


@pytest.mark.slow
def test_reverse_mode(x64):
    f = quick_jit(jax.grad(lambda w: log_prob(w, diffrax.RecursiveCheckpointAdjoint())))
    gradient = f(jnp.asarray(WEIGHTS))
    np.testing.assert_allclose(jnp.sum(gradient * DIRECTION), finite_difference(), rtol=1e-5)


@pytest.mark.parametrize("adjoint", [diffrax.ForwardMode(), diffrax.DirectAdjoint()])
def test_forward_mode(adjoint, x64):
    f = quick_jit(lambda w, d: jax.jvp(lambda w: log_prob(w, adjoint), (w,), (d,))[1])
    found = f(jnp.asarray(WEIGHTS), jnp.asarray(DIRECTION))
    np.testing.assert_allclose(found, finite_difference(), rtol=1e-5)


@pytest.mark.slow
def test_direct_adjoint_in_reverse_mode(x64):
    f = quick_jit(jax.grad(lambda w: log_prob(w, diffrax.DirectAdjoint())))
    gradient = f(jnp.asarray(WEIGHTS))
    np.testing.assert_allclose(jnp.sum(gradient * DIRECTION), finite_difference(), rtol=1e-5)


@pytest.mark.slow
def test_gradient_of_an_analytic_flow_is_the_closed_forms(x64):
    """∂ log p/∂(mean) through the solve, against that of the closed form."""
    std, x = np.array([0.3, 1.2]), jnp.asarray(POINT)

    def closed_form(mean):
        def moments(t):
            alpha, sigma = VP.alpha(t), VP.sigma(t)
            return alpha * mean, jnp.sqrt(alpha**2 * std**2 + sigma**2)

        (m0, c0), (m1, c1) = moments(VP.t0), moments(VP.t1)
        return VP.prior_log_prob(m1 + c1 / c0 * (x - m0)) + jnp.sum(jnp.log(c1 / c0))

    def solved(mean):
        denoiser = eqd.GaussianDenoiser(VP, np.zeros(2), std)
        denoiser = eqx.tree_at(lambda d: d.mean, denoiser, mean)
        flow = eqd.ProbabilityFlow(rtol=1e-7, atol=1e-7)
        return eqd.log_likelihood(denoiser, x, flow=flow, trace=eqd.ExactTrace()).log_prob

    mean = jnp.array([0.5, -1.0])
    expected = jax.grad(closed_form)(mean)
    np.testing.assert_allclose(quick_jit(jax.grad(solved))(mean), expected, rtol=1e-4)
