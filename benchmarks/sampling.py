"""What sampling and scoring cost beyond the network.

Microseconds per step of a sampler, and images per second of the bound.

    python benchmarks/sampling.py                       # CIFAR-10 shapes, against its U-Net
    python benchmarks/sampling.py --batch 64 --steps 200

A sampler with a network that costs nothing is timed against one call of the real network at the
same shapes: the difference between a sampler and its network calls. All cases are measured in turns
and the best round of each is kept.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from tqdm import trange

import eqdiff as eqd


SHAPE = (3, 32, 32)


def identity(c_noise, x, args=None, *, key=None):
    """A network that costs nothing, with variance outputs."""
    return jnp.concatenate([x, x])


def sampler_case(
    sampler: eqd.AbstractSampler, schedule: eqd.Schedule, batch: int
) -> Callable[[], Any]:
    denoiser = eqd.Clip(eqd.Denoiser(identity, schedule, variance=eqd.LearnedRange()))
    x1 = jax.random.normal(jax.random.key(0), (batch, *SHAPE))
    keys = jax.random.split(jax.random.key(1), batch)

    @jax.jit
    def run(x1, keys):
        return jax.vmap(lambda x, key: sampler(denoiser, x, key=key))(x1, keys)

    return lambda: jax.block_until_ready(run(x1, keys))


def network_case(net: Any, batch: int) -> Callable[[], Any]:
    x, c_noise = jnp.zeros((batch, *SHAPE)), jnp.zeros(batch)
    forward = eqx.filter_jit(lambda net, c_noise, x: jax.vmap(net)(c_noise, x))
    return lambda: jax.block_until_ready(forward(net, c_noise, x))


def bound_case(
    net: Any, schedule: eqd.Schedule, batch: int, terms: int | None
) -> Callable[[], Any]:
    """Every term of the bound (`None`), or an estimate from `terms` of them."""
    denoiser = eqd.Denoiser(net, schedule, variance=eqd.LearnedRange())
    images = -jnp.ones((batch, *SHAPE))  # Black, which is one of the grey levels.
    keys = jax.random.split(jax.random.key(2), batch)

    @eqx.filter_jit
    def run(denoiser, images, keys):
        def one(image, key):
            return eqd.variational_bound(denoiser, image, key=key, num_terms=terms).bits

        return jax.vmap(one)(images, keys)

    return lambda: jax.block_until_ready(run(denoiser, images, keys))


def best_of(cases: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of the best call of each case, in turns; the first round compiles, uncounted."""
    best = dict.fromkeys(cases, float("inf"))
    for number in trange(rounds + 1, desc="rounds"):
        for name, call in cases.items():
            start = time.perf_counter()
            call()
            if number > 0:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100, help="of the timed samplers and bounds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", help="that the U-Net computes in")
    options = parser.parse_args()
    batch, steps = options.batch, options.steps
    full = eqd.cosine_schedule(4000)
    spaced = eqd.respace(full, eqd.section_timesteps(4000, (steps,)))
    dtype = jnp.dtype(options.dtype)
    net = eqd.nn.presets.iddpm_cifar10(key=jax.random.key(0), compute_dtype=dtype)
    shape, style = eqd.nn.UNetShape(3, 6, 32, 1, (1, 2)), eqd.nn.styles.iddpm(norm_groups=8)
    small = eqd.nn.UNet(shape, style, eqd.nn.embeddings.iddpm(), key=jax.random.key(0))
    cases = {
        "ancestral step": sampler_case(eqd.Ancestral(), spaced, batch),
        "DDIM step": sampler_case(eqd.DDIM(steps), full, batch),
        "DDIM step, η = 1": sampler_case(eqd.DDIM(steps, eta=1.0), full, batch),
        "U-Net call": network_case(net, batch),
        "small U-Net call": network_case(small, batch),
        "bound, every step": bound_case(small, spaced, batch, None),
        "bound, estimate": bound_case(small, full, batch, steps),
    }
    best = best_of(cases, options.rounds)
    print(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}, batch {batch}, {options.dtype}\n"
    )
    print("| per step of the whole batch | μs | share of a CIFAR-10 U-Net call |\n|---|---|---|")
    call = best["U-Net call"]
    for name in ("ancestral step", "DDIM step", "DDIM step, η = 1"):
        print(
            f"| {name} | {1e6 * best[name] / steps:.0f} | {100 * best[name] / steps / call:.2f} % |"
        )
    print(f"| U-Net call | {1e6 * call:.0f} | |")
    calls = steps * best["small U-Net call"]
    print(
        f"\n| bound of {steps} terms, small U-Net | images/s | time over that of its network calls "
        "|\n|---|---|---|"
    )
    for name in ("bound, every step", "bound, estimate"):
        print(f"| {name} | {batch / best[name]:.2f} | {best[name] / calls:.2f} |")


if __name__ == "__main__":
    main()
