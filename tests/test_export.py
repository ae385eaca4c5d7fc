"""Samplers as bytes: saved by `jax.export`, read again, and the same numbers."""

import os
import subprocess
import sys

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import eqdiff as eqd


KEY = jax.random.key(0)
SCHEDULE, VP = eqd.cosine_schedule(20), eqd.VPSDE()
X1 = jax.random.normal(KEY, (4, 2))
LABELS = jnp.asarray([0, 2, 1, 2], jnp.int32)
CHAINS = {
    "DDIM": (eqd.DDIM(3), SCHEDULE),
    "DDIM, eta": (eqd.DDIM(3, eta=1.0), SCHEDULE),
    "Ancestral": (eqd.Ancestral(4), SCHEDULE),
    "StochasticHeun": (eqd.StochasticHeun(3, churn=10.0), VP),
    "PredictorCorrector": (eqd.PredictorCorrector(3), VP),
    "SDEDPMSolverPP": (eqd.SDEDPMSolverPP(3), VP),
}
SOLVES = {
    "DPMSolverPP": (eqd.DPMSolverPP(4), VP),
    "UniPC": (eqd.UniPC(4, order=3), VP),
    "ProbabilityFlow": (eqd.ProbabilityFlow(diffrax.Heun(), num_steps=3), VP),
    "ReverseSDE": (eqd.ReverseSDE(diffrax.Euler(), num_steps=3), VP),
}
MLP = eqd.nn.MLP(2, 2, width=8, depth=1, num_classes=3, key=KEY)


def drawing(sampler, process):
    """A batch of samples from arrays that any program can be given."""
    denoiser = eqd.Denoiser(MLP, process)

    @jax.jit
    def draw(x1, labels, key_data):
        keys = jax.random.wrap_key_data(key_data)
        one = eqd.unchecked(lambda x, y, key: sampler(denoiser, x, y, key=key))
        return jax.vmap(one)(x1, labels, keys)

    return draw, (X1, LABELS, jax.random.key_data(jax.random.split(KEY, len(X1))))


def saved_and_read(draw, args):
    return export.deserialize(export.export(draw)(*args).serialize()).call


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_exported(name):
    draw, args = drawing(*CHAINS[name])
    loaded = saved_and_read(draw, args)
    expected = draw(*args)
    assert jnp.all(jnp.isfinite(expected)) and jnp.std(expected) > 0.1
    np.testing.assert_allclose(loaded(*args), expected, rtol=1e-5, atol=1e-6)
    # A class that does not exist is no other class.
    wrong = loaded(X1, LABELS.at[1].set(3), args[2])
    np.testing.assert_array_equal(jnp.isnan(wrong[:, 0]), [False, True, False, False])


@pytest.mark.parametrize("name", SOLVES)
def test_a_solve_that_checks_itself_is_not(name):
    """JAX says so; if that changes, so does the documentation."""
    draw, args = drawing(*SOLVES[name])
    with pytest.raises(NotImplementedError, match="callback"):
        saved_and_read(draw, args)


@pytest.mark.slow
def test_a_solve_is_exported_where_errors_are_nan():
    """In a process of its own: Equinox reads its environment once."""
    code = """
from test_export import *
for solve in SOLVES.values():
    draw, args = drawing(*solve)
    found, expected = saved_and_read(draw, args)(*args), draw(*args)
    assert jnp.all(jnp.isfinite(expected)) and jnp.std(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
print("exported", len(SOLVES))
"""
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    environment = os.environ | {"EQX_ON_ERROR": "nan", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"exported {len(SOLVES)}\n", done.stderr


def test_a_program_of_any_batch_size():
    draw, args = drawing(*CHAINS["DDIM"])
    (n,) = export.symbolic_shape("n")
    loaded = saved_and_read(draw, [jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype) for a in args])
    for count in (1, 4):
        given = [a[:count] for a in args]
        np.testing.assert_allclose(loaded(*given), draw(*given), rtol=1e-5, atol=1e-6)
