"""Seconds per image of an exact likelihood, against a solver on the host; and shared against separate steps.

    python benchmarks/likelihood.py                                    # a trained perceptron and a digits U-Net, batch 64
    python benchmarks/likelihood.py --network cifar10 --batch 2 --rounds 1 --tolerance 1e-3 --no-sampling

The host's solve is the way of the official score-SDE code: scipy's RK45 on the whole batch flattened, its state in float64, around the
same network and divergence, compiled. Errors are against the host's answer at a thirtieth of the tolerance. All cases are measured in
turns and the best round of each is kept.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import integrate
from tqdm import trange

import eqdiff as eqd


SDE = eqd.VPSDE()
LIKELIHOOD_KEY = jax.random.key(3)


def draw(shape: tuple[int, ...], key: Any) -> Any:
    """One point of a mixture of five Gaussians."""
    means = np.random.default_rng(0).uniform(-1, 1, (5, *shape)).astype(np.float32)
    which, noise = jax.random.split(key)
    mean = jnp.asarray(means)[jax.random.randint(which, (), 0, 5)]
    return mean + 0.2 * jax.random.normal(noise, shape, jnp.float32)


def trained(net: Any, shape: tuple[int, ...], steps: int) -> eqd.Denoiser:
    """A network that has learned a mixture for a moment, so that its flow is neither constant nor wild."""
    optimiser = optax.adam(1e-3)
    params, static = eqx.partition(net, eqx.is_inexact_array)

    def loss(params, key):
        def one(key):
            k1, k2, k3 = jax.random.split(key, 3)
            x0 = draw(shape, k1)
            denoiser = eqd.Denoiser(eqx.combine(params, static), SDE)
            t = SDE.place(jax.random.uniform(k2))
            return eqd.l_simple(eqd.predict(denoiser, t, x0, key=k3))

        return jnp.mean(jax.vmap(one)(jax.random.split(key, 64)))

    @jax.jit
    def update(params, state, key):
        updates, state = optimiser.update(jax.grad(loss)(params, key), state)
        return optax.apply_updates(params, updates), state

    state = optimiser.init(params)
    for key in jax.random.split(jax.random.key(1), steps):
        params, state = update(params, state, key)
    return eqd.Denoiser(eqx.combine(params, static), SDE)


def problem(name: str, batch: int, steps: int) -> tuple[eqd.Denoiser, Any]:
    """A denoiser and a batch of its data."""
    key = jax.random.key(0)
    if name == "mlp":
        denoiser, shape = trained(eqd.nn.MLP(2, 2, key=key), (2,), 10 * steps), (2,)
    elif name == "digits":
        net = eqd.nn.UNet(1, 1, 32, 1, (1, 2), (2,), norm_groups=8, key=key)
        denoiser, shape = trained(net, (1, 8, 8), steps), (1, 8, 8)
    else:
        net, shape = eqd.nn.unet_cifar10(key=key), (3, 32, 32)
        # Not trained, which would take days; arrays that start at zero get values.
        rng = np.random.default_rng(0)

        def fill(p):
            noise = 0.02 * rng.standard_normal(p.shape).astype(np.float32)
            return jnp.where(p == 0, noise, p) if eqx.is_inexact_array(p) else p

        denoiser = eqd.Denoiser(jax.tree.map(fill, net), SDE, variance=eqd.LearnedRange())
    keys = jax.random.split(jax.random.key(2), batch)
    return denoiser, jax.vmap(lambda k: draw(shape, k))(keys)


def host(denoiser: eqd.Denoiser, x: Any) -> Callable[[float], tuple[np.ndarray, int]]:
    """tolerance -> (log-probabilities, network calls), by scipy around a compiled velocity and divergence."""
    probes = jax.vmap(lambda k, y: eqd.Hutchinson().probes(y, key=k))(
        jax.random.split(LIKELIHOOD_KEY, len(x)), x
    )

    @eqx.filter_jit
    def field(denoiser, t, x):
        def one(y, e):
            return eqd.augmented_flow(denoiser, eqd.Hutchinson(), e).vf(t, (y, jnp.zeros(1)), None)

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
            rhs, (1e-5, 1), start, rtol=tolerance, atol=tolerance, method="RK45"
        )
        latent = jnp.asarray(found.y[: x.size, -1], jnp.float32).reshape(x.shape)
        prior = np.asarray(jax.vmap(SDE.prior_log_prob)(latent))
        return prior + found.y[x.size :, -1], found.nfev

    return solve


def device(
    denoiser: eqd.Denoiser, x: Any, solver: diffrax.AbstractSolver, stages: int, *, shared: bool
) -> Callable[[float], tuple[np.ndarray, int]]:
    """The same by eqdiff, with a solver of so many stages."""
    keys = jax.random.split(LIKELIHOOD_KEY, len(x))

    @eqx.filter_jit
    def run(denoiser, x, tolerance):
        options: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "solver": solver}
        if shared:
            return eqd.log_likelihood(eqd.Batched(denoiser), x, key=LIKELIHOOD_KEY, **options)
        return jax.vmap(lambda y, k: eqd.log_likelihood(denoiser, y, key=k, **options))(x, keys)

    def solve(tolerance: float) -> tuple[np.ndarray, int]:
        found = run(denoiser, x, jnp.float32(tolerance))
        # Under vmap the loop runs until the slowest example is done.
        return np.asarray(found.log_prob), stages * int(np.max(found.stats["num_steps"])) + 1

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


def likelihood_table(
    name: str, denoiser: eqd.Denoiser, x: Any, rounds: int, tolerance: float
) -> None:
    batch, on_host = len(x), host(denoiser, x)
    tsit5, bosh3 = (diffrax.Tsit5(), 6), (diffrax.Bosh3(), 3)
    shared = device(denoiser, x, *tsit5, shared=True)
    low_order = device(denoiser, x, *bosh3, shared=True)
    methods = {
        ("scipy on the host", tolerance): on_host,
        ("eqdiff, each its own steps", tolerance): device(denoiser, x, *tsit5, shared=False),
        ("eqdiff, shared steps", tolerance): shared,
        # eqdiff holds each example and its log-density to the tolerance, scipy the mean square of the batch: compare at equal error.
        ("eqdiff, shared steps", 10 * tolerance): shared,
        ("eqdiff, shared steps, Bosh3", 10 * tolerance): low_order,
        ("eqdiff, shared steps, Bosh3", 100 * tolerance): low_order,
    }
    # Compiled for any tolerance: with a loose one, which is quick.
    for method in set(methods.values()):
        method(0.5)
    truth, _ = on_host(tolerance / 30)
    cases = {key: lambda f=f, tol=key[1]: f(tol) for key, f in methods.items()}
    measured = in_turns(cases, rounds)
    print(f"\n**{name}, batch {batch}**\n")
    print(
        "| likelihood | tolerance | network calls | ms per image | ms per call | largest error, bits/dim |"
    )
    print("|---|---|---|---|---|---|")
    for (label, tol), (seconds, (found, calls)) in measured.items():
        error = np.abs(found - truth).max() / (x[0].size * np.log(2))
        times = f"{1e3 * seconds / batch:.3g} | {1e3 * seconds / calls:.3g}"
        print(f"| {label} | {tol:g} | {calls} | {times} | {error:.1e} |", flush=True)


def sampling_table(name: str, denoiser: eqd.Denoiser, x: Any, rounds: int) -> None:
    x1 = jax.random.normal(jax.random.key(4), x.shape)

    @eqx.filter_jit
    def separate(denoiser, x1, sampler):
        return jax.vmap(lambda x: sampler.solve(denoiser, x).stats["num_steps"])(x1)

    @eqx.filter_jit
    def shared(denoiser, x1, sampler):
        return sampler.solve(eqd.Batched(denoiser), x1).stats["num_steps"]

    cases = {}
    for tolerance in (1e-2, 1e-4):
        sampler = eqd.ProbabilityFlow(rtol=tolerance, atol=tolerance)
        for label, run in (("each its own", separate), ("shared", shared)):
            cases[tolerance, label] = lambda run=run, sampler=sampler: np.asarray(
                run(denoiser, x1, sampler)
            )
            cases[tolerance, label]()
    measured = in_turns(cases, rounds)
    print(f"\n**{name}, batch {len(x)}, ProbabilityFlow**\n")
    print("| tolerance | steps | network calls | of the mean example | ms per image |")
    print("|---|---|---|---|---|")
    for (tolerance, label), (seconds, num) in measured.items():
        num = 6 * num + 1
        ms = 1e3 * seconds / len(x)
        print(f"| {tolerance:g} | {label} | {num.max()} | {num.mean():.0f} | {ms:.3g} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--network", nargs="+", choices=("mlp", "digits", "cifar10"), default=["mlp", "digits"]
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument(
        "--train-steps", type=int, default=200, help="ten times as many for the mlp"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-sampling", action="store_true", help="only the likelihoods")
    options = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    for name in options.network:
        denoiser, x = problem(name, options.batch, options.train_steps)
        likelihood_table(name, denoiser, x, options.rounds, options.tolerance)
        if not options.no_sampling:
            sampling_table(name, denoiser, x, options.rounds)


if __name__ == "__main__":
    main()
