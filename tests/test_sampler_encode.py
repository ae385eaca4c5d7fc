"""DDIM's encoder against its decoder and the exact flow."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


WEIGHTS = np.array([0.4, 0.6])
MEANS = np.array([[0.5, -1.0], [-1.0, 0.7]])
COVARIANCES = np.array([[[0.5, 0.3], [0.3, 0.4]], [[0.8, -0.3], [-0.3, 0.5]]])
MEAN, STD = np.array([0.5, -1.0]), np.array([0.3, 1.2])
X0 = np.array([0.3, -0.4])


def order(errors: dict[int, float]) -> float:
    return -np.polyfit(np.log(list(errors)), np.log(list(errors.values())), 1)[0]


@pytest.mark.parametrize(
    "process",
    [
        eqd.linear_schedule(4000),
        eqd.cosine_schedule(4000),
        eqd.VPSDE(0.1, 8.0, t0=1e-4),
        eqd.RectifiedFlow(t0=1e-4, t1=0.99),
    ],
    ids=["linear", "cosine", "vp", "flow"],
)
def test_decoding_what_was_encoded_converges_at_first_order(process, x64):
    """What remains is of order σ² at the first time, far below these errors."""
    denoiser = eqd.GaussianMixtureDenoiser(process, WEIGHTS, MEANS, COVARIANCES)
    errors = {}
    for n in (64, 256):
        sampler = eqd.DDIM(n)
        run = quick_jit(lambda x, s=sampler: s(denoiser, s.encode(denoiser, x)))
        errors[n] = float(np.abs(run(jnp.asarray(X0)) - X0).max())
    assert abs(order(errors) - 1) < 0.15
    assert errors[256] < 0.02


@pytest.mark.parametrize(
    "process",
    [eqd.VPSDE(0.1, 5.0, t0=0.05), eqd.VESDE(0.1, 10.0), eqd.linear_schedule(4000)],
    ids=["vp", "ve", "linear"],
)
def test_encoding_converges_to_the_exact_flow(process, x64):
    """x(t₁) = α₁ m + √(C₁/C₀) (x − α₀ m), C = α² S + σ², for Gaussian data."""
    denoiser = eqd.GaussianDenoiser(process, MEAN, STD)
    end, start = eqd.uniform_times(process, 2)
    (a0, c0), (a1, c1) = (
        (float(a), np.sqrt(float(a) ** 2 * STD**2 + float(s) ** 2))
        for a, s in ((process.alpha(t), process.sigma(t)) for t in (start, end))
    )
    exact = a1 * MEAN + c1 / c0 * (X0 - a0 * MEAN)
    errors = {}
    for n in (64, 256):
        z = quick_jit(lambda x, s=eqd.DDIM(n): s.encode(denoiser, x))(jnp.asarray(X0))
        errors[n] = float(np.abs(z - exact).max())
    assert abs(order(errors) - 1) < 0.1


def test_an_encoding_step_by_hand():
    """Three times are two steps, upwards: x_s = α_s x̂0(t, x_t) + σ_s ε̂(t, x_t)."""
    schedule = eqd.cosine_schedule(50)
    denoiser = eqd.GaussianDenoiser(schedule, MEAN, STD)
    x = jnp.asarray(X0, float)
    for t, s in ((5, 20), (20, 45)):
        estimate = denoiser(t, x)
        x = schedule.alpha(s) * estimate.x0 + schedule.sigma(s) * estimate.noise
    z = quick_jit(lambda x: eqd.DDIM(times=np.array([45, 20, 5])).encode(denoiser, x))
    np.testing.assert_allclose(z(jnp.asarray(X0, float)), x, rtol=1e-5)
    # One time is no step.
    one = eqd.DDIM(times=np.array([20])).encode(denoiser, jnp.asarray(X0, float))
    np.testing.assert_array_equal(one, jnp.asarray(X0, float))


def test_encoding_shows_the_network_its_args_and_keeps_float32():
    schedule = eqd.cosine_schedule(20)
    denoiser = eqd.Denoiser(lambda c_noise, x, args, key: args * x, schedule, eqd.PredictData())
    scale = jnp.asarray(0.5, jnp.float32)
    run = quick_jit(lambda x, a: eqd.DDIM(3).encode(denoiser, x, a))
    x0 = jnp.ones(2, jnp.float32)
    z = run(x0, scale)
    assert z.dtype == jnp.float32 and not np.allclose(z, run(x0, 2 * scale))


def test_encoding_refuses_noise():
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(20))
    with pytest.raises(ValueError, match=r"noise cannot be undone; write DDIM\(7\)\.encode"):
        eqd.DDIM(7, eta=0.5).encode(denoiser, jnp.zeros(2))


def test_traced_times_that_are_not_decreasing_are_an_error_at_run_time():
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())

    @eqx.filter_jit
    def run(times):
        return eqd.DDIM(times=times)(denoiser, jnp.ones(2))

    assert np.all(np.isfinite(run(jnp.asarray([1.0, 0.5, 0.1]))))
    with pytest.raises(Exception, match="the times must decrease"):
        jax.block_until_ready(run(jnp.asarray([0.1, 0.5, 1.0])))


@pytest.mark.parametrize("encode", [False, True])
@pytest.mark.parametrize(
    ("process", "times"),
    [
        (eqd.cosine_schedule(20), [20, 5]),
        (eqd.cosine_schedule(20), [19, -1]),
        (eqd.VPSDE(), [1.5, 0.5]),
        (eqd.VPSDE(), [1.0, 0.0]),
    ],
)
def test_ddim_refuses_times_that_the_process_does_not_have(process, times, encode):
    sampler = eqd.DDIM(times=np.array(times))
    denoiser = eqd.GaussianDenoiser(process)
    run = sampler.encode if encode else sampler
    # Also under jit, where the times are still known.
    with pytest.raises(ValueError, match=r"is outside \["):
        jax.jit(lambda x: run(denoiser, x))(jnp.zeros(2))
