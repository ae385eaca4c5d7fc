"""Fourier features of the input."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_phases_tell_the_levels_and_the_distance_to_one(levels, x64):
    """On the grid the first octave is constant and the second alternates; off it, the phase of the
    first is the distance to the next level.
    """
    seen = []

    def net(c_noise, x, args, *, key):
        seen.append(x)
        return x[:1]

    features = eqd.nn.FourierFeatures(net, levels)
    grid = jnp.linspace(-1, 1, levels)
    np.testing.assert_array_equal(features(0.0, grid[None])[0], grid)
    x = np.asarray(seen[0])
    assert x.shape == (5, levels)
    first, second = x[3] + 1j * x[1], x[4] + 1j * x[2]
    np.testing.assert_allclose(first, first[0] * np.ones(levels), atol=1e-9)
    np.testing.assert_allclose(second[1:], -second[:-1], atol=1e-9)
    moved = np.asarray(features.features((grid + 0.1 * 2 / (levels - 1))[None]))
    phase = np.angle((moved[3] + 1j * moved[1]) / first)
    np.testing.assert_allclose(phase, 2 * np.pi * 0.1, rtol=1e-6)


def test_they_are_those_of_the_paper(getkey, x64):
    """sin 2ⁿπx and cos 2ⁿπx with n = 7, 8 where 256 levels are 1/128 apart: 257 of them on [−1, 1],
    in the paper's scaling, which leaves out the last.
    """
    x = jax.random.uniform(getkey(), (3, 4), minval=-1.0)
    found = eqd.nn.FourierFeatures(lambda *a, key: a[1], levels=257).features(x)
    for i, feature in enumerate([np.sin, np.cos]):
        for j, n in enumerate([8, 7]):
            rows = slice(3 * (1 + 2 * i + j), 3 * (2 + 2 * i + j))
            np.testing.assert_allclose(found[rows], feature(2**n * np.pi * x), atol=1e-10)


def test_a_network_with_them_learns_the_finest_digit():
    """Which of two levels a value is nearer to, of 65 levels: one linear layer sees it with the
    features and not without.
    """
    levels = 65
    grid = jnp.linspace(-1, 1, levels)
    target = jnp.asarray((-1.0) ** np.arange(levels))

    def residual(rows):
        design = jnp.concatenate([rows, jnp.ones_like(rows[:1])]).T
        weights = quick_jit(jnp.linalg.lstsq)(design, target)[0]
        return float(jnp.mean((design @ weights - target) ** 2))

    features = eqd.nn.FourierFeatures(lambda *a, key: a[1], levels).features(grid[None])
    assert residual(features) < 1e-3 < 0.9 < residual(grid[None])


def test_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="levels=1.*have 256"):
        eqd.nn.FourierFeatures(lambda: None, 1)
    with pytest.raises(ValueError, match="octaves=0"):
        eqd.nn.FourierFeatures(lambda: None, octaves=0)
    with pytest.raises(ValueError, match="bfloat16"):
        eqd.nn.FourierFeatures(lambda: None)(0.0, jnp.zeros((1, 2), jnp.bfloat16))
