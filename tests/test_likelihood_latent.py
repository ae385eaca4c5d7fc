"""Latents: round trips by the flow, and the circle between two of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


VP = eqd.VPSDE()
MIXTURE = eqd.GaussianMixtureDenoiser(
    VP,
    np.array([0.4, 0.6]),
    np.array([[-1.0, 0.3], [0.8, -0.6]]),
    np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.5]]]),
)
POINTS = np.array([[0.4, -1.5], [1.0, 1.0], [-0.2, 0.3]])


@pytest.fixture(scope="module")
def round_trip():
    @quick_jit
    def run(x, tolerance):
        flow = eqd.ProbabilityFlow(rtol=tolerance, atol=tolerance)

        def one(x):
            latent = flow.encode(MIXTURE, x)
            return latent, flow.decode(MIXTURE, latent)

        return jax.vmap(one)(x)

    return lambda tolerance, x=POINTS: run(jnp.asarray(x), jnp.asarray(tolerance, x.dtype))


def test_decoding_inverts_encoding(round_trip, x64):
    """To 1e-7 at tolerance 1e-9, with an error that falls as the tolerance does."""
    tolerances = 10.0 ** np.arange(-9, -3)
    errors = [np.abs(round_trip(tolerance)[1] - POINTS).max() for tolerance in tolerances]
    assert errors[0] < 1e-7, errors
    power = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert 0.8 < power < 1.3, (power, errors)


def test_round_trip_in_float32(round_trip):
    latent, back = round_trip(1e-5, POINTS.astype(np.float32))
    assert latent.dtype == back.dtype == jnp.float32
    # The middle point lies between the components, where the flow magnifies a thousandfold.
    np.testing.assert_allclose(back, POINTS, atol=1e-2)


def test_encoding_is_the_flow_of_a_gaussian(x64):
    """x(t1) = α1 m + c1/c0 (x − α0 m), at any temperature on the way back."""
    mean, std = 0.4, 0.6
    denoiser, flow = eqd.GaussianDenoiser(VP, mean, std), eqd.ProbabilityFlow(rtol=1e-9, atol=1e-9)

    def moments(t):
        return VP.alpha(t) * mean, jnp.sqrt(VP.alpha(t) ** 2 * std**2 + VP.sigma(t) ** 2)

    (m0, c0), (m1, c1) = moments(1e-5), moments(1.0)
    x = jnp.asarray(POINTS[0])
    latent = quick_jit(lambda x: flow.encode(denoiser, x))(x)
    np.testing.assert_allclose(latent, m1 + c1 / c0 * (x - m0), atol=1e-7)
    decode = quick_jit(lambda z: flow.decode(denoiser, z))
    np.testing.assert_allclose(decode(0.7 * latent), m0 + c0 / c1 * (0.7 * latent - m1), atol=1e-7)


@pytest.mark.slow
def test_a_failed_solve_says_so():
    flow = eqd.ProbabilityFlow(rtol=1e-6, atol=1e-6, max_steps=3)
    for name in ("encode", "decode"):
        run = eqx.filter_jit(lambda x, name=name: getattr(flow, name)(MIXTURE, x))
        with pytest.raises(
            eqx.EquinoxRuntimeError, match=rf"ProbabilityFlow\.{name} took max_steps=3 steps"
        ):
            run(jnp.asarray(POINTS[0]))


def test_slerp_walks_a_circle_evenly(getkey, x64):
    """Ends are ends, the length stays, and equal weights are equal angles."""
    x, y = jax.random.normal(getkey(), (2, 3, 4))
    y = y * jnp.linalg.norm(x) / jnp.linalg.norm(y)
    weights = jnp.linspace(0, 1, 6)
    path = jax.vmap(lambda w: eqd.slerp(x, y, w))(weights)
    np.testing.assert_allclose(path[0], x, rtol=1e-12)
    np.testing.assert_allclose(path[-1], y, rtol=1e-12)
    flat = np.asarray(path).reshape(6, -1)
    length = np.linalg.norm(flat, axis=1)
    np.testing.assert_allclose(length, length[0], rtol=1e-12)
    angles = np.arccos(np.sum(flat[1:] * flat[:-1], axis=1) / length[0] ** 2)
    total = np.arccos(flat[0] @ flat[-1] / length[0] ** 2)
    np.testing.assert_allclose(angles, total / 5, rtol=1e-9)
    np.testing.assert_allclose(eqd.slerp(x, y, 0.3), eqd.slerp(y, x, 0.7), rtol=1e-10)


def test_slerp_of_orthogonal_latents_is_cosine_and_sine():
    x, y = jnp.array([2.0, 0.0]), jnp.array([0.0, 2.0])
    w = 0.25
    expected = [2 * np.cos(np.pi / 8), 2 * np.sin(np.pi / 8)]
    np.testing.assert_allclose(eqd.slerp(x, y, w), expected, rtol=1e-6)


def test_slerp_keeps_the_prior():
    """Independent standard normals stay so in many dimensions: a straight line would lose √2 half
    way.
    """
    x, y = jax.random.normal(jax.random.key(0), (2, 20000))
    middle = eqd.slerp(x, y, 0.5)
    assert abs(float(jnp.std(middle)) - 1) < 0.02
    assert float(jnp.std(0.5 * (x + y))) < 0.75


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-4])
def test_slerp_of_near_parallel_latents_is_linear_and_smooth(gap):
    dtype = jnp.result_type(float)
    x = jnp.array([1.0, 2.0, -0.5], dtype)
    y = x + gap * jnp.array([1.0, 0.0, 0.0], dtype)
    np.testing.assert_allclose(eqd.slerp(x, y, 0.3), 0.7 * x + 0.3 * y, rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(eqd.slerp(x, y, 0.3)))(x)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(gradient, 0.7, atol=1e-2)


def test_slerp_needs_directions():
    x = jnp.array([1.0, -2.0])
    slerp = eqx.filter_jit(eqd.slerp)
    for y, says in [(-x, "opposite"), (jnp.zeros(2), "zero"), (x * jnp.nan, "not finite")]:
        with pytest.raises(eqx.EquinoxRuntimeError, match=says):
            slerp(x, y, 0.5)
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        eqd.slerp(x, jnp.zeros(3), 0.5)
    # Huge and tiny latents have directions too.
    for scale in (1e30, 1e-30):
        found = eqd.slerp(jnp.float32(scale) * x.astype(jnp.float32), x.astype(jnp.float32), 0.0)
        np.testing.assert_allclose(found, scale * x, rtol=1e-5)


def test_encoding_refuses_what_a_solve_cannot_keep(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    flow = eqd.ProbabilityFlow()
    for name in ("encode", "decode"):
        for data, says in [
            (jnp.zeros(2, jnp.int32), "works on floating-point data"),
            (jnp.zeros(2, jnp.float16), "the example is float16"),
        ]:
            with pytest.raises(ValueError, match=rf"ProbabilityFlow\.{name}:? {says}"):
                getattr(flow, name)(MIXTURE, data)
