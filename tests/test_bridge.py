"""From one data set to another: flows of pairs and bridges, against Gaussians in closed form."""

from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

import eqdiff as eqd


PROCESSES = {
    "edm": eqd.EDMSDE(t1=1.5),
    "ve": eqd.VESDE(sigma_max=2.0),
    "vp": eqd.VPSDE(beta_max=4.0),
    "schedule": eqd.linear_schedule(100, beta_min=1e-3, beta_max=0.03),
}
M0, M1 = np.array([1.0, -0.5]), np.array([-1.0, 0.3])
S0 = np.array([[0.4, 0.2], [0.2, 0.3]])
S1 = np.array([[0.5, -0.3], [-0.3, 0.9]])


def published_levels(process, t) -> tuple[float, float, float]:
    """a, b, c of x_t = a x0 + b x1 + c z: Zhou et al. 2024, equation 8."""
    t1 = process.t1
    levels = (process.alpha(t), process.sigma(t), process.alpha(t1), process.sigma(t1))
    alpha, sigma, end, width = (float(level) for level in levels)
    ratio = (end / width) ** 2 / (alpha / sigma) ** 2
    return alpha * (1 - ratio), ratio * alpha / end, sigma * np.sqrt(1 - ratio)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_noise_of_a_bridge_makes_the_published_law(name, x64):
    process = PROCESSES[name]
    x0, x1 = jnp.full(4000, 0.7), jnp.full(4000, -1.2)

    def state(t, x0, x1, seed=0):
        return process.perturb(
            t, x0, eqd.bridge_noise(process, t, x0, x1, key=jax.random.key(seed))
        )

    for u in (0.2, 0.7, 0.95):
        t = float(process.t0 + u * (process.t1 - process.t0))
        a, b, c = published_levels(process, t)
        alone = state(t, 0 * x0, 0 * x1)
        np.testing.assert_allclose(state(t, x0, x1) - alone, 0.7 * a - 1.2 * b, rtol=1e-7)
        assert abs(np.mean(alone)) < 5 * c / np.sqrt(4000)
        assert abs(np.std(alone) / c - 1) < 5 / np.sqrt(8000)
    np.testing.assert_allclose(state(process.t1, x0, x1), x1, rtol=1e-12)


def test_a_step_of_a_bridge_is_ddims_with_noise(x64):
    """I²SB's posterior p(x_s|x0, x_t), Liu et al. 2023, equation 4, and DDIM's step at η = 1."""
    process, t, s = PROCESSES["edm"], 1.2, 0.5
    before, after = s**2, t**2 - s**2
    x, x0 = jnp.full(4000, 0.3), -0.8
    mean = after / (after + before) * x0 + before / (after + before) * 0.3
    width = np.sqrt(after * before / (after + before))
    denoiser = eqd.GaussianDenoiser(process, x0, 0.0)
    sampler = eqd.DDIM(times=[t, s], eta=1.0)
    noisy = sampler.trajectory(denoiser, x, key=jax.random.key(0)).x[0]
    assert abs(np.mean(noisy) - mean) < 5 * width / np.sqrt(4000)
    assert abs(np.std(noisy) / width - 1) < 5 / np.sqrt(8000)


class Pairs(eqd.AbstractDenoiser):
    """The exact denoiser of Gaussian pairs (x0, x1), of which the process sees x_t alone."""

    levels: Callable
    cross: np.ndarray
    process: eqd.AbstractProcess
    parameterisation: eqd.AbstractParameterisation = eqd.PredictFlow()
    variance: eqd.AbstractVariance = eqd.FixedLarge()

    def moments(self, t):
        """The covariance of x0 and x_t, and the mean and the covariance of x_t."""
        a, b, c = self.levels(t)
        with_x0 = a * S0 + b * self.cross
        both = a * b * (self.cross + self.cross.T)
        return with_x0, a * M0 + b * M1, a**2 * S0 + both + b**2 * S1 + c**2 * jnp.eye(2)

    def __call__(self, t, x, args=None, *, key=None):
        with_x0, mean, covariance = self.moments(t)
        x0 = M0 + with_x0 @ jnp.linalg.solve(covariance, x - mean)
        alpha, sigma = self.process.levels(t, like=x)
        return eqd.Estimate(x0, (x - alpha * x0) / sigma)


class GivenEnd(Pairs):
    """The same, told x1."""

    def __call__(self, t, x, args=None, *, key=None):
        mean, spread = given_end(self.cross, args)
        a, b, c = self.levels(t)
        alpha, sigma = self.process.levels(t, like=x)
        # S a (a² S + c²)⁻¹ divided through by 1 − ρ, which is 0 at the end.
        total = a * alpha * spread + sigma**2 * jnp.eye(2)
        x0 = mean + alpha * spread @ jnp.linalg.solve(total, x - b * args - a * mean)
        return eqd.Estimate(x0, (x - alpha * x0) / sigma)


def given_end(cross, x1):
    """Mean and covariance of p(x0|x1)."""
    gain = cross @ np.linalg.inv(S1)
    return M0 + gain @ (x1 - M1), S0 - gain @ cross.T


