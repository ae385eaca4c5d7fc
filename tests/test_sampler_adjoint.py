"""Derivatives of solves: those the default adjoint lacks name the adjoint that has them."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


PROCESS = eqd.VPSDE(0.1, 5.0, t0=0.02)
DENOISER = eqd.GaussianDenoiser(PROCESS, 0.5, 0.3)
X = np.array([0.7, -0.2])


def log_prob(adjoint):
    flow = eqd.ProbabilityFlow(diffrax.Bosh3(), rtol=1e-2, atol=1e-2, max_steps=32, adjoint=adjoint)
    return lambda x: eqd.log_likelihood(DENOISER, x, flow=flow, trace=eqd.ExactTrace()).log_prob


def sample(adjoint):
    flow = eqd.ProbabilityFlow(diffrax.Euler(), rtol=1e-2, num_steps=3, adjoint=adjoint)
    return lambda x: jnp.sum(flow(DENOISER, x) ** 2)


def adaptive(adjoint):
    flow = eqd.ProbabilityFlow(diffrax.Bosh3(), rtol=1e-5, atol=1e-5, max_steps=64, adjoint=adjoint)
    return lambda x: jnp.sum(flow(DENOISER, x) ** 2)


def encoded(adjoint):
    flow = eqd.ProbabilityFlow(diffrax.Euler(), num_steps=3, adjoint=adjoint)
    return lambda x: jnp.sum(flow.encode(DENOISER, x) ** 2)


def stochastic(adjoint):
    sampler = eqd.ReverseSDE(diffrax.Euler(), num_steps=3, adjoint=adjoint)
    return lambda x: jnp.sum(sampler(DENOISER, x, key=jax.random.key(0)) ** 2)


def multistep(adjoint):
    sampler = eqd.DPMSolverPP(4, adjoint=adjoint)
    return lambda x: jnp.sum(sampler(DENOISER, x) ** 2)


FUNCTIONS = [log_prob, sample, adaptive, encoded, stochastic, multistep]


def jvp(f, x):
    return jax.jvp(f, (x,), (x,))


@pytest.mark.parametrize("make", FUNCTIONS)
@pytest.mark.parametrize("derivative", [jvp, lambda f, x: jax.jacfwd(f)(x)])
def test_forward_mode_names_its_adjoint(make, derivative):
    f = make(diffrax.RecursiveCheckpointAdjoint())
    says = (
        r"RecursiveCheckpointAdjoint.*ForwardMode\(\).*jax\.hessian adjoint=diffrax\.DirectAdjoint"
    )
    with pytest.raises(ValueError, match=says):
        derivative(f, jnp.asarray(X, float))


@pytest.mark.parametrize("make", [log_prob, adaptive])
def test_a_hessian_names_its_adjoint(make):
    f = make(diffrax.RecursiveCheckpointAdjoint())
    with pytest.raises(ValueError, match=r"jax\.hessian adjoint=diffrax\.DirectAdjoint\(\)"):
        jax.hessian(f)(jnp.asarray(X, float))


@pytest.mark.slow
@pytest.mark.parametrize("make", FUNCTIONS)
def test_the_named_adjoints_have_the_derivatives(make, x64):
    """Of Gaussian data the flow is affine, so that a second difference is the Hessian."""
    x = jnp.asarray(X)
    f = quick_jit(make(diffrax.DirectAdjoint()))
    h, steps = 1e-2, np.eye(2)
    gradient = [(f(x + h * e) - f(x - h * e)) / (2 * h) for e in steps]
    curvature = [(f(x + h * e) - 2 * f(x) + f(x - h * e)) / h**2 for e in steps]
    forward = quick_jit(jax.jacfwd(make(diffrax.ForwardMode())))(x)
    np.testing.assert_allclose(forward, gradient, rtol=2e-3, atol=1e-4)
    hessian = quick_jit(jax.hessian(make(diffrax.DirectAdjoint())))(x)
    np.testing.assert_allclose(np.diag(hessian), curvature, rtol=2e-2, atol=1e-3)
