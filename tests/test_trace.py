"""Traces against the Jacobian of `jax.jacfwd`, and their memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqdiff as eqd


def field(matrix):
    """A vector field with a full, unsymmetric, x-dependent Jacobian."""
    return lambda x: jnp.sin(matrix @ x.reshape(-1)).reshape(x.shape) + x**2


def jacobian(f, x):
    return jax.jacfwd(f)(x).reshape(x.size, x.size)


@pytest.mark.parametrize(("shape", "chunk"), [((5,), 1), ((5,), 2), ((1, 2, 3), 64)])
def test_exact_trace_is_jacfwds(shape, chunk, getkey):
    x = jax.random.normal(getkey(), shape)
    f = field(jax.random.normal(getkey(), (x.size, x.size)))
    trace = eqd.ExactTrace(chunk=chunk)
    value, divergence = trace.divergence(f, x, trace.probes(x, key=None))
    np.testing.assert_allclose(value, f(x), rtol=1e-6)
    np.testing.assert_allclose(divergence, [jnp.trace(jacobian(f, x))], rtol=1e-5)


def all_signs(key, shape, dtype):
    """Each of the 2^D sign vectors once: averages over them are expectations, not estimates."""
    signs = np.array(np.meshgrid(*[[-1, 1]] * shape[-1])).reshape(shape[-1], -1).T
    return jnp.asarray(signs, dtype)


def test_hutchinson_is_unbiased_with_the_stated_variance(getkey, x64):
    x = jax.random.normal(getkey(), (4,))
    f = field(jax.random.normal(getkey(), (4, 4)))
    trace = eqd.Hutchinson(16, all_signs)
    value, estimates = trace.divergence(f, x, trace.probes(x, key=getkey()))
    j = jacobian(f, x)
    symmetric = 0.5 * (j + j.T)
    off_diagonal = symmetric - jnp.diag(jnp.diag(symmetric))
    np.testing.assert_allclose(value, f(x), rtol=1e-12)
    np.testing.assert_allclose(estimates.mean(), jnp.trace(j), rtol=1e-10)
    np.testing.assert_allclose(estimates.var(), 2 * jnp.sum(off_diagonal**2), rtol=1e-10)


@pytest.mark.parametrize("distribution", [(), (jax.random.normal,)], ids=["signs", "normal"])
def test_probes_have_unit_covariance(distribution, getkey):
    trace = eqd.Hutchinson(20000, *distribution)
    probes = trace.probes(jnp.zeros((2, 2), jnp.float32), key=getkey())
    assert probes.shape == (20000, 2, 2) and probes.dtype == jnp.float32
    flat = np.asarray(probes).reshape(-1, 4)
    np.testing.assert_allclose(flat.mean(0), 0, atol=5 / 20000**0.5)
    np.testing.assert_allclose(flat.T @ flat / 20000, np.eye(4), atol=5 * (2 / 20000) ** 0.5)


def too_few(key, shape, dtype):
    return jnp.ones(2, dtype)


KEY = jax.random.key(0)
REFUSED = [
    (
        lambda: eqd.Hutchinson().probes(jnp.zeros(2), key=None),
        r"needs a key: write key=jax\.random\.key\(0\)",
    ),
    (lambda: eqd.Hutchinson(0), "num_probes=0.*positive whole number"),
    (lambda: eqd.ExactTrace(chunk=0), "chunk=0.*positive whole number"),
    (
        lambda: eqd.Hutchinson(3, too_few).probes(jnp.zeros(2), key=KEY),
        r"drew float.* of shape \(2,\) when asked for",
    ),
]


@pytest.mark.parametrize(("call", "match"), REFUSED)
def test_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize("trace", [eqd.ExactTrace(), eqd.Hutchinson()])
def test_a_trace_needs_a_square_jacobian_and_forward_mode(trace, getkey):
    x = jnp.ones(3)
    probes = trace.probes(x, key=getkey())
    with pytest.raises(ValueError, match=r"maps shape \(3,\) to shape \(2,\).*not square"):
        trace.divergence(lambda y: y[:2], x, probes)

    @jax.custom_vjp
    def fused(x):
        return x**2

    fused.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))
    with pytest.raises(ValueError, match=r"hand-written gradients \(jax.custom_vjp"):
        trace.divergence(fused, x, probes)
    with pytest.raises(TypeError, match="unrelated"):
        trace.divergence(_broken, x, probes)


def _broken(x):
    raise TypeError("unrelated")


def test_memory_of_the_exact_trace_is_bounded_by_its_chunk():
    """Scratch memory of the program: that of a chunk's products, whatever the dimension."""

    def scratch(size, chunk):
        def divergence(x, matrix):
            return eqd.ExactTrace(chunk=chunk).divergence(lambda y: jnp.tanh(matrix @ y), x, None)

        shapes = (
            jax.ShapeDtypeStruct((size,), jnp.float32),
            jax.ShapeDtypeStruct((size, size), jnp.float32),
        )
        return jax.jit(divergence).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    size = 2048
    vector = 4 * size
    assert scratch(size, 16) < 10 * 16 * vector
    assert scratch(size, size) > size * vector
    assert scratch(2 * size, 16) < 2.5 * scratch(size, 16)


def test_standard_errors():
    estimates = jnp.array([1.0, 2.0, 6.0])
    np.testing.assert_allclose(
        eqd.Hutchinson(3).stderr(estimates), np.std([1, 2, 6], ddof=1) / np.sqrt(3), rtol=1e-6
    )
    assert np.isnan(eqd.Hutchinson().stderr(estimates[:1]))
    assert eqd.ExactTrace().stderr(estimates[:1]) == 0
