"""Inference from simulations, against the exact posterior: `python examples/simulator.py`.

Trains a conditional denoiser on pairs of parameters θ and data x, compares log p(θ|x) and samples
with the exact posterior, checks the calibration, and writes `simulator.png` and, with its numbers,
`simulator.json`. `--help` lists the flags.
"""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tyro
from sklearn.neural_network import MLPClassifier
from tqdm import trange

import eqdiff as eqd


matplotlib.use("Agg")

import matplotlib.pyplot as plt


NOISE = 0.5


@dataclasses.dataclass(frozen=True)
class Config:
    """Learns the posterior of a simulator whose posterior is known."""

    simulator: Literal["gaussian", "bimodal"] = "bimodal"
    """θ ~ N(0, I) in the plane; x is θ with noise (gaussian), or θ or −θ, who knows (bimodal)."""
    steps: int = 4000
    """Optimiser steps, each with 512 new simulations."""
    num: int = 500
    """Simulations to test with."""
    seed: int = 0
    """Of everything random."""
    out: Path = Path("simulator.png")
    """The picture."""


def simulate(config: Config, rng: np.random.Generator, num: int):
    """Parameters from their prior, and data."""
    theta = rng.standard_normal((num, 2))
    sign = 1 if config.simulator == "gaussian" else rng.choice([-1, 1], (num, 1))
    x = sign * theta + NOISE * rng.standard_normal((num, 2))
    return theta.astype(np.float32), x.astype(np.float32)


def exact(config: Config, x) -> eqd.GaussianMixtureDenoiser:
    """The exact posterior, a Gaussian or two of them."""
    mean, variance = x / (1 + NOISE**2), NOISE**2 / (1 + NOISE**2)
    signs = np.array([1.0] if config.simulator == "gaussian" else [1.0, -1.0])
    covariances = np.tile(variance * np.eye(2), (len(signs), 1, 1))
    return eqd.GaussianMixtureDenoiser(
        eqd.VPSDE(), np.ones(len(signs)), np.outer(signs, mean), covariances
    )


class Net(eqx.Module):
    """A perceptron that sees the noisy parameters and the data side by side."""

    mlp: eqd.nn.MLP

    def __call__(self, c_noise, theta, x, *, key=None):
        return self.mlp(c_noise, jnp.concatenate([theta, x]), key=key)


def train(config: Config, rng: np.random.Generator) -> eqd.Denoiser:
    process = eqd.VPSDE(t0=1e-3)

    def loss_fn(net, t, theta, x, *, key):
        return eqd.l_simple(eqd.predict(eqd.Denoiser(net, process), t, theta, x, key=key)), {}

    net_key, state_key = jax.random.split(jax.random.key(config.seed))
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-3, config.steps))
    state = eqd.train.init(
        Net(eqd.nn.MLP(4, 2, 128, 2, key=net_key)),
        optimiser,
        timesteps=eqd.LowDiscrepancy(process),
        ema=(0.999,),
        key=state_key,
    )
    step = eqd.train.make_step(loss_fn, optimiser)
    for _ in trange(config.steps, desc="training", unit="step"):
        state, _ = step(state, simulate(config, rng, 512))
    return eqd.Denoiser(state.ema_net(), process)


def two_sample_test(real, drawn) -> float:
    """How often a classifier tells held-out pairs (θ, x) of two kinds apart (C2ST): ½ if never."""
    pairs = np.concatenate([real, drawn])
    kind = np.repeat([0, 1], len(real))
    order = np.random.default_rng(0).permutation(len(pairs))
    learn, test = order[: len(real)], order[len(real) :]
    classifier = MLPClassifier((64, 64), early_stopping=True, random_state=0)
    with warnings.catch_warnings():
        # scikit-learn takes Ctrl-C for "that is enough".
        warnings.filterwarnings("error", "Training interrupted", UserWarning)
        try:
            classifier.fit(pairs[learn], kind[learn])
        except UserWarning as error:
            raise KeyboardInterrupt from error
    return float(classifier.score(pairs[test], kind[test]))


def main(config: Config) -> None:
    rng = np.random.default_rng(config.seed)
    denoiser = train(config, rng)
    flow = eqd.ProbabilityFlow(rtol=1e-3, atol=1e-3)
    sampler = eqd.DDIM(100, spacing=eqd.log_snr_times)
    theta, x = simulate(config, rng, config.num)

    def log_prob(theta, x, key):
        return eqd.log_likelihood(denoiser, theta, x, flow=flow, trace=eqd.ExactTrace()).log_prob

    keys = jax.random.split(jax.random.key(config.seed + 1), 3)
    found = eqd.map_examples(log_prob, theta, x, key=keys[0])
    truth = np.array(
        [exact(config, b).data_log_prob(jnp.asarray(a)) for a, b in zip(theta, x, strict=True)]
    )
    print(f"log p(θ|x)   exact {eqd.metrics.mean(truth)}   found {eqd.metrics.mean(found)} nats")
    print(f"divergence of the posterior found: {eqd.metrics.mean(truth - found)} nats")

    theta_many, x_many = simulate(config, rng, 10 * config.num)
    drawn = eqd.generate(sampler, denoiser, len(x_many), (2,), key=keys[1], args=x_many)
    score = two_sample_test(np.hstack([theta_many, x_many]), np.hstack([drawn, x_many]))
    print(f"told from the exact posterior's samples (C2ST): {100 * score:.1f} %")

    ranks = eqd.metrics.posterior_ranks(
        sampler, denoiser, theta, x, num_draws=39, flow=flow, key=keys[2], batch_size=100
    )
    check = eqd.metrics.calibration(ranks, 39)
    for row in check.table(["θ₁", "θ₂", "density"]):
        print("  ".join(cell.ljust(16) for cell in row))

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), constrained_layout=True)
    one = np.tile(np.array([1.0, 0.5], np.float32), (500, 1))
    drawn = eqd.generate(sampler, denoiser, 500, (2,), key=keys[1], args=one)
    left.scatter(*drawn.T, s=3)
    left.set(title="samples of p(θ | x = (1, ½))", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    right.plot([0, 1], [0, 1], color="grey")
    right.fill_between(
        check.levels, check.levels - check.band, check.levels + check.band, alpha=0.2
    )
    right.plot(check.levels, check.coverage, label=["θ₁", "θ₂", "density"])
    right.set(title="coverage", xlabel="level", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    right.legend()
    figure.savefig(config.out, dpi=120)
    numbers = {
        "samples": np.round(drawn.astype(float), 3).tolist(),
        "levels": check.levels.tolist(),
        "band": np.broadcast_to(check.band, check.levels.shape).tolist(),
        "coverage": np.asarray(check.coverage).tolist(),
    }
    config.out.with_suffix(".json").write_text(json.dumps(numbers) + "\n")
    print(config.out)


if __name__ == "__main__":
    main(tyro.cli(Config))
