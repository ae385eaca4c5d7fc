"""What pairs of data and noise do for a flow: `python benchmarks/couplings.py --out FOLDER`.

Two small networks learn the same eight Gaussians by flow matching, one from independent noise, the
other from optimal pairs. Prints how curved their paths are and how good few steps are, and draws
`paths.png`. About two minutes on two CPU cores.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import diffrax
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


def draw(denoisers: dict[str, eqd.Denoiser], noise: jax.Array, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    flow, times = eqd.ProbabilityFlow(rtol=1e-4, atol=1e-4), jnp.linspace(1.0, 1e-3, 40)
    figure, axes = plt.subplots(1, len(denoisers), figsize=(8, 4.2), constrained_layout=True)
    for axis, (name, denoiser) in zip(axes, denoisers.items(), strict=True):
        ways = over(noise, lambda z, d=denoiser: flow.solve(d, z, saveat=times).ys)
        axis.plot(*np.moveaxis(ways, 0, -1).swapaxes(0, 1), color="0.6", lw=0.6, zorder=1)
        axis.scatter(*ways[:, 0].T, s=6, color="tab:orange", label="noise", zorder=2)
        axis.scatter(*ways[:, -1].T, s=6, color="tab:blue", label="samples", zorder=3)
        axis.set(title=name, xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[], yticks=[])
    axes[0].legend(loc="upper left", fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(), help="the folder for paths.png")
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps")
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    noise = jnp.asarray(rng.normal(size=(2000, 2)), jnp.float32)
    data = eight_gaussians(2000, rng)
    denoisers = {
        "independent noise": train(False, args.steps),
        "optimal pairs": train(True, args.steps),
    }
    for name, denoiser in denoisers.items():
        print(name, {key: f"{v:.4f}" for key, v in measure(denoiser, noise, data).items()})
    args.out.mkdir(parents=True, exist_ok=True)
    draw(denoisers, noise[:200], args.out / "paths.png")


if __name__ == "__main__":
    main()
