"""How much less noisy the variational bound is under each strategy for drawing times, and how soon.

    python benchmarks/timesteps.py
    python benchmarks/timesteps.py --num-steps 1000 --schedule linear --png timesteps.png

The losses are real ones: `eqdiff.bound_term` of an exact denoiser on a mixture of Gaussians that
looks like 8-bit signals (power falling like 1/f²), drawn several times at every step of the
schedule. A strategy then draws batches from that record and learns from what it sees. After each
number of draws its state is frozen and two numbers are taken, both relative to the square of the
true bound:

- *loss*: n times the variance of the mean of a batch of n: what one example adds to the noise of
  the loss. Strategies that spread a batch evenly are rewarded for it.
- *gradient*: the mean of (w L)² over single draws, minus 1. Gradients are about as large as losses,
  and do not share a sign between times, so this stands for the noise of the gradient. It depends on
  the probabilities alone.

*optimal* draws with p ∝ √E[L²] of the record itself; nobody can do better in the second number.
"""

import argparse
import functools as ft
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import eqdiff as eqd
from eqdiff._timesteps.base import AbstractFixedTimesteps, evenly_spread, invert_cdf


DIM, COMPONENTS, LEVELS = 48, 4, 256
SCHEDULES = {"cosine": eqd.cosine_schedule, "linear": eqd.linear_schedule}


def make_denoiser(schedule: eqd.Schedule) -> eqd.GaussianMixtureDenoiser:
    """Smooth signals in [-1, 1]: means and covariances with a 1/f² spectrum in the cosine basis."""
    rng = np.random.default_rng(0)
    k, i = np.arange(DIM)[:, None], np.arange(DIM)
    basis = np.cos(np.pi * k * (i + 0.5) / DIM) * np.sqrt(np.where(k == 0, 1, 2) / DIM)
    power = 0.04 * DIM * (1 + np.arange(DIM)) ** -2.0
    means = (rng.standard_normal((COMPONENTS, DIM)) * np.sqrt(power)) @ basis
    # Rounding to the grey levels adds the variance of a uniform distribution.
    covariance = basis.T @ (0.5 * power[:, None] * basis) + np.eye(DIM) / (3 * (LEVELS - 1) ** 2)
    return eqd.GaussianMixtureDenoiser(
        schedule, np.ones(COMPONENTS), means, np.stack([covariance] * COMPONENTS)
    )


def record_losses(schedule: eqd.Schedule, draws: int, bar: tqdm) -> jax.Array:
    """`T × bound_term` at every step for fresh data and noise, shape (T, draws)."""
    denoiser = make_denoiser(schedule)

    @eqx.filter_jit
    def at(t, key):
        def one(key):
            data_key, key = jax.random.split(key)
            x0 = denoiser.data_sample(key=data_key)
            x0 = jnp.clip(jnp.round((x0 + 1) * (LEVELS - 1) / 2), 0, LEVELS - 1)
            p = eqd.predict(denoiser, t, x0 * 2 / (LEVELS - 1) - 1, key=key)
            return eqd.l_vlb(p, levels=LEVELS)

        return jax.vmap(one)(jax.random.split(key, draws))

    chunk = jax.jit(jax.vmap(lambda t: at(t, jax.random.fold_in(jax.random.key(1), t))))
    rows = []
    for times in np.array_split(np.arange(schedule.num_steps, dtype=np.int32), 10):
        rows.append(np.asarray(chunk(times)))
        bar.update(1)
    return jnp.asarray(np.concatenate(rows))


class Optimal(AbstractFixedTimesteps):
    """p ∝ √E[L²], known beforehand."""

    process: eqd.Schedule
    p: jax.Array

    def sample(self, state: Any, n: int, *, key: Any):
        t, _ = invert_cdf(self.p, evenly_spread(n, key=key))
        return t, 1 / (self.p.size * self.p[t])


def probabilities(strategy: eqd.AbstractTimesteps, state: Any, num_steps: int) -> jax.Array:
    if isinstance(strategy, (eqd.LossSecondMoment, eqd.SmoothedSecondMoment)):
        return strategy.probabilities(state)
    return strategy.p if isinstance(strategy, Optimal) else jnp.full(num_steps, 1 / num_steps)


@eqx.filter_jit
def learn(strategy, states, record, keys, *, batch: int, num_batches: int):
    """Many seeds at once draw and learn from so many batches."""

    def body(state, key):
        t_key, draw_key = jax.random.split(key)
        t, _ = strategy.sample(state, batch, key=t_key)
        j = jax.random.randint(draw_key, (batch,), 0, record.shape[1])
        return strategy.update(state, t, record[t, j]), None

    def run(state, key):
        return jax.lax.scan(body, state, jax.random.split(key, num_batches))[0]

    return eqx.filter_vmap(run)(states, keys)