def monge() -> np.ndarray:
    """The optimal map's matrix: x1 − m1 is carried to T(x1 − m1)."""
    root = linalg.sqrtm(S1).real
    back = np.linalg.inv(root)
    return back @ linalg.sqrtm(root @ S0 @ root).real @ back


def flow_of(cross):
    return Pairs(lambda t: (1 - t, t, 0.0), cross, eqd.RectifiedFlow(t1=1.0))


FLOW = eqd.ProbabilityFlow(rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("paired", [False, True])
def test_a_flow_carries_one_gaussian_to_another(paired, x64):
    denoiser = flow_of(monge() @ S1 if paired else np.zeros((2, 2)))
    decode = jax.jit(lambda x: FLOW.decode(denoiser, x))
    _, mean, covariance = denoiser.moments(denoiser.process.t0)
    np.testing.assert_allclose(decode(jnp.asarray(M1)), mean, atol=1e-6)
    carried = np.stack([decode(jnp.asarray(M1 + e)) - mean for e in np.eye(2)], axis=1)
    np.testing.assert_allclose(carried @ S1 @ carried.T, covariance, atol=1e-6)
    one = eqd.ProbabilityFlow(diffrax.Euler(), num_steps=1)(denoiser, jnp.asarray([0.2, -0.4]))
    straight = M0 + monge() @ (np.array([0.2, -0.4]) - M1)
    # Optimal pairs need one step; of independent ones it is the mean of all data.
    np.testing.assert_allclose(one, straight if paired else M0, atol=1e-6 if paired else 1e-2)


@pytest.mark.parametrize("paired", [False, True])
def test_a_likelihood_takes_the_other_data_for_its_prior(paired, x64):
    denoiser = flow_of(monge() @ S1 if paired else np.zeros((2, 2)))
    x = jnp.asarray([0.4, 0.1])

    def normal(mean, covariance):
        return lambda x: jax.scipy.stats.multivariate_normal.logpdf(x, mean, covariance)

    found = eqd.log_likelihood(denoiser, x, flow=FLOW, trace=eqd.ExactTrace(), prior=normal(M1, S1))
    expected = normal(*denoiser.moments(denoiser.process.t0)[1:])(x)
    np.testing.assert_allclose(found.log_prob, expected, atol=1e-6)


CROSS = 0.6 * monge() @ S1
SAMPLERS = {
    "ddim": eqd.DDIM(200, eta=1.0),
    "sde_dpm": eqd.SDEDPMSolverPP(40),
    "reverse_sde": eqd.ReverseSDE(diffrax.ShARK(), num_steps=50),
}


samplers = pytest.mark.parametrize(
    "sampler", ["ddim", "sde_dpm", pytest.param("reverse_sde", marks=pytest.mark.slow)]
)


def assert_law(x, mean, covariance):
    n = len(x)
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(np.mean(x, 0), mean, atol=5 * scale.max() / np.sqrt(n))
    error = np.abs(np.cov(x.T) - covariance) / np.outer(scale, scale)
    assert np.max(error) < 5 * np.sqrt(2 / n) + 0.01


@samplers
@pytest.mark.parametrize("name", ["edm", "vp"])
def test_a_bridge_from_one_end_draws_the_other_given_it(sampler, name, x64):
    process = PROCESSES[name]
    denoiser = GivenEnd(levels_of(process), CROSS, process)
    x1 = jnp.asarray([-0.3, 1.0])
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(jax.vmap(lambda key: SAMPLERS[sampler](denoiser, x1, x1, key=key)))
    assert_law(np.asarray(draw(keys)), *given_end(CROSS, np.asarray(x1)))


@samplers
@pytest.mark.parametrize("cross", [CROSS, np.zeros((2, 2))], ids=["paired", "independent"])
def test_a_bridge_of_a_network_that_sees_the_state_alone_has_the_right_law(sampler, cross, x64):
    process = PROCESSES["edm"]
    denoiser = Pairs(levels_of(process), cross, process)
    x1 = np.random.default_rng(0).multivariate_normal(M1, S1, 4000)
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(jax.vmap(lambda x, key: SAMPLERS[sampler](denoiser, x, key=key)))
    assert_law(np.asarray(draw(jnp.asarray(x1), keys)), M0, S0)


def levels_of(process):
    def levels(t):
        ratio = jnp.exp(-process.log_snr_fall(t, process.t1))
        alpha = process.alpha(t)
        shift = ratio * alpha / process.alpha(process.t1)
        return alpha * (1 - ratio), shift, process.sigma(t) * jnp.sqrt(1 - ratio)

    return levels


@pytest.mark.parametrize(
    ("process", "x0", "x1", "text"),
    [
        (eqd.EDMSDE(), np.zeros(2), np.zeros(3), "must agree"),
        (eqd.RectifiedFlow(t1=1.0), np.zeros(2), np.zeros(2), "no signal"),
    ],
)
def test_ends_that_do_not_fit_are_refused(process, x0, x1, text):
    with pytest.raises(ValueError, match=text):
        eqd.bridge_noise(process, 0.5, jnp.asarray(x0), jnp.asarray(x1), key=jax.random.key(0))
