"""What is measured: the claims of Improved DDPM, one function each.

Every function returns plain numbers and lists, which are cached as JSON; `report.py` draws and
tabulates them.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import trange

import eqdiff as eqd
from eqdiff.data import Dataset


class Bench:
    """The data, and how much of everything is measured."""

    def __init__(
        self,
        data: Dataset,
        *,
        images: int,
        samples: int,
        terms: int,
        steps: tuple[int, ...],
        seed: int,
    ):
        self.data, self.images, self.samples = data, images, samples
        self.terms, self.steps, self.seed = terms, steps, seed
        real, labels = data.train.take(np.arange(min(len(data.train), 10_000)))
        real = data.normalise(real)
        self.features = eqd.metrics.ClassifierFeatures(real, labels)
        self.reference = self.features(real)

    @property
    def held_out(self) -> np.ndarray:
        """Images that no model has seen."""
        return self.data.held_out(self.images)[0]

    def distance(self, images: np.ndarray) -> float:
        """Fréchet distance to the training images, the reference of the paper's FID too."""
        # As they are shown: on the grey levels of the data.
        half = (self.data.levels - 1) / 2
        shown = np.rint((np.clip(images, -1, 1) + 1) * half) / half - 1
        return eqd.metrics.frechet_distance(self.reference, self.features(shown))

    def quality(self, denoiser: eqd.AbstractDenoiser, timesteps: np.ndarray) -> float:
        """Fréchet distance of samples drawn by ancestral sampling at these increasing steps."""
        samples = eqd.generate(
            eqd.Ancestral(times=timesteps[::-1]),
            eqd.Clip(denoiser),
            self.samples,
            self.data.shape,
            key=jax.random.key(self.seed + 10),
            batch_size=100,
            progress=True,
        )
        return self.distance(samples)

    def bits(self, denoiser: eqd.Denoiser) -> dict[str, float]:
        """The bound on held-out images, x0 clipped as in the official evaluation."""
        assert isinstance(denoiser.process, eqd.Schedule)
        mean = eqd.metrics.bound_bits(
            denoiser,
            self.held_out,
            num_terms=min(self.terms, denoiser.process.num_steps),
            levels=self.data.levels,
            key=jax.random.key(self.seed + 20),
            progress=True,
        )
        return {"value": float(mean.value), "stderr": float(mean.stderr)}


def _schedule(denoiser: eqd.Denoiser) -> eqd.Schedule:
    assert isinstance(denoiser.process, eqd.Schedule)
    return denoiser.process


def _with(denoiser: eqd.Denoiser, **parts: Any) -> eqd.Denoiser:
    """The same network on another schedule or with another variance."""
    kept = {"net": denoiser.net, "process": denoiser.process, "variance": denoiser.variance} | parts
    return eqd.Denoiser(
        kept["net"], kept["process"], denoiser.parameterisation, variance=kept["variance"]
    )


def even(num_timesteps: int, num_steps: int) -> np.ndarray:
    """Evenly spaced steps, the first and the last of the schedule among them."""
    return eqd.section_timesteps(num_timesteps, (num_steps,))


def first_steps(bench: Bench, denoisers: dict[str, eqd.Denoiser]) -> dict:
    """Claim 1: β̃ and β differ at the first steps only, and those carry most of the bound."""
    ratios = {}
    for length in (100, 1000, 4000):
        schedule = eqd.cosine_schedule(length)
        ratios[length] = (schedule.posterior_variance / schedule.betas).tolist()
    terms = {}
    for name, denoiser in denoisers.items():
        clipped = eqd.Clip(denoiser)

        def bound(image, key, clipped=clipped):
            return eqd.variational_bound(clipped, image, key=key, levels=bench.data.levels).terms

        print(f"Terms of the bound, {name}:")
        key = jax.random.key(bench.seed + 30)
        each = eqd.map_examples(bound, bench.held_out[:50], key=key, batch_size=10, progress=True)
        terms[name] = each.mean(axis=0).tolist()
    return {"ratios": ratios, "terms": terms}


def skipped_prefix(bench: Bench, denoisers: dict[str, eqd.Denoiser]) -> dict:
    """Claim 2: sampling that starts late, from noise where the images should still show."""
    fractions = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
    result: dict[str, Any] = {"fractions": fractions}
    for name, denoiser in denoisers.items():
        length = _schedule(denoiser).num_steps
        kept = even(length, min(100, length))
        result[name] = []
        for fraction in fractions:
            print(f"Skipping {fraction:.0%} of the reverse process, {name}:")
            # The stride stays as it is: the steps that are left are those of the whole process.
            result[name].append(bench.quality(denoiser, kept[kept < (1 - fraction) * length]))
    return result


