"""The example of inference from simulations: its exact posterior is Bayes' rule's, and it runs."""

import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

pytest.importorskip("tyro")

import jax
import jax.numpy as jnp
import numpy as np
import simulator
from scipy.stats import norm


@pytest.mark.parametrize("name", ["gaussian", "bimodal"])
def test_the_exact_posterior_is_bayes_rules(name):
    """log p(θ) + log p(x|θ) − log p(x), with p(x) = N(0, 1 + s²) for either simulator."""
    config = simulator.Config(simulator=name)
    thetas, xs = simulator.simulate(config, np.random.default_rng(0), 20)
    assert thetas.dtype == xs.dtype == np.float32
    for theta, x in zip(thetas.astype(np.float64), xs.astype(np.float64), strict=True):
        likelihoods = [norm.logpdf(x, sign * theta, simulator.NOISE).sum() for sign in (1, -1)]
        likelihood = likelihoods[0]
        if name == "bimodal":
            likelihood = np.logaddexp(*likelihoods) - np.log(2)
        evidence = norm.logpdf(x, 0, np.sqrt(1 + simulator.NOISE**2)).sum()
        truth = norm.logpdf(theta).sum() + likelihood - evidence
        found = simulator.exact(config, x).data_log_prob(jnp.asarray(theta))
        np.testing.assert_allclose(found, truth, rtol=1e-4)


@pytest.mark.slow
def test_it_runs(tmp_path, capsys):
    """And a network that has learned nothing is told from the truth."""
    config = simulator.Config(steps=2, num=30, out=tmp_path / "simulator.png")
    # As a user's session, in float32.
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        simulator.main(config)
    printed = capsys.readouterr().out
    assert (tmp_path / "simulator.png").stat().st_size > 1000
    divergence = float(printed.split("posterior found: ")[1].split()[0])
    assert divergence > 0.1
    density = next(line for line in printed.splitlines() if line.startswith("density"))
    assert float(density.split()[1]) < 0.05
