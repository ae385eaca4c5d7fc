"""Error against network calls for every sampler, on a Gaussian mixture whose score is exact.

    python benchmarks/samplers.py                               # the table
    python benchmarks/samplers.py --out docs/assets/samplers    # and samplers.json, figures
    python benchmarks/samplers.py --only UniPC --out docs/assets/samplers    # those alone again

With the exact score all that is left is the sampler's own error. It is measured in two ways, in
float64:

- of the *distribution*: sliced Wasserstein-2 distance to the data, the root mean square over
    directions of the distance between sorted projections. Not even exact draws reach 0 with
    finitely many points: the floor is what they reach.
- of the *path*, for deterministic samplers: root mean square distance to the flow's own endpoint
    from the same noise.

Samplers start from exact draws of p_t1, so no error is the prior's. A call is one evaluation of the
denoiser for one point; for adaptive solvers it is the mean over the points. The forward process is
the VP SDE, and for ancestral sampling its discretisation in 1000 steps.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import figures
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import eqdiff as eqd


SDE = eqd.VPSDE()
SCHEDULE = eqd.discretise(SDE, 1000)
STEPS = (5, 10, 20, 35, 50, 100, 200, 500, 1000)


class Row(NamedTuple):
    """One point of one curve."""

    sampler: str
    setting: str
    calls: float
    distribution: float
    path: float | None


class Family(NamedTuple):
    """A sampler with the settings that it is tried with."""

    name: str
    make: Callable[[Any], Any]
    settings: tuple[Any, ...]
    on_schedule: bool = False


def mixture(process: eqd.AbstractProcess) -> eqd.GaussianMixtureDenoiser:
    """Seven elongated Gaussians on a ring, of unequal weight, about as wide as image data."""
    k = 7
    angles = 2 * np.pi * np.arange(k) / k
    means = 1.4 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    turn = np.stack([np.stack([np.cos(angles), -np.sin(angles)], -1),
                     np.stack([np.sin(angles), np.cos(angles)], -1)], 1)  # fmt: skip
    covariances = turn @ np.diag([0.05**2, 0.2**2]) @ turn.transpose(0, 2, 1)
    return eqd.GaussianMixtureDenoiser(process, 1 + np.arange(k), means, covariances)


def families() -> tuple[Family, ...]:
    half, fewer = tuple(n // 2 for n in STEPS[1:]), STEPS[:6]
    tolerances = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    loose = (3e-1, 1e-1, 3e-2, 1e-2, 3e-3)
    return (
        Family("Ancestral", eqd.Ancestral, STEPS, on_schedule=True),
        Family("EulerMaruyama", lambda n: eqd.PredictorCorrector(
            n, predictor=eqd.EulerMaruyama(), corrector=None), STEPS),
        Family("ReverseDiffusion", lambda n: eqd.PredictorCorrector(n, corrector=None), STEPS),
        Family("PredictorCorrector", eqd.PredictorCorrector, half),
        Family("DDIM, η = 1", lambda n: eqd.DDIM(n, eta=1.0), STEPS),
        Family("ReverseSDE, ShARK, adaptive", lambda tol: eqd.ReverseSDE(
            diffrax.ShARK(), rtol=tol, atol=tol), loose),
        Family("StochasticHeun, churn 40", lambda n: eqd.StochasticHeun(
            n, churn=40.0, churn_min=0.05, churn_max=50.0, noise=1.003), half),
        Family("DDIM", eqd.DDIM, STEPS),
        Family("StochasticHeun, no churn", eqd.StochasticHeun, half[:-2]),
        Family("SDEDPMSolverPP", eqd.SDEDPMSolverPP, (*fewer, 200)),
        Family("DPMSolverPP", eqd.DPMSolverPP, (*fewer, 200)),
        Family("DPMSolverPP, order 3", lambda n: eqd.DPMSolverPP(n, order=3), (*fewer, 200)),
        Family("UniPC, order 1", lambda n: eqd.UniPC(n, order=1), (*fewer, 200)),
        Family("UniPC", eqd.UniPC, (*fewer, 200)),
        Family("UniPC, order 3", lambda n: eqd.UniPC(n, order=3), (*fewer, 200)),
        Family("ProbabilityFlow, Tsit5, adaptive", lambda tol: eqd.ProbabilityFlow(
            rtol=tol, atol=tol), tolerances),
        Family("ProbabilityFlow, Tsit5, Karras times", lambda n: eqd.ProbabilityFlow(
            num_steps=n // 6, spacing=eqd.karras_times), (20, 35, 50, 100, 200, 500)),
    )  # fmt: skip


def prior(denoiser: eqd.GaussianMixtureDenoiser, num: int, key: Any) -> Any:
    """Exact draws of p_t1."""

    def one(key):
        data, noise = jax.random.split(key)
        x0 = denoiser.data_sample(key=data)
        z = jax.random.normal(noise, x0.shape, x0.dtype)
        return SDE.alpha(SDE.t1) * x0 + SDE.sigma(SDE.t1) * z

    return jax.jit(jax.vmap(one))(jax.random.split(key, num))


class SlicedDistance:
    """Sliced Wasserstein-2 distance of points to the data.

    The data's quantiles come from sixteen times as many exact draws.
    """

    def __init__(self, denoiser: eqd.GaussianMixtureDenoiser, num: int, directions: int = 64):
        angles = math.pi * (np.arange(directions) + 0.5) / directions
        self.directions = np.stack([np.cos(angles), np.sin(angles)])
        draw = jax.jit(jax.vmap(lambda key: denoiser.data_sample(key=key)))
        exact = np.asarray(draw(jax.random.split(jax.random.key(100), 16 * num)))
        self.quantiles = np.sort(exact @ self.directions, 0).reshape(num, 16, -1).mean(1)
        again = [draw(jax.random.split(jax.random.key(101 + i), num)) for i in range(8)]
        errors = [self(np.asarray(x)) for x in again]
        self.floor = (min(errors), max(errors))

    def __call__(self, x: np.ndarray) -> float:
        gaps = np.sort(x @ self.directions, 0) - self.quantiles
        return float(np.sqrt(np.mean(gaps**2)))


def run(sampler: Any, denoiser: Any, x1: Any) -> tuple[np.ndarray, float]:
    """Samples, and network calls per sample."""
    keys = jax.random.split(jax.random.key(2), len(x1))

    def one(x, key):
        if isinstance(sampler, (eqd.ProbabilityFlow, eqd.ReverseSDE)):
            solution = sampler.solve(denoiser, x, key=key)
            assert solution.ys is not None
            # What the sampler itself does last, without solving again.
            return denoiser(SDE.t0, solution.ys[-1]).x0, sampler.stats(solution).num_calls
        return sampler(denoiser, x, key=key), jnp.asarray(sampler.num_calls)

    samples, calls = jax.jit(jax.vmap(one))(x1, keys)
    return np.asarray(samples), float(np.mean(calls))


def measure(num: int, chosen: Iterable[Family]) -> tuple[list[Row], tuple[float, float]]:
    """Every setting of every sampler; and the range of the error of eight sets of exact draws."""
    exact, discrete = mixture(SDE), mixture(SCHEDULE)
    distance = SlicedDistance(exact, num)
    x1 = prior(exact, num, jax.random.key(0))
    truth, _ = run(eqd.ProbabilityFlow(rtol=1e-10, atol=1e-10), exact, x1)
    cases = [(family, setting) for family in chosen for setting in family.settings]
    rows = []
    for family, setting in (bar := tqdm(cases)):
        bar.set_postfix_str(f"{family.name} {setting}")
        sampler = family.make(setting)
        samples, calls = run(sampler, discrete if family.on_schedule else exact, x1)
        deterministic = isinstance(
            sampler, (eqd.ProbabilityFlow, eqd.DPMSolverPP, eqd.UniPC)
        ) or not getattr(sampler, "random", True)
        path = (
            float(np.sqrt(np.mean(np.sum((samples - truth) ** 2, -1)))) if deterministic else None
        )
        rows.append(Row(family.name, f"{setting:g}", calls, distance(samples), path))
    return rows, distance.floor


def table(rows: list[Row]) -> str:
    lines = ["| sampler | setting | network calls | distribution | path |", "|---|---|---|---|---|"]
    for row in rows:
        path = "" if row.path is None else f"{row.path:.1e}"
        lines.append(
            f"| {row.sampler} | {row.setting} | {row.calls:.0f} | {row.distribution:.4f} | {path} |"
        )
    return "\n".join(lines)


def merged(rows: list[Row], num: int, path: Path) -> list[Row]:
    """The rows, and those of other families that were measured before with as many points."""
    names: dict[str, list[Row]] = {}
    before = json.loads(path.read_text()) if path.is_file() else {"num": num, "rows": []}
    if before["num"] == num:
        for row in before["rows"]:
            names.setdefault(row["sampler"], []).append(Row(**row))
    names |= {row.sampler: [r for r in rows if r.sampler == row.sampler] for row in rows}
    return [row for family in families() for row in names.get(family.name, [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num", type=int, default=32768, help="points per setting")
    parser.add_argument("--only", nargs="*", help="families whose name contains one of these")
    parser.add_argument("--out", type=Path, help="folder for samplers.json and its figures")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    chosen = [f for f in families() if not options.only or any(o in f.name for o in options.only)]
    rows, floor = measure(options.num, chosen)
    print(
        f"\njax {jax.__version__}, {options.num} points; exact draws have {floor[0]:.4f} to "
        f"{floor[1]:.4f}\n"
    )
    print(table(rows))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        rows = merged(rows, options.num, options.out / "samplers.json")
        facts = {"num": options.num, "floor": floor, "rows": [row._asdict() for row in rows]}
        (options.out / "samplers.json").write_text(json.dumps(facts, indent=1) + "\n")
        figures.samplers(options.out)


if __name__ == "__main__":
    main()
