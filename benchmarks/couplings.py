"""What pairs of data and noise do for a flow: `python benchmarks/couplings.py --out FOLDER`.

Two small networks learn the same eight Gaussians by flow matching, one from independent noise, the
other from optimal pairs. Prints how curved their paths are and how good few steps are, keeps the
paths in `paths.json`, and draws them. About two minutes on two CPU cores.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import diffrax
import figures
import jax
import jax.numpy as jnp
import numpy as np
import optax

import eqdiff as eqd


def eight_gaussians(n: int, rng: np.random.Generator) -> np.ndarray:
    angle = 2 * np.pi * rng.integers(8, size=n) / 8
    centres = 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return (centres + 0.1 * rng.normal(size=(n, 2))).astype(np.float32)


def train(paired: bool, steps: int = 3000) -> eqd.Denoiser:
    """Flow matching with a small network."""
    process, rng = eqd.RectifiedFlow(t1=1.0), np.random.default_rng(0)

    def loss_fn(net, t, x0, noise, *, key):
        denoiser = eqd.Denoiser(net, process, eqd.PredictFlow())
        return eqd.l_simple(eqd.predict(denoiser, t, x0, noise=noise, key=key)), {}

    optimiser = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    net = eqd.nn.MLP(2, 2, 64, 3, key=jax.random.key(0))
    state = eqd.train.init(
        net, optimiser, timesteps=eqd.LowDiscrepancy(process), ema=(0.99,), key=jax.random.key(1)
    )
    step = eqd.train.make_step(loss_fn, optimiser)
    for _ in range(steps):
        x0 = eight_gaussians(128, rng)
        noise = rng.normal(size=x0.shape).astype(np.float32)
        noise = noise[eqd.train.optimal_pairs(x0, noise)] if paired else noise
        state, _ = step(state, (x0, noise))
    return eqd.Denoiser(state.ema_net(), process, eqd.PredictFlow())


def over(noise: jax.Array, sample: Callable) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(sample))(noise))


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    def mean(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=-1).mean()

    return float(2 * mean(x, y) - mean(x, x) - mean(y, y))


def measure(denoiser: eqd.Denoiser, noise: jax.Array, data: np.ndarray) -> dict[str, float]:
    """`bend`, the mean squared distance between where one Euler step of the whole way ends and
    where the flow does; and the energy distances to the data of two Euler steps and of many.
    """
    exact = eqd.ProbabilityFlow(rtol=1e-5, atol=1e-5)
    two = eqd.ProbabilityFlow(diffrax.Euler(), num_steps=2)
    ends = over(noise, lambda z: exact.decode(denoiser, z))
    one = over(noise, lambda z: denoiser(jnp.float32(1.0), z).x0)
    return {
        "bend": float(np.mean(np.sum((one - ends) ** 2, axis=-1))),
        "two steps": energy_distance(over(noise, lambda z: two(denoiser, z)), data),
        "exactly": energy_distance(over(noise, lambda z: exact(denoiser, z)), data),
    }


def paths(denoiser: eqd.Denoiser, noise: jax.Array) -> list:
    """Where the flow takes each noise, at 14 times: nested lists, (noises, times, coordinates)."""
    flow, times = eqd.ProbabilityFlow(rtol=1e-4, atol=1e-4), jnp.linspace(1.0, 1e-3, 14)
    ways = over(noise, lambda z: flow.solve(denoiser, z, saveat=times).ys)
    return np.round(ways.astype(float), 3).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(), help="for paths.json, figures")
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps")
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    noise = jnp.asarray(rng.normal(size=(2000, 2)), jnp.float32)
    data = eight_gaussians(2000, rng)
    denoisers = {
        "independent noise": train(False, args.steps),
        "optimal pairs": train(True, args.steps),
    }
    found = {}
    for name, denoiser in denoisers.items():
        numbers = measure(denoiser, noise, data)
        numbers = {key: round(value, 4) for key, value in numbers.items()}
        print(name, numbers)
        found[name] = {"measured": numbers, "paths": paths(denoiser, noise[:120])}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "paths.json").write_text(json.dumps(found) + "\n")
    figures.couplings(args.out)


if __name__ == "__main__":
    main()
