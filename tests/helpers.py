"""Golden vectors: numbers that the official implementations printed (see `golden/README.md`).

The tolerance of a comparison is a property of the stored number, not of the test: five times the
distance between the official float32 result and the same official calls in float64, plus 1e-6, both
relative to the array's largest magnitude. A number that the official code computed in float64 is
held to 1e-10 where our side is float64 too.
"""

import functools as ft
import json
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


GOLDEN = pathlib.Path(__file__).parent / "golden"


@ft.cache
def load_golden(name: str) -> dict[str, np.ndarray]:
    """`load_golden("public_idiff_unet_c")["io/out"]`; the arrays are shared, so only read them."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


@ft.cache
def load_golden_config(name: str) -> dict:
    """The official constructor's module, class and keyword arguments, for golden networks."""
    return json.loads((GOLDEN / f"{name}.config.json").read_text())


@ft.cache
def _noise_floor() -> dict[str, dict[str, float]]:
    return json.loads((GOLDEN / "noise_floor.json").read_text())


def golden_tolerance(name: str, key: str, dtype=np.float32) -> float:
    """The allowed error relative to the array's largest magnitude; keys not listed have floor 0."""
    if load_golden(name)[key].dtype == np.float64 and np.dtype(dtype) == np.float64:
        return 1e-10
    return 5 * _noise_floor()[name].get(key, 0.0) + 1e-6


def assert_golden(actual, name: str, key: str, *, expected=None) -> None:
    """Compares with the stored array, with the tolerance of that key.

    `expected` replaces the stored array where a test needs a part of it or another layout; it keeps
    the tolerance.
    """
    actual = np.asarray(actual)
    expected = load_golden(name)[key] if expected is None else np.asarray(expected)
    assert actual.shape == expected.shape, f"{name}/{key}: {actual.shape} != {expected.shape}"
    tolerance = golden_tolerance(name, key, actual.dtype)
    error = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    assert np.array_equal(np.isnan(actual), np.isnan(expected)), f"{name}/{key}: NaNs differ"
    worst = np.nanmax(error, initial=0.0)
    scale = np.nanmax(np.abs(expected.astype(np.float64)), initial=0.0)
    assert worst <= tolerance * scale, (
        f"{name}/{key}: largest error {worst:.3g} exceeds {tolerance:.3g} × {scale:.3g}"
    )


def randomise(net, seed: int = 0, scale: float = 0.05):
    """Adds noise to every array, so that maps that start at zero have something to say."""
    rng = np.random.default_rng(seed)

    def noisy(leaf):
        return leaf + jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(noisy, net)


def random_network(build, seed: int = 0):
    """`build(key)` with random numbers in every array, without compiling its initialisation.

    No map is zero, matrices keep the scale of their input, and vectors are around one half.
    """
    rng = np.random.default_rng(seed)

    def fill(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        noise = rng.standard_normal(leaf.shape)
        if leaf.ndim == 1:
            return jnp.asarray(0.5 + 0.1 * noise, leaf.dtype)
        return jnp.asarray(noise / np.sqrt(np.prod(leaf.shape[:-1])), leaf.dtype)

    return jax.tree.map(fill, eqx.filter_eval_shape(build, jax.random.key(0)))
