"""Likelihoods against score_sde_pytorch's `get_likelihood_fn`, with its recorded probes.

The official solver is scipy's RK45 at 1e-5 on the whole batch flattened. The same solver on our
velocity and divergence gives its numbers to rounding; ours gives them to the tolerance of both.
"""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_golden, load_golden
from scipy import integrate
from toys import quick_jit, sde_denoiser

import eqdiff as eqd


FILE = "public_sde_likelihood"
PROCESSES = {"VPSDE": eqd.VPSDE(), "VESDE": eqd.VESDE(), "subVPSDE": eqd.SubVPSDE()}
SHAPE = (3, 2, 2)


class _Flat(eqd.AbstractDenoiser):
    """A denoiser of vectors, on images."""

    vectors: eqd.AbstractDenoiser
    parameterisation = eqd.PredictNoise()
    variance = eqd.FixedSmall()

    @property
    def process(self):
        return self.vectors.process

    def __call__(self, t, x, args=None, *, key=None):
        estimate = self.vectors(t, x.reshape(-1))
        return eqd.Estimate(estimate.x0.reshape(x.shape), estimate.noise.reshape(x.shape))


def denoiser_of(name: str, model: str) -> eqd.AbstractDenoiser:
    """The toy network, or the exact denoiser of N(mu, S0), S0 = 0.3² I for "iso"."""
    golden = load_golden(FILE)
    if model == "toy":
        return sde_denoiser(PROCESSES[name], golden["gauss/p"])
    covariance = golden["gauss/S0"] if model == "gauss" else 0.3**2 * np.eye(12)
    return _Flat(
        eqd.GaussianMixtureDenoiser(
            PROCESSES[name], np.ones(1), golden["gauss/mu"][None], covariance[None]
        )
    )


@ft.cache
def functions_of(name: str, kind: str):
    """For the toy or the exact denoisers: the augmented flow's vector field on the batch, and our
    likelihood.
    """
    static = eqx.partition(denoiser_of(name, kind), eqx.is_array)[1]
    # The official drift stops at 1e-5 too.

    @quick_jit
    def field(arrays, t, x, epsilon):
        denoiser = eqx.combine(arrays, static)

        def one(x, e):
            term = eqd.terms.augmented_flow(denoiser, eqd.Hutchinson(), e[None])
            return term.vf(t, (x, jnp.zeros(1)), None)

        return jax.vmap(one)(x, epsilon)

    @quick_jit
    def bits(arrays, image, epsilon):
        denoiser = eqx.combine(arrays, static)

        def one(x, e):
            trace = eqd.Hutchinson(1, lambda key, shape, dtype: e[None])
            flow = eqd.ProbabilityFlow(rtol=1e-7, atol=1e-7)
            found = eqd.log_likelihood(denoiser, x, flow=flow, trace=trace, key=jax.random.key(0))
            return found.log_prob, found.latent

        return jax.vmap(one)(image, epsilon)

    return field, bits


def official_solve(name, kind, arrays, x, epsilon):
    field, _ = functions_of(name, kind)
    size = x.size

    def rhs(t, state):
        velocity, rate = field(arrays, t, state[:size].reshape(x.shape), epsilon)
        return np.concatenate([np.ravel(velocity), np.ravel(rate)])

    start = np.concatenate([x.reshape(-1), np.zeros(len(x))])
    solution = integrate.solve_ivp(rhs, (1e-5, 1), start, rtol=1e-5, atol=1e-5, method="RK45")
    latent = solution.y[:size, -1].reshape(x.shape)
    prior = jax.vmap(PROCESSES[name].prior_log_prob)(jnp.asarray(latent))
    return np.asarray(prior) + solution.y[size:, -1], latent, solution.nfev


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("kind", ["toy", "exact"])
def test_bits_per_dim_and_latents(name, kind, x64):
    golden = load_golden(FILE)
    x = golden["gauss/data"].astype(np.float64)
    models = ["toy"] if kind == "toy" else ["gauss", "iso"]
    for case in [f"{m}_{probes}" for m in models for probes in ("Rademacher", "Gaussian")]:
        kind_of = case.split("_")[0]
        arrays = eqx.filter(denoiser_of(name, kind_of), eqx.is_array)
        epsilon = golden[f"{name}/{case}/epsilon"].astype(np.float64)
        family = "toy" if kind == "toy" else "gauss"
        log_prob, latent, calls = official_solve(name, family, arrays, x, epsilon)
        offset = 7  # What the official code adds for 8-bit images on [-1, 1].
        assert_golden(_bits(log_prob, offset), FILE, f"{name}/{case}/bpd")
        assert_golden(latent, FILE, f"{name}/{case}/z")
        # The count may differ by a step between float32 and float64.
        assert abs(calls - int(golden[f"{name}/{case}/nfe"])) <= 6
        log_prob, latent = functions_of(name, family)[1](arrays, jnp.asarray(x), epsilon)
        bits = _bits(np.asarray(log_prob), offset)
        np.testing.assert_allclose(bits, golden[f"{name}/{case}/bpd"], atol=3e-3)
        scale = np.abs(golden[f"{name}/{case}/z"]).max()
        np.testing.assert_allclose(latent, golden[f"{name}/{case}/z"], atol=1e-3 * scale)


def _bits(log_prob, offset):
    return (-log_prob / (12 * np.log(2)) + offset).astype(np.float32)
