"""Measurements against SciPy's densities, Jacobians and moments."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from scipy import stats
from toys import quick_jit

import eqdiff as eqd


X = np.array([[0.7, -1.3, 0.4], [0.2, 0.9, 1.1]])
FACTOR = np.random.default_rng(0).standard_normal((4, 5))


def curved(x):
    """Not linear, and of another shape than x: (2, 3) to (2, 2)."""
    return jnp.exp(x[:, :2]) * x[:, 1:]


def stencil(u):
    return 0.5 * u + 0.3 * jnp.roll(u, 1, 0) - 0.1 * u[:, ::-1]


def dense(fn, shape):
    return np.asarray(jax.jacfwd(fn)(jnp.zeros(shape))).reshape(np.prod(shape), -1)


COVARIANCES = {
    "number": (0.3, 0.09 * np.eye(4)),
    "each": (np.array([[0.1, 0.2], [0.3, 0.4]]), np.diag([0.01, 0.04, 0.09, 0.16])),
    "factor": (eqd.CorrelatedNoise(FACTOR), FACTOR @ FACTOR.T),
    "function": (
        eqd.CorrelatedNoise(stencil),
        dense(stencil, (2, 2)) @ dense(stencil, (2, 2)).T,
    ),
}


@pytest.mark.parametrize("case", COVARIANCES)
def test_gaussian_noise(case, getkey, x64):
    """The density by SciPy, the products of the linearisation by matrices, and moments."""
    noise, covariance = COVARIANCES[case]
    y = np.array([[0.5, 1.0], [-2.0, 0.1]])
    measurement = eqd.Measurement(y, curved, noise)
    x = jnp.asarray(X)
    mean = np.asarray(curved(x)).reshape(-1)
    expected = stats.multivariate_normal(mean, covariance).logpdf(y.reshape(-1))
    np.testing.assert_allclose(quick_jit(lambda x: measurement.log_prob(x))(x), expected)

    jacobian = np.asarray(jax.jacrev(curved)(x)).reshape(4, 6)
    u, v = jax.random.normal(getkey(), (2, 2)), jax.random.normal(getkey(), (2, 3))

    @quick_jit
    def products(x):
        local = measurement.linearised(x)
        return local.residual, local.forward(v), local.transpose(u), local.noise(u)

    residual, forward, transpose, product = (np.asarray(a) for a in products(x))
    np.testing.assert_allclose(residual, y - mean.reshape(2, 2), atol=1e-14)
    np.testing.assert_allclose(forward.reshape(-1), jacobian @ np.ravel(v), rtol=1e-10)
    np.testing.assert_allclose(transpose.reshape(-1), jacobian.T @ np.ravel(u), rtol=1e-10)
    np.testing.assert_allclose(product.reshape(-1), covariance @ np.ravel(u), rtol=1e-10)

    draws = jax.vmap(lambda key: measurement.sample(x, key=key))(jax.random.split(getkey(), 20000))
    draws = np.asarray(draws).reshape(-1, 4)
    size = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(draws.mean(0) - mean) < 5 * size / np.sqrt(20000))
    error = np.abs(np.cov(draws.T) - covariance) / np.outer(size, size)
    assert np.max(error) < 5 * np.sqrt(2 / 20000)


@pytest.mark.parametrize("rate", [7.0, np.array([2.0, 50.0, 1e4])])
def test_poisson_noise(rate, getkey, x64):
    x = jnp.asarray([0.3, 1.2, 4.0])

    def squared(x):
        return x**2

    expected = rate * np.asarray(x) ** 2
    counts = np.array([0.0, 3.0, 11.0])
    measurement = eqd.Measurement(counts / rate, squared, eqd.PoissonNoise(rate))
    truth = stats.poisson(expected).logpmf(counts).sum()
    np.testing.assert_allclose(measurement.log_prob(x), truth, rtol=1e-9)

    draws = jax.vmap(lambda key: measurement.sample(x, key=key))(jax.random.split(getkey(), 20000))
    draws = np.asarray(draws) * rate
    np.testing.assert_allclose(draws, np.round(draws), atol=1e-9)
    assert np.all(np.abs(draws.mean(0) - expected) < 5 * np.sqrt(expected / 20000))
    # Below one expected count, that of one count.
    variance = np.asarray(measurement.linearised(x).noise(jnp.ones(3))) * rate**2
    np.testing.assert_allclose(variance, np.maximum(expected, 1))
    error = np.abs(draws.var(0) / expected - 1)
    assert np.all(error < 5 * np.sqrt((2 + 1 / expected) / 20000))


def test_impossible_counts_have_finite_gradients():
    measurement = eqd.Measurement(np.array([0.0, 2.0]), lambda x: x, eqd.PoissonNoise(1.0))
    for x, possible in [([0.0, 1.0], True), ([1.0, 0.0], False), ([-1.0, 1.0], False)]:
        value, gradient = jax.value_and_grad(measurement.log_prob)(jnp.asarray(x))
        assert bool(jnp.isfinite(value)) is possible and bool(jnp.all(jnp.isfinite(gradient)))


def test_float32_and_a_batch(getkey):
    """In the example's precision whatever y's, and built inside vmap."""
    x = jnp.asarray(X, jnp.float32)
    ys = jax.random.normal(getkey(), (3, 2, 2), jnp.float32)
    for case in ("each", "factor", "function"):
        noise, _ = COVARIANCES[case]
        one = eqd.Measurement(np.asarray(ys[1], np.float64), curved, noise)
        batch = jax.vmap(lambda y: eqd.Measurement(y, curved, noise).log_prob(x))  # noqa: B023
        many = quick_jit(batch)(ys)
        assert many.dtype == jnp.float32 and one.sample(x, key=getkey()).dtype == jnp.float32
        np.testing.assert_allclose(many[1], one.log_prob(x), rtol=1e-4)


class Rotation(eqx.Module):
    angle: jax.Array

    def __call__(self, u):
        c, s = jnp.cos(self.angle), jnp.sin(self.angle)
        return jnp.stack([c * u[0] - s * u[1], 0.5 * (s * u[0] + c * u[1])])


def test_a_traced_factor(x64):
    """A measurement is a pytree: derivatives with respect to what its parts hold."""
    y, x = jnp.asarray([0.3, -0.4]), jnp.zeros(2)

    @jax.grad
    def slope(angle):
        noise = eqd.CorrelatedNoise(Rotation(angle))
        return eqd.Measurement(y, lambda x: x, noise).log_prob(x)

    def log_prob(angle):
        c, s = np.cos(angle), np.sin(angle)
        factor = np.array([[c, -s], [0.5 * s, 0.5 * c]])
        return stats.multivariate_normal(np.zeros(2), factor @ factor.T).logpdf(y)

    difference = (log_prob(0.3 + 1e-5) - log_prob(0.3 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope(0.3), difference, rtol=1e-6, atol=1e-8)


Y = np.zeros(2)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: eqd.Measurement(np.array([1, 2]), abs, 0.1), "y is int"),
        (lambda: eqd.Measurement(np.array([np.nan, 0]), abs, 0.1), "Leave out"),
        (lambda: eqd.Measurement(Y, np.eye(2), 0.1), "lambda x: A @ x"),
        (lambda: eqd.Measurement(Y, abs, lambda u: u), "noise is a function"),
        (lambda: eqd.Measurement(Y, abs, "0.1"), "noise is a str"),
        (lambda: eqd.Measurement(Y, abs, -0.1), "at least 0"),
        (lambda: eqd.Measurement(Y, abs, np.inf), "finite"),
        (lambda: eqd.Measurement(Y, abs, np.ones(3)), r"std has shape \(3,\)"),
        (lambda: eqd.CorrelatedNoise(np.ones(2)), "expected a matrix"),
        (lambda: eqd.CorrelatedNoise(np.ones((2, 1))), "k at least m"),
        (lambda: eqd.CorrelatedNoise(np.full((2, 2), np.nan)), "Cholesky"),
        (lambda: eqd.Measurement(Y, abs, eqd.CorrelatedNoise(np.eye(3))), "each of the 2"),
        (lambda: eqd.Measurement(Y, abs, eqd.CorrelatedNoise(lambda u: u[:1])), "shaped like y"),
        (lambda: eqd.PoissonNoise(0.0), "expected positive"),
        (lambda: eqd.Measurement(Y, abs, eqd.PoissonNoise(np.ones(3))), "rate has shape"),
        (lambda: eqd.Measurement(Y + 0.3, abs, eqd.PoissonNoise(2.0)), "counts / rate"),
        (lambda: eqd.Measurement(Y - 1.0, abs, eqd.PoissonNoise(2.0)), "at least 0"),
    ],
)
def test_bad_arguments(make, match, monkeypatch):
    # Without the type checks of the test suite, which would answer before eqdiff does.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=match):
        # Inside jit too: known numbers are checked while the program is traced.
        jax.jit(lambda _: make() and 0)(0)


@pytest.mark.parametrize(
    ("operator", "noise", "x", "match"),
    [
        (lambda x: x[:1], 0.1, np.ones(2), r"returns shape \(1,\), but y has \(2,\)"),
        (lambda x: (x, x), 0.1, np.ones(2), "one floating-point array"),
        (abs, 0.0, np.ones(2), "without noise"),
        (abs, np.array([0.1, 0.0]), np.ones(2), "without noise"),
        (abs, eqd.CorrelatedNoise(np.ones((2, 2))), np.ones(2), "singular"),
    ],
)
def test_bad_densities(operator, noise, x, match):
    with pytest.raises(ValueError, match=match):
        jax.jit(lambda x: eqd.Measurement(Y, operator, noise).log_prob(x))(jnp.asarray(x))
