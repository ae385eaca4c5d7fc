"""Posterior samplers against exact posteriors: Gaussian mixtures in 2, 8 and 64 dimensions.

    python benchmarks/posterior.py                              # the table
    python benchmarks/posterior.py --out docs/assets/posterior  # and posterior.json, figures

The denoiser is exact, and so is the posterior, so that what is left is the sampler's own error: the
energy distance of its samples to exact draws, and the largest error of a mode's weight. Calls are
those of the denoiser for one sample; for particles, for one set of them.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
import jax
import jax.numpy as jnp
import numpy as np

import eqdiff as eqd


SDE = eqd.VPSDE()


def problem(dim: int, measured: int, std: float, seed: int = 0):
    """Five elongated Gaussians and a measurement that leaves two or three of them possible."""
    rng = np.random.default_rng(seed)
    # In 64 dimensions modes of the same distance, or any measurement would tell them apart.
    means = rng.normal(size=(5, dim)) * np.sqrt(2 / dim)
    turns = [np.linalg.qr(rng.normal(size=(dim, dim)))[0] for _ in range(5)]
    widths = np.linspace(0.1, 0.3, dim) ** 2
    covariances = np.stack([q @ np.diag(widths) @ q.T for q in turns])
    denoiser = eqd.GaussianMixtureDenoiser(SDE, 1 + np.arange(5), means, covariances)
    matrix = rng.normal(size=(measured, dim)) / np.sqrt(dim)
    y = matrix @ means.mean(0) + 0.1 * rng.normal(size=measured)

    def operator(x):
        return jnp.asarray(matrix, x.dtype) @ x

    return denoiser, eqd.Measurement(jnp.asarray(y, float), operator, std), means


def methods(denoiser, measurement) -> dict[str, tuple[Callable, Any]]:
    """Name -> (draws of one key, calls)."""

    def chain(sampler, guided=denoiser):
        def draw(key, dim):
            prior, path = jax.random.split(key)
            return sampler(guided, SDE.prior_sample((dim,), key=prior), key=path)[None]

        return draw, sampler.num_calls

    def guided(covariance):
        return eqd.PosteriorGuidance(denoiser, measurement, covariance=covariance)

    def particles(steps, num):
        def draw(key, dim):
            first, second = jax.random.split(key)
            smc = eqd.TwistedSMC(steps, num)
            return smc(denoiser, measurement, (dim,), key=first).resample(1, key=second)

        return draw, steps * num

    found = {}
    for n in (20, 100):
        ddim = eqd.DDIM(n, eta=1.0)
        found[f"DPS, DDIM({n}, η = 1)"] = chain(ddim, guided(eqd.ZeroCovariance()))
        found[f"ΠGDM, DDIM({n}, η = 1)"] = chain(ddim, guided(eqd.IsotropicCovariance()))
        found[f"MMPS, DDIM({n}, η = 1)"] = chain(ddim, guided(eqd.JacobianCovariance()))
        found[f"DiffPIR({n})"] = chain(eqd.DiffPIR(measurement, n, strength=1.0))
        found[f"DAPS({n}, flow_steps=1)"] = chain(eqd.DAPS(measurement, n, flow_steps=1))
        found[f"DAPS({n // 5}, flow_steps=5)"] = chain(eqd.DAPS(measurement, n // 5, flow_steps=5))
    for num in (4, 16, 64):
        found[f"TwistedSMC(100, {num})"] = particles(100, num)
    return found


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    def mean(a, b):
        squares = np.sum(a**2, 1)[:, None] + np.sum(b**2, 1)[None] - 2 * a @ b.T
        return np.mean(np.sqrt(np.maximum(squares, 0)))

    return float(2 * mean(a, b) - mean(a, a) - mean(b, b))


def measure(dim: int, measured: int, std: float, num: int) -> list[dict[str, Any]]:
    """A row for every method, the first for exact draws."""
    denoiser, measurement, means = problem(dim, measured, std)
    exact = denoiser.posterior(measurement)
    draw = jax.jit(jax.vmap(lambda key: exact.data_sample(key=key)))
    truth, again = (np.asarray(draw(jax.random.split(jax.random.key(i), 2000))) for i in (0, 1))

    def shares(x):
        gaps = np.sum((x[:, None] - means) ** 2, -1)
        return np.bincount(np.argmin(gaps, 1), minlength=5) / len(x)

    def row(name, calls, x):
        good = x[np.abs(x).max(1) < 10]
        error = float(np.abs(shares(good) - shares(truth)).max()) if len(good) else None
        distance = energy_distance(x, truth) if len(good) == len(x) else None
        row = dict(dim=dim, name=name, calls=calls, distance=distance, weights=error)
        print(row, flush=True)
        return row

    rows = [row("exact draws", None, again)]
    for name, (one, calls) in methods(denoiser, measurement).items():
        run = jax.jit(jax.vmap(lambda key, one=one: one(key, dim)[0]))
        x = run(jax.random.split(jax.random.key(2), num))
        rows.append(row(name, calls, np.asarray(x, np.float64)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num", type=int, default=800, help="samples per setting")
    parser.add_argument("--out", type=Path, help="a folder for posterior.json and its figures")
    options = parser.parse_args()
    problems = ((2, 1, 0.2), (8, 2, 0.2), (64, 8, 0.1))
    rows = [row for problem in problems for row in measure(*problem, options.num)]
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "posterior.json").write_text(json.dumps(rows, indent=1) + "\n")
        figures.posterior(options.out)


if __name__ == "__main__":
    main()
