"""Strictness for every test: float64, errors on promotion, two CPU devices to exercise sharding.

`EQDIFF_TEST_X64=0` runs the same suite the way users run it, in float32; tests that need float64
for their truth skip themselves there through the `x64` fixture.

`EQDIFF_TEST_SEED=7` draws other random numbers: a sound bound on what is random holds for (almost)
every seed.

Compiled programs are kept in `.pytest_cache` and shared by the processes of a run: a second run
takes less than half the time. `pytest --cache-clear` forgets them.
"""

import gc
import os


# Before JAX starts: tests never need an accelerator, and two devices make every sharded path real.
os.environ["JAX_PLATFORMS"] = "cpu"

import jax


X64 = os.environ.get("EQDIFF_TEST_X64", "1") == "1"
SEED = int(os.environ.get("EQDIFF_TEST_SEED", "0"))

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_x64", X64)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

import pytest


def pytest_configure(config):
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return
    # In the environment too, for what tests start as a process of its own.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs",
        float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]),
    )


class _GetKey:
    """`getkey()` gives a new key at each call; the seed is fixed so that a failure repeats."""

    def __init__(self, seed: int):
        self._key = jax.random.key(seed)

    def __call__(self):
        self._key, key = jax.random.split(self._key)
        return key


@pytest.fixture
def getkey():
    return _GetKey(SEED)


@pytest.fixture
def x64():
    """For tests whose truth needs float64: skipped in the float32 leg of the suite."""
    if not X64:
        pytest.skip("its truth needs float64 (EQDIFF_TEST_X64=0)")


@pytest.fixture(scope="module", autouse=True)
def few_maps():
    """Every compiled program takes a dozen of the 65,530 memory maps that Linux gives a process;
    without one more, XLA ends in a segmentation fault. So they are given back between files.
    """
    yield
    try:
        with open("/proc/self/maps", "rb") as maps:
            number = sum(1 for _ in maps)
    except OSError:  # Not Linux.
        return
    if number > 30_000:
        jax.clear_caches()
        gc.collect()
