"""Recorded noise in place of a sampler's own, and golden tests in both precisions."""

import contextlib

import jax
import jax.numpy as jnp


PRECISIONS = ("float64", "float32") if jax.config.jax_enable_x64 else ("float32",)


@contextlib.contextmanager
def in_precision(name):
    """Everything in float32, as users run it, or in float64."""
    with jax.enable_x64(name == "float64"):
        yield


class Tape:
    """Makes keys places on a tape of recorded noise: a key's children share its stretch evenly."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(jax.random, "split", self._split)
        monkeypatch.setattr(jax.random, "normal", self._normal)

    def play(self, noise):
        """The key that stands for the whole tape, one draw per row."""
        self.noise = noise
        return self._key(jnp.uint32(0), jnp.uint32(len(noise)))

    def _key(self, start, length):
        return jax.random.wrap_key_data(jnp.stack([start, length], axis=-1), impl="threefry2x32")

    def _split(self, key, num=2):
        start, length = jax.random.key_data(key)
        each = jnp.broadcast_to(length // num, (num,))
        return self._key(start + each * jnp.arange(num, dtype=jnp.uint32), each)

    def _normal(self, key, shape=(), dtype=float):
        # Of the draws in the official orthonormal system, colourisation uses the grey axis alone.
        draw = self.noise[jax.random.key_data(key)[0]][: shape[0]]
        assert draw.shape == shape
        return draw.astype(dtype)
