"""Seconds per image of an exact likelihood, against a solver on the host; and shared against separate steps.

    python benchmarks/likelihood.py                                    # a trained perceptron and a digits U-Net, batch 64
    python benchmarks/likelihood.py --network cifar10 --batch 2 --rounds 1

The host's solve is the way of the official score-SDE code: scipy's RK45 on the whole batch flattened, its state in float64, around the
same network and divergence, compiled. Errors are against the same network's likelihood at a tolerance of 1e-8 on the host.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

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


def mixture(dim: int, num: int = 5) -> eqd.GaussianMixtureDenoiser:
    rng = np.random.default_rng(0)
    means = rng.uniform(-1, 1, (num, dim))
    return eqd.GaussianMixtureDenoiser(
        SDE, np.ones(num), means, np.tile(0.05 * np.eye(dim), (num, 1, 1))
    )


def trained(net: Any, shape: tuple[int, ...], steps: int) -> eqd.Denoiser:
    """A network that has learned a mixture for a moment, so that its flow is neither constant nor wild."""
    data = mixture(int(np.prod(shape)))
    optimiser = optax.adam(1e-3)
    params, static = eqx.partition(net, eqx.is_inexact_array)

    def loss(params, key):
        def one(key):
            k1, k2, k3 = jax.random.split(key, 3)
            x0 = data.data_sample(key=k1).reshape(shape).astype(jnp.float32)
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
        net, shape = eqd.nn.unet_cifar10(key=key, out_channels=3), (3, 32, 32)
        # Not trained, which would take days; arrays that start at zero get values.
        rng = np.random.default_rng(0)

        def fill(p):
            noise = 0.02 * rng.standard_normal(p.shape).astype(np.float32)
            return jnp.where(p == 0, noise, p) if eqx.is_inexact_array(p) else p

        denoiser = eqd.Denoiser(jax.tree.map(fill, net), SDE)
    keys = jax.random.split(jax.random.key(2), batch)
    data = mixture(int(np.prod(shape)))
    x = jax.vmap(lambda k: data.data_sample(key=k).reshape(shape))(keys)
    return denoiser, x.astype(jnp.float32)


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
            return np.concatenate(
                [np.asarray(velocity).ravel(), np.asarray(rate).ravel()]
            ).astype(np.float64)

        start = np.concatenate([np.asarray(x).ravel(), np.zeros(len(x))]).astype(np.float64)
        found = integrate.solve_ivp(
            rhs, (1e-5, 1), start, rtol=tolerance, atol=tolerance, method="RK45"
        )
        latent = jnp.asarray(found.y[: x.size, -1], jnp.float32).reshape(x.shape)
        prior = np.asarray(jax.vmap(SDE.prior_log_prob)(latent))
        return prior + found.y[x.size :, -1], found.nfev

    return solve


def device(denoiser: eqd.Denoiser, x: Any, shared: bool):
    """The same by eqdiff, with the same probes."""
    keys = jax.random.split(LIKELIHOOD_KEY, len(x))

    @eqx.filter_jit
    def run(denoiser, x, tolerance):
        options = {"rtol": tolerance, "atol": tolerance}
        if shared:
            return eqd.log_likelihood(eqd.Batched(denoiser), x, key=LIKELIHOOD_KEY, **options)
        return jax.vmap(lambda y, k: eqd.log_likelihood(denoiser, y, key=k, **options))(x, keys)

    def solve(tolerance: float) -> tuple[np.ndarray, int]:
        found = run(denoiser, x, jnp.float32(tolerance))
        # Under vmap the loop runs until the slowest example is done.
        return np.asarray(found.log_prob), 6 * int(np.max(found.stats["num_steps"])) + 1

    return solve


def best(run: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    run()  # compiles
    seconds = []
    for _ in trange(rounds, leave=False):
        start = time.perf_counter()
        answer = run()
        seconds.append(time.perf_counter() - start)
    return min(seconds), answer


def likelihood_table(name: str, batch: int, steps: int, rounds: int, tolerance: float) -> None:
    denoiser, x = problem(name, batch, steps)
    scipy = host(denoiser, x)
    methods = {
        "scipy on the host": scipy,
        "eqdiff, each its own steps": device(denoiser, x, False),
        "eqdiff, shared steps": device(denoiser, x, True),
    }
    truth, _ = scipy(1e-8 if name != "cifar10" else 1e-6)
    print(f"\n**{name}, batch {batch}, tolerance {tolerance:g}**\n")
    print("| likelihood | network calls | ms per image | ms per call | largest error, bits/dim |")
    print("|---|---|---|---|---|")
    for label, method in methods.items():
        seconds, (found, calls) = best(lambda method=method: method(tolerance), rounds)
        error = np.abs(found - truth).max() / (x[0].size * np.log(2))
        print(
            f"| {label} | {calls} | {1e3 * seconds / batch:.3g} | {1e3 * seconds / calls:.3g} | {error:.1e} |",
            flush=True,
        )


def sampling_table(name: str, batch: int, steps: int, rounds: int) -> None:
    denoiser, x = problem(name, batch, steps)
    x1 = jax.random.normal(jax.random.key(4), x.shape)
    print(f"\n**{name}, batch {batch}, ProbabilityFlow**\n")
    print("| tolerance | steps | network calls, slowest | mean | ms per image |\n|---|---|---|---|---|")
    for tolerance in (1e-2, 1e-4):
        sampler = eqd.ProbabilityFlow(rtol=tolerance, atol=tolerance)

        @eqx.filter_jit
        def separate(denoiser, x1, sampler=sampler):
            found = jax.vmap(lambda x: sampler.solve(denoiser, x))(x1)
            return found.ys, found.stats["num_steps"]

        @eqx.filter_jit
        def shared(denoiser, x1, sampler=sampler):
            found = sampler.solve(eqd.Batched(denoiser), x1)
            return found.ys, found.stats["num_steps"]

        for label, run in (("each its own", separate), ("shared", shared)):
            seconds, (_, num) = best(
                lambda run=run: jax.block_until_ready(run(denoiser, x1)), rounds
            )
            num = 6 * np.asarray(num) + 1
            print(
                f"| {tolerance:g} | {label} | {num.max()} | {num.mean():.0f} | {1e3 * seconds / batch:.3g} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--network", nargs="+", choices=("mlp", "digits", "cifar10"), default=["mlp", "digits"]
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--train-steps", type=int, default=200, help="ten times as many for the mlp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-sampling", action="store_true", help="only the likelihoods")
    options = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    for name in options.network:
        likelihood_table(
            name, options.batch, options.train_steps, options.rounds, options.tolerance
        )
        if not options.no_sampling:
            sampling_table(name, options.batch, options.train_steps, options.rounds)


if __name__ == "__main__":
    main()