def gradient_noise(
    bench: Bench, net: Any, losses: dict[str, tuple[Callable, eqd.AbstractTimesteps, Any]]
) -> dict:
    """Claim 3: the noise scale tr Σ/|G|² of each objective's gradient, at the same weights.

    Σ is the covariance of one example's gradient and G its mean: the batch size at which noise and
    signal are equal (McCandlish et al. 2018). Late in training G all but vanishes, and what is left
    is a lower bound. Each loss comes with its times and their state.
    """
    batch, num_batches = 64, 100
    images, _ = bench.data.train.take(np.arange(len(bench.data.train)))
    params, static = eqx.partition(net, eqx.is_inexact_array)
    result = {}
    for name, (loss_fn, timesteps, state) in losses.items():

        @eqx.filter_jit
        def gradient(x0, key, loss_fn=loss_fn, timesteps=timesteps, state=state):
            times_key, noise_key = jax.random.split(key)
            t, weights = timesteps.sample(state, batch, key=times_key)
            keys = jax.random.split(noise_key, batch)

            def mean_loss(params):
                net = eqx.combine(params, static)
                loss = jax.vmap(lambda *a: loss_fn(net, *a[:2], None, key=a[2])[0])(t, x0, keys)
                return jnp.mean(weights.astype(loss.dtype) * loss)

            return jnp.concatenate(
                [jnp.ravel(g) for g in jax.tree.leaves(jax.grad(mean_loss)(params))]
            )

        order = np.random.RandomState(bench.seed)
        total, squares = 0.0, 0.0
        for i in trange(num_batches, desc=f"gradients, {name}"):
            x0 = bench.data.normalise(images[order.randint(len(images), size=batch)])
            g = np.asarray(
                gradient(x0, jax.random.fold_in(jax.random.key(bench.seed + 40), i)), np.float64
            )
            total, squares = total + g, squares + np.sum(g**2)
        mean = total / num_batches
        variance = (squares - num_batches * np.sum(mean**2)) / (num_batches - 1)
        # |mean|² is too large by what noise is left in the mean, and known to a fifth of that.
        left = variance / num_batches
        signal = np.sum(mean**2) - left
        result[name] = {
            "variance": float(batch * variance),
            "noise_scale": float(batch * variance / max(signal, 0.2 * left)),
            "is_a_lower_bound": bool(signal < 0.2 * left),
        }
    return result


def warmed_up(
    bench: Bench, net: Any, loss_fn: Callable, timesteps: eqd.AbstractTimesteps, passes: int
) -> Any:
    """The state of a strategy that has watched a frozen network for `passes` batches of 256."""
    images, _ = bench.data.train.take(np.arange(len(bench.data.train)))

    @eqx.filter_jit
    def watch(state, x0, key):
        times_key, noise_key = jax.random.split(key)
        t, _ = timesteps.sample(state, len(x0), key=times_key)
        keys = jax.random.split(noise_key, len(x0))
        losses = jax.vmap(lambda *a: loss_fn(net, *a[:2], None, key=a[2])[0])(t, x0, keys)
        return timesteps.update(state, t, losses)

    state, order = timesteps.init(), np.random.RandomState(bench.seed)
    for i in trange(passes, desc="warm-up of importance sampling"):
        x0 = bench.data.normalise(images[order.randint(len(images), size=256)])
        state = watch(state, x0, jax.random.fold_in(jax.random.key(bench.seed + 50), i))
    return state


def objectives(bench: Bench, denoisers: dict[str, eqd.Denoiser]) -> dict:
    """Claim 4: bits/dim and sample quality of each objective at equal steps of training."""
    result = {}
    for name, denoiser in denoisers.items():
        print(f"{name}:")
        length = _schedule(denoiser).num_steps
        result[name] = bench.bits(denoiser) | {
            "frechet": bench.quality(
                denoiser, even(length, max(k for k in bench.steps if k <= length))
            )
        }
    return result


def fewer_steps(bench: Bench, learned: eqd.Denoiser, fixed: eqd.Denoiser, key: jax.Array) -> dict:
    """Claim 5: bits/dim and sample quality against the number of steps, by variance.

    Beyond the paper: the analytic variance (Bao et al. 2022) on the fixed network, and the steps
    that dynamic programming over the terms of the bound chooses (Watson et al. 2021) for the
    learned one.
    """
    schedule = _schedule(learned)
    images, _ = bench.data.train.take(np.arange(min(len(bench.data.train), 128)))
    images = jnp.asarray(bench.data.normalise(images))
    grid = even(schedule.num_steps, min(100, schedule.num_steps))
    # Noise errors change slowly with time: those between the grid's steps are interpolated.
    coarse = _with(fixed, process=eqd.respace(_schedule(fixed), grid))
    analytic_key, terms_key = jax.random.split(key)
    variants = {
        "learned": learned,
        "β": _with(fixed, variance=eqd.FixedLarge()),
        "β̃": _with(fixed, variance=eqd.FixedSmall()),
        "analytic": _with(fixed, variance=eqd.analytic_variance(coarse, images, key=analytic_key)),
    }
    terms = eqd.pairwise_terms(
        eqd.Clip(learned), images[:64], grid, key=terms_key, levels=bench.data.levels
    )
    result: dict[str, Any] = {"steps": bench.steps}
    for name, denoiser in variants.items():
        result[name] = _along(
            bench, denoiser, {k: even(schedule.num_steps, k) for k in bench.steps}
        )
    result["learned, best steps"] = _along(
        bench, learned, {k: eqd.optimal_timesteps(terms, k) for k in bench.steps if k <= len(grid)}
    )
    return result


def _along(bench: Bench, denoiser: eqd.Denoiser, spacings: dict[int, np.ndarray]) -> dict:
    bits, quality = [], []
    for steps, kept in spacings.items():
        print(f"{steps} steps, {type(denoiser.variance).__name__}:")
        bits.append(bench.bits(_with(denoiser, process=eqd.respace(_schedule(denoiser), kept))))
        quality.append(bench.quality(denoiser, kept))
    return {"bits": bits, "frechet": quality, "steps": list(spacings)}
