"""Random numbers that belong to a position of a stream.

A counter-based generator (SplitMix64: Steele, Lea & Flood 2014) gives each position its numbers
whatever the batch size, the process or the place where one resumes, and whatever NumPy's version.
"""

import numpy as np
from jaxtyping import Bool, Float64, Int, UInt64


def _bits(
    key: UInt64[np.ndarray, "..."], positions: Int[np.ndarray, " batch"]
) -> UInt64[np.ndarray, "..."]:
    z = key + positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def coin(seed: int, positions: Int[np.ndarray, " batch"]) -> Bool[np.ndarray, " batch"]:
    """A fair coin per position: the top bit."""
    key = np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)
    return _bits(key, positions) >> np.uint64(63) == 1


def uniforms(
    seed: int, positions: Int[np.ndarray, " batch"], num: int
) -> Float64[np.ndarray, "num batch"]:
    """`num` uniform numbers of (0, 1) per position, symmetric about a half."""
    keys = np.random.SeedSequence([seed, 2]).generate_state(num, np.uint64)
    top = _bits(keys[:, None], positions) >> np.uint64(12)
    return (top.astype(np.float64) + 0.5) * 2.0**-52
