"""The CPU's filter gradient is a rewriting: every derivative must stay that of the convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqdiff.nn._conv import _convolve, _convolve_rowwise_gradient, Conv, convolve


@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 1), (1, 0)), ((2, 0), (1, 1))])
def test_every_derivative(getkey, x64, padding):
    x = jax.random.normal(getkey(), (2, 6, 8, 3), jnp.float64)
    w, v = jax.random.normal(getkey(), (2, 3, 3, 3, 5), jnp.float64)

    def fast(x, w):
        y = jax.vmap(lambda x: _convolve_rowwise_gradient(x, w, padding))(x)
        return jnp.sum(jnp.sin(y))

    def plain(x, w):
        return jnp.sum(jnp.sin(jax.vmap(lambda x: _convolve(x, w, (1, 1), padding))(x)))

    def derivatives(f):
        grad = jax.grad(f, (0, 1))
        return (
            f(x, w),
            grad(x, w),
            jax.jvp(f, (x, w), (x, v)),
            jax.jvp(lambda x: f(x, w), (x,), (x,)),
            jax.jvp(lambda w: grad(x, w), (w,), (v,)),
            jax.grad(lambda x, w: jnp.sum(grad(x, w)[1] ** 2), (0, 1))(x, w),
        )

    for a, b in zip(
        jax.tree.leaves(jax.jit(derivatives, static_argnums=0)(fast)),
        jax.tree.leaves(jax.jit(derivatives, static_argnums=0)(plain)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def _count(function, *args):
    return str(jax.make_jaxpr(function)(*args)).count("conv_general_dilated[")


def test_a_derivative_in_x_alone_costs_two_convolutions(getkey):
    x, w = jnp.ones((16, 16, 2), jnp.float32), jnp.ones((3, 3, 2, 2), jnp.float32)
    f = lambda x: convolve(x, w, (1, 1), ((1, 1), (1, 1)))  # noqa: E731
    assert _count(lambda x: jax.jvp(f, (x,), (x,)), x) == 2
    assert _count(lambda x: jax.vjp(f, x)[1](x), x) == 2


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [6, 16])
def test_convolution_is_its_definition(getkey, size, stride):
    conv = Conv(2, 3, stride=stride, key=getkey())
    x = np.asarray(jax.random.normal(getkey(), (size, size, 2), jnp.float32))
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    weight, bias = np.asarray(conv.weight), np.asarray(conv.bias)
    expected = np.stack(
        [
            [
                np.einsum("hwi,hwio->o", padded[i : i + 3, j : j + 3], weight) + bias
                for j in range(0, size, stride)
            ]
            for i in range(0, size, stride)
        ]
    )
    np.testing.assert_allclose(conv(jnp.asarray(x)), expected, atol=1e-5)
