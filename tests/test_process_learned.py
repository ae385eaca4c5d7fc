"""A learned noise schedule: its equations, gradients by finite differences, files, refusals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.special
from toys import quick_jit

import eqdiff as eqd


RNG = np.random.default_rng(0)
UNITS = np.stack([RNG.normal(-1, 1, 5), RNG.normal(2, 0.7, 5), RNG.uniform(0, 1, 5)])


def learned(high=9.0, low=-6.0, units=UNITS):
    return eqd.LearnedVPSDE(jnp.asarray(high), jnp.asarray(low), units=jnp.asarray(units))


def test_the_equations(x64):
    """(1) and (2) in NumPy."""
    t = np.linspace(0, 1, 41)

    def curve(t):
        a, b, c = UNITS[..., None]
        return t + np.sum(np.exp(a) * scipy.special.expit(np.exp(b) * (t - c)), axis=0)

    log_snr = 9 - 15 * (curve(t) - curve(0 * t)) / (curve(0 * t + 1) - curve(0 * t))
    process = learned()
    for name, truth in {
        "log_snr": log_snr,
        "alpha": np.sqrt(scipy.special.expit(log_snr)),
        "sigma": np.sqrt(scipy.special.expit(-log_snr)),
        "c_noise": 25 * (20 - log_snr),
    }.items():
        actual = quick_jit(jax.vmap(getattr(process, name)))(t)
        np.testing.assert_allclose(actual, truth, rtol=1e-12, atol=1e-12, err_msg=name)
    assert np.max(np.diff(log_snr)) < 2 * np.min(np.diff(log_snr)) / 10, "it is not a line"


def test_new_units_make_almost_a_line(x64):
    for n in (1, 8, 64):
        process = eqd.LearnedVPSDE(units=n)
        t = jnp.linspace(0, 1, 101)
        straight = 13.3 - 18.3 * t
        np.testing.assert_allclose(jax.vmap(process.log_snr)(t), straight, atol=0.15)


USES = {
    "alpha": lambda p: p.alpha(0.3),
    "sigma_dot": lambda p: p.sigma_dot(0.6),
    "alpha_dot": lambda p: p.alpha_dot(0.6),
    "diffusion": lambda p: p.diffusion(0.2),
    "time": lambda p: p.time(jnp.asarray(0.5)),
    "log_snr": lambda p: p.log_snr(0.9),
    "log_snr_fall": lambda p: p.log_snr_fall(0.59, 0.6),
    "c_noise": lambda p: p.c_noise(0.4),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_gradients_by_finite_differences(use, x64):
    """In both ends and in every unit."""
    process, h = learned(), 1e-5
    flat, restore = jax.flatten_util.ravel_pytree(eqx.filter(process, eqx.is_array))
    fixed = eqx.filter(process, eqx.is_array, inverse=True)

    @jax.jit
    def value(flat):
        return use(eqx.combine(restore(flat), fixed))

    steps = h * jnp.eye(flat.size)
    finite = jax.vmap(lambda d: (value(flat + d) - value(flat - d)) / (2 * h))(steps)
    gradient = jax.jit(jax.grad(value))(flat)
    assert flat.size == 17 and np.sum(np.abs(finite) > 1e-6) > 14
    np.testing.assert_allclose(gradient, finite, rtol=1e-6, atol=1e-8)


def test_a_short_step_in_float32_keeps_its_digits(x64):
    process = learned()
    s = np.linspace(0, 0.999, 50, dtype=np.float32)
    t = np.float32(1e-4) + s
    low = jax.vmap(process.log_snr_fall)(jnp.asarray(s), jnp.asarray(t))
    high = jax.vmap(process.log_snr_fall)(*(jnp.asarray(v, jnp.float64) for v in (s, t)))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, high, rtol=2e-6)


@pytest.mark.parametrize(
    "process", [learned(), eqd.LearnedVPSDE(), eqd.LearnedVPSDE(jnp.asarray(8.0), -3.0, units=2)]
)
def test_it_comes_back_from_a_file(process, tmp_path):
    net = eqd.nn.MLP(2, 2, width=4, depth=1, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, process, eqd.PredictVelocity())
    eqd.save_model(tmp_path / "model", denoiser)
    assert eqx.tree_equal(eqd.load_model(tmp_path / "model"), denoiser, typematch=True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(log_snr_max=-5.0), "expected log_snr_max, at the data, above log_snr_min"),
        (dict(log_snr_min=np.inf), "log_snr_min=inf.*finite"),
        (dict(units=0), "units=0.*positive whole number"),
        (dict(units=jnp.ones((2, 4))), r"shape \(2, 4\), expected \(3, n\)"),
        (dict(units=jnp.full((3, 2), jnp.nan)), "not finite"),
    ],
)
def test_refused(options, match, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=match):
        eqd.LearnedVPSDE(**options)