@eqx.filter_jit
def noise(strategy, states, record, keys, *, batch: int, repeats: int = 2000):
    """The two numbers of the file's docstring, for every seed."""
    mean = jnp.mean(record)

    def batch_mean(state, key):
        t_key, draw_key = jax.random.split(key)
        t, weights = strategy.sample(state, batch, key=t_key)
        j = jax.random.randint(draw_key, (batch,), 0, record.shape[1])
        return jnp.mean(weights * record[t, j])

    def one(state, key):
        means = jax.lax.map(
            ft.partial(batch_mean, state), jax.random.split(key, repeats), batch_size=100
        )
        p = probabilities(strategy, state, record.shape[0])
        second = jnp.sum(jnp.mean(record**2, axis=1) / p) / record.shape[0] ** 2
        return batch * jnp.mean((means - mean) ** 2) / mean**2, second / mean**2 - 1

    return eqx.filter_vmap(one)(states, keys)


def measure(strategy, record, checkpoints, *, batch: int, seeds: int, bar: tqdm) -> np.ndarray:
    """Shape (checkpoints, 2): the means over seeds."""
    states = jax.tree.map(lambda x: jnp.stack([x] * seeds), strategy.init())
    done, rows, result = 0, [], []
    for n, draws in enumerate(checkpoints):
        more = max(draws - done, 0) // batch
        if more and jax.tree.leaves(states):
            keys = jax.random.split(jax.random.key(2 * n), seeds)
            states = learn(strategy, states, record, keys, batch=batch, num_batches=more)
        done += more * batch
        if n == 0 or jax.tree.leaves(states):
            keys = jax.random.split(jax.random.key(2 * n + 1), seeds)
            result = [np.mean(x) for x in noise(strategy, states, record, keys, batch=batch)]
        rows.append(result)
        bar.update(1)
    return np.asarray(rows)


def compare(num_steps: int, args: argparse.Namespace) -> dict[str, np.ndarray]:
    schedule = SCHEDULES[args.schedule](num_steps)
    make = {
        "Uniform": lambda record: eqd.Uniform(schedule),
        "LowDiscrepancy": lambda record: eqd.LowDiscrepancy(schedule),
        "LossSecondMoment": lambda record: eqd.LossSecondMoment(schedule),
        "SmoothedSecondMoment": lambda record: eqd.SmoothedSecondMoment(schedule),
        "optimal": lambda record: Optimal(
            schedule, _normalised(jnp.sqrt(jnp.mean(record**2, axis=1)))
        ),
    }
    results = {}
    with tqdm(total=10 + len(make) * len(args.draws), desc=f"T = {num_steps}", leave=False) as bar:
        record = record_losses(schedule, args.record, bar)
        for name, build in make.items():
            results[name] = measure(
                build(record), record, args.draws, batch=args.batch, seeds=args.seeds, bar=bar
            )
    return results


def _normalised(x):
    return x / jnp.sum(x)


def print_tables(num_steps: int, results: dict[str, np.ndarray], args: argparse.Namespace) -> None:
    for column, title in enumerate(("loss", "gradient")):
        print(f"\n**{title} noise, T = {num_steps}, {args.schedule}**, after so many draws\n")
        print("| strategy | " + " | ".join(f"{draws:,}" for draws in args.draws) + " |")
        print("|---|" + "---:|" * len(args.draws))
        for name, rows in results.items():
            print(f"| {name} | " + " | ".join(f"{x:.3g}" for x in rows[:, column]) + " |")


def save_png(path: str, results: dict[int, dict[str, np.ndarray]], draws: list[int]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(results), figsize=(5 * len(results), 3.6), squeeze=False, layout="constrained"
    )
    for axis, (num_steps, result) in zip(axes[0], results.items(), strict=True):
        for name, rows in result.items():
            axis.plot(draws, rows[:, 1], label=name, marker="o", markersize=3)
        axis.set_xscale("symlog", linthresh=100)
        axis.set(yscale="log", title=f"T = {num_steps}", xlabel="draws")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("gradient noise (relative)")
    axes[0][-1].legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num-steps", nargs="+", type=int, default=[1000, 4000])
    parser.add_argument("--schedule", choices=SCHEDULES, default="cosine")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--record", type=int, default=64, help="losses recorded at each step")
    parser.add_argument(
        "--draws",
        nargs="+",
        type=int,
        default=[0, 512, 2_048, 8_192, 32_768, 131_072, 262_144],
        help="after how many draws to measure, increasing",
    )
    parser.add_argument("--png", help="also draw the gradient noise into this file")
    args = parser.parse_args()
    start, results = time.perf_counter(), {}
    for num_steps in args.num_steps:
        results[num_steps] = compare(num_steps, args)
        print_tables(num_steps, results[num_steps], args)
    seconds = time.perf_counter() - start
    print(f"\njax {jax.__version__}, {jax.devices()[0].device_kind}, {seconds:.0f} s")
    if args.png:
        save_png(args.png, results, args.draws)


if __name__ == "__main__":
    main()
