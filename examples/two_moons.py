"""A score-based SDE on two-dimensional data in a minute: `python examples/two_moons.py`.

Trains, samples three ways, computes the exact density, and writes `two_moons.png`.
"""

import dataclasses
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tyro
from sklearn.datasets import make_moons
from tqdm import trange

import eqdiff as eqd


matplotlib.use("Agg")

import matplotlib.pyplot as plt


@dataclasses.dataclass(frozen=True)
class Config:
    """Learns two moons with a VP SDE and writes a picture of samples and exact density."""

    steps: int = 5000
    """Optimiser steps."""
    batch_size: int = 256
    """Points per step."""
    learning_rate: float = 1e-3
    """Adam's learning rate, decayed to zero by a cosine."""
    num: int = 1000
    """Samples to draw with each sampler."""
    grid: int = 100
    """Points along each side of the density plot."""
    seed: int = 0
    """Of everything random."""
    out: Path = Path("two_moons.png")
    """The picture."""


def train(config: Config, sde: eqd.VPSDE) -> eqd.Denoiser:
    """Denoising score matching on points drawn afresh at each step."""

    def loss_fn(net, t, x0, args, *, key):
        p = eqd.predict(eqd.Denoiser(net, sde), t, x0, args, key=key)
        return eqd.score_matching(p), {}

    net_key, state_key = jax.random.split(jax.random.key(config.seed))
    optimiser = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    state = eqd.train.init(
        eqd.nn.MLP(2, 2, 128, 3, key=net_key),
        optimiser,
        timesteps=eqd.LowDiscrepancy(sde),
        ema=(0.999,),
        key=state_key,
    )
    step = eqd.train.make_step(loss_fn, optimiser)
    data = np.asarray(make_moons(100_000, noise=0.05, random_state=config.seed)[0])
    data = ((data - data.mean(0)) / data.std()).astype(np.float32)
    rng = np.random.default_rng(config.seed)
    bar = trange(config.steps, desc="training", unit="step")
    for i in bar:
        batch = data[rng.integers(len(data), size=config.batch_size)]
        state, metrics = step(state, (batch, None))
        if i % 500 == 499:
            bar.set_postfix(loss=f"{float(metrics.loss):.4f}")
    return eqd.Denoiser(state.ema_net(), sde)


def density(denoiser: eqd.Denoiser, config: Config):
    """exp log p on a grid, by the probability flow with the exact trace."""
    axis = jnp.linspace(-2.5, 2.5, config.grid)
    points = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)

    flow, trace = eqd.ProbabilityFlow(rtol=1e-3, atol=1e-3), eqd.ExactTrace()

    def log_prob(x, key):
        return eqd.log_likelihood(denoiser, x, flow=flow, trace=trace).log_prob

    log_probs = eqd.map_examples(log_prob, points, key=jax.random.key(0), batch_size=2500)
    values = np.exp(log_probs).reshape(config.grid, config.grid)
    mass = values.sum() * float(axis[1] - axis[0]) ** 2
    print(f"The density integrates to {mass:.4f} over the picture.")
    return axis, values


def main(config: Config) -> None:
    sde = eqd.VPSDE(t0=1e-3)
    denoiser = train(config, sde)
    samplers = {
        "DDIM, 50 steps": eqd.DDIM(50),
        "probability flow, Tsit5": eqd.ProbabilityFlow(diffrax.Tsit5()),
        "reverse SDE, ShARK": eqd.ReverseSDE(diffrax.ShARK(), rtol=1e-2, atol=1e-2),
    }
    figure, axes = plt.subplots(1, 4, figsize=(16, 4), constrained_layout=True)
    for axis, (name, sampler) in zip(axes, samplers.items(), strict=False):
        x = eqd.generate(
            sampler, denoiser, config.num, (2,), key=jax.random.key(1), batch_size=config.num
        )
        axis.scatter(*x.T, s=2)
        axis.set_title(name)
    grid, values = density(denoiser, config)
    axes[3].pcolormesh(grid, grid, values, cmap="magma", shading="auto")
    axes[3].set_title("exact density")
    for axis in axes:
        axis.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal", xticks=[], yticks=[])
    figure.savefig(config.out, dpi=120)
    print(config.out)


if __name__ == "__main__":
    main(tyro.cli(Config))
