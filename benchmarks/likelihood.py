"""Network calls and time of an exact likelihood against its error; shared against separate steps.

    # A perceptron, and a U-Net trained on digits.
    python benchmarks/likelihood.py --out docs/assets/likelihood
    python benchmarks/likelihood.py --network cifar10 --batch 1 --rounds 1 \
        --tolerances 1e-1 1e-2 1e-3 --no-sampling

Compared with a solver on the host, the way of the official score-SDE code: scipy's RK45 on the
whole batch flattened, its state in float64, around the same network and divergence, compiled.
Errors are against the host's answer at a thirtieth of the tightest tolerance. Tolerances of
different solvers do not mean the same: compare at equal error. All cases are measured in turns and
the best round of each is kept.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import figures
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import integrate
from tqdm import tqdm, trange

import eqdiff as eqd


SDE = eqd.VPSDE()
LIKELIHOOD_KEY = jax.random.key(3)
HOST = "scipy on the host"
TITLES = {
    "mlp": "perceptron, two dimensions",
    "digits": "U-Net trained on digits, 8×8",
    "cifar10": "Improved DDPM's U-Net, untrained, 3×32×32",
}


Draw = Callable[[Any], jax.Array]


def mixture(shape: tuple[int, ...]) -> Draw:
    """key -> one point of a mixture of five Gaussians."""
    means = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (5, *shape)).astype(np.float32))

    def draw(key):
        which, noise = jax.random.split(key)
        mean = means[jax.random.randint(which, (), 0, 5)]
        return mean + 0.2 * jax.random.normal(noise, shape, jnp.float32)

    return draw


def digits() -> Draw:
    """key -> one handwritten digit, uniformly dequantised."""
    data = eqd.data.digits()
    images = jnp.asarray(np.stack([data.normalise(image) for image, _ in data.train]))

    def draw(key):
        which, noise = jax.random.split(key)
        image = images[jax.random.randint(which, (), 0, len(images))]
        width = 2 / (data.levels - 1)
        return image + width * jax.random.uniform(noise, image.shape, minval=-0.5, maxval=0.5)

    return draw


def trained(net: Any, draw: Draw, steps: int) -> eqd.Denoiser:
    optimiser = optax.adam(1e-3)
    params, static = eqx.partition(net, eqx.is_inexact_array)

    def loss(params, key):
        def one(key):
            k1, k2, k3 = jax.random.split(key, 3)
            denoiser = eqd.Denoiser(eqx.combine(params, static), SDE)
            t = SDE.t0 + (SDE.t1 - SDE.t0) * jax.random.uniform(k2)
            return eqd.l_simple(eqd.predict(denoiser, t, draw(k1), key=k3))

        return jnp.mean(jax.vmap(one)(jax.random.split(key, 64)))

    @jax.jit
    def update(params, state, key):
        value, gradient = jax.value_and_grad(loss)(params, key)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state = optimiser.init(params)
    for step, key in enumerate(
        bar := tqdm(jax.random.split(jax.random.key(1), steps), leave=False)
    ):
        params, state, value = update(params, state, key)
        if step % 50 == 0:
            bar.set_description(f"training, L_simple {value:.3f}")
    return eqd.Denoiser(eqx.combine(params, static), SDE)


def problem(name: str, batch: int, steps: int) -> tuple[eqd.Denoiser, Any]:
    """A denoiser and a batch of its data."""
    key = jax.random.key(0)
    if name == "mlp":
        draw = mixture((2,))
        denoiser = trained(eqd.nn.MLP(2, 2, key=key), draw, 2 * steps)
    elif name == "digits":
        draw = digits()
        net = eqd.nn.presets.iddpm_digits(learned_variance=False, key=key)
        denoiser = trained(net, draw, steps)
    else:
        draw = mixture((3, 32, 32))
        # Not trained, which would take days; arrays that start at zero get values.
        rng = np.random.default_rng(0)

        def fill(p):
            noise = 0.02 * rng.standard_normal(p.shape).astype(np.float32)
            return jnp.where(p == 0, noise, p) if eqx.is_inexact_array(p) else p

        net = jax.tree.map(fill, eqd.nn.presets.iddpm_cifar10(key=key))
        denoiser = eqd.Denoiser(net, SDE, variance=eqd.LearnedRange())
    return denoiser, jax.vmap(draw)(jax.random.split(jax.random.key(2), batch))


def host(denoiser: eqd.Denoiser, x: Any) -> Callable[[float], tuple[np.ndarray, int]]:
    """tolerance -> (log-probabilities, network calls), by scipy around the compiled flow."""
    probes = jax.vmap(lambda k, y: eqd.Hutchinson().probes(y, key=k))(
        jax.random.split(LIKELIHOOD_KEY, len(x)), x
    )

    @eqx.filter_jit
    def field(denoiser, t, x):
        def one(y, e):
            flow = eqd.terms.augmented_flow(denoiser, eqd.Hutchinson(), e)
            return flow.vf(t, (y, jnp.zeros(1)), None)

        return jax.vmap(one)(x, probes)

    def solve(tolerance: float) -> tuple[np.ndarray, int]:
        def rhs(t, state):
            y = jnp.asarray(state[: x.size], jnp.float32).reshape(x.shape)
            velocity, rate = field(denoiser, jnp.float32(t), y)
            return np.concatenate([np.asarray(velocity).ravel(), np.asarray(rate).ravel()]).astype(
                np.float64
            )

        start = np.concatenate([np.asarray(x).ravel(), np.zeros(len(x))]).astype(np.float64)
        found = integrate.solve_ivp(
            rhs, (SDE.t0, SDE.t1), start, rtol=tolerance, atol=tolerance, method="RK45"
        )
        latent = jnp.asarray(found.y[: x.size, -1], jnp.float32).reshape(x.shape)
        prior = np.asarray(jax.vmap(SDE.prior_log_prob)(latent))
        return prior + found.y[x.size :, -1], found.nfev

    return solve


def device(
    denoiser: eqd.Denoiser, x: Any, solver: diffrax.AbstractSolver, *, shared: bool
) -> Callable[[float], tuple[np.ndarray, int]]:
    """The same by eqdiff."""
    keys = jax.random.split(LIKELIHOOD_KEY, len(x))

    @eqx.filter_jit
    def run(denoiser, x, tolerance):
        flow = eqd.ProbabilityFlow(solver, rtol=tolerance, atol=tolerance)
        if shared:
            return eqd.log_likelihood(eqd.Batched(denoiser), x, flow=flow, key=LIKELIHOOD_KEY)
        return jax.vmap(lambda y, k: eqd.log_likelihood(denoiser, y, flow=flow, key=k))(x, keys)

    def solve(tolerance: float) -> tuple[np.ndarray, int]:
        found = run(denoiser, x, jnp.float32(tolerance))
        # Under vmap the loop runs until the slowest example is done.
        return np.asarray(found.log_prob), int(np.max(found.stats["num_calls"]))

    return solve


def in_turns(cases: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, tuple[float, Any]]:
    """Seconds of the best call of each case, which has been compiled, and its answer; in turns."""
    found = {}
    for _ in trange(rounds, desc="rounds", leave=False):
        for case, call in cases.items():
            start = time.perf_counter()
            answer = call()
            seconds = time.perf_counter() - start
            found[case] = (min(seconds, found.get(case, (seconds,))[0]), answer)
    return found


class Row(NamedTuple):
    """Errors are in bits/dim: over the batch their root mean square, and the largest."""

    method: str
    tolerance: float
    calls: int
    seconds: float
    rms: float
    largest: float


def likelihoods(denoiser: eqd.Denoiser, x: Any, rounds: int, tolerances: list[float]) -> list[Row]:
    methods = {
        HOST: host(denoiser, x),
        "each its own steps, Tsit5": device(denoiser, x, diffrax.Tsit5(), shared=False),
        "shared steps, Tsit5": device(denoiser, x, diffrax.Tsit5(), shared=True),
        "shared steps, Dopri5": device(denoiser, x, diffrax.Dopri5(), shared=True),
        "shared steps, Bosh3": device(denoiser, x, diffrax.Bosh3(), shared=True),
    }
    # Compiled for any tolerance: with a loose one, which is quick.
    for method in (bar := tqdm(methods, leave=False)):
        bar.set_description(f"compiling {method}")
        methods[method](0.5)
    truth, _ = methods[HOST](min(tolerances) / 30)
    cases = {(m, tol): lambda m=m, tol=tol: methods[m](tol) for m in methods for tol in tolerances}
    rows = []
    for (method, tol), (seconds, (found, calls)) in in_turns(cases, rounds).items():
        errors = np.abs(found - truth) / (x[0].size * np.log(2))
        rms, largest = float(np.sqrt(np.mean(errors**2))), float(errors.max())
        rows.append(Row(method, tol, calls, seconds, rms, largest))
    return rows


def likelihood_table(rows: list[Row], batch: int) -> str:
    lines = [
        "| likelihood | tolerance | network calls | ms per image | ms per call | error, bits/dim | "
        "largest |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = f"{1e3 * row.seconds / batch:.3g} | {1e3 * row.seconds / row.calls:.3g}"
        errors = f"{row.rms:.1e} | {row.largest:.1e}"
        lines.append(f"| {row.method} | {row.tolerance:g} | {row.calls} | {times} | {errors} |")
    return "\n".join(lines)


def equal_error_table(rows: list[Row], batch: int) -> str:
    """What each method needs at the least for an error no larger than the columns say."""
    errors = (2e-2, 1e-2, 5e-3, 2e-3, 1e-3, 1e-4)
    errors = [error for error in errors if error >= min(row.rms for row in rows)]
    lines = [
        "| network calls (ms per image) for an error of | " + " | ".join(map(str, errors)) + " |",
        "|---" * (1 + len(errors)) + "|",
    ]
    for method in dict.fromkeys(row.method for row in rows):
        cells = []
        for error in errors:
            enough = [row for row in rows if row.method == method and row.rms <= error]
            best = min(enough, key=lambda row: row.calls, default=None)
            cells.append(
                "—" if best is None else f"{best.calls} ({1e3 * best.seconds / batch:.3g})"
            )
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def record(path: Path, rows: list[Row], batch: int) -> None:
    """What `figures.py` draws."""
    lines = []
    for row in rows:
        facts = {key: value for key, value in row._asdict().items() if key != "seconds"}
        facts["ms"] = float(f"{1e3 * row.seconds / batch:.3g}")
        facts |= {key: float(f"{facts[key]:.1e}") for key in ("rms", "largest")}
        lines.append(json.dumps(facts))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n " + ",\n ".join(lines) + "\n]\n")


def sampling_table(denoiser: eqd.Denoiser, x: Any, rounds: int) -> str:
    x1 = jax.random.normal(jax.random.key(4), x.shape)

    @eqx.filter_jit
    def separate(denoiser, x1, sampler):
        return jax.vmap(lambda x: sampler.stats(sampler.solve(denoiser, x)).num_calls)(x1)

    @eqx.filter_jit
    def shared(denoiser, x1, sampler):
        return sampler.stats(sampler.solve(eqd.Batched(denoiser), x1)).num_calls

    cases = {}
    for tolerance in (1e-2, 1e-4):
        sampler = eqd.ProbabilityFlow(rtol=tolerance, atol=tolerance)
        for label, run in (("each its own", separate), ("shared", shared)):
            cases[tolerance, label] = lambda run=run, sampler=sampler: np.asarray(
                run(denoiser, x1, sampler)
            )
            cases[tolerance, label]()
    measured = in_turns(cases, rounds)
    lines = [
        "| `ProbabilityFlow`: tolerance | steps | network calls | of the mean example | "
        "ms per image |",
        "|---|---|---|---|---|",
    ]
    for (tolerance, label), (seconds, num) in measured.items():
        ms = 1e3 * seconds / len(x)
        lines.append(f"| {tolerance:g} | {label} | {num.max()} | {num.mean():.0f} | {ms:.3g} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--network", nargs="+", choices=("mlp", "digits", "cifar10"), default=["mlp", "digits"]
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--tolerances",
        type=float,
        nargs="+",
        default=[1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4],
        help="of the likelihoods",
    )
    parser.add_argument("--train-steps", type=int, default=1000, help="twice as many for the mlp")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-sampling", action="store_true", help="only the likelihoods")
    parser.add_argument("--out", type=Path, help="folder for numbers and figures")
    options = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    for name in options.network:
        title = f"{TITLES[name]}, batch {options.batch}"
        denoiser, x = problem(name, options.batch, options.train_steps)
        rows = likelihoods(denoiser, x, options.rounds, options.tolerances)
        print(f"\n**{title}**\n\n{likelihood_table(rows, options.batch)}")
        print(f"\n{equal_error_table(rows, options.batch)}", flush=True)
        if options.out is not None:
            record(options.out / f"{name}.json", rows, options.batch)
            if name in figures.LIKELIHOOD:
                figures.likelihood(options.out, (name,))
        if not options.no_sampling:
            print(f"\n{sampling_table(denoiser, x, options.rounds)}", flush=True)


if __name__ == "__main__":
    main()
