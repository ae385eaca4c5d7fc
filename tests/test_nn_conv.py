"""Convolutions against their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqdiff.nn._conv import Conv


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
                np.einsum("hwi,ohwi->o", padded[i : i + 3, j : j + 3], weight) + bias
                for j in range(0, size, stride)
            ]
            for i in range(0, size, stride)
        ]
    )
    np.testing.assert_allclose(conv(jnp.asarray(x)), expected, atol=1e-5)
