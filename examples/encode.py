"""Encodes images with a run of train_cifar.py: `python examples/encode.py RUN`.

Decodes between the latents, and at several temperatures. `--help` lists the flags.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from _run import compilation_cache, EXPECTED, fail, load, load_data, num_classes_of
from _score import held_out

import eqdiff as eqd


@dataclasses.dataclass(frozen=True)
class Encode:
    """Carries held-out images to their latents along the probability flow, and back.

    Makes a picture of spherical interpolations, one of temperatures, and a table of the
    reconstruction error against the solver's tolerance.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder that train_cifar.py wrote."""
    pairs: int = 8
    """Rows of the picture, each between two images (of one class, if the model knows classes)."""
    columns: int = 9
    """Pictures in a row, the two ends included."""
    tolerance: float = 1e-4
    """Relative and absolute tolerance of the flow's solver."""
    table: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    """Tolerances of the table."""
    temperatures: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
    """By which latents drawn from the prior are scaled, one row of samples for each."""
    seed: int = 0
    """Of the noise at t0 and of the prior's latents."""
    data_dir: Path | None = None
    """Where the data are, if not where training found them."""
    out: Path | None = None
    """Folder for the pictures (default: RUN)."""


def pairs_of(options: Encode, data, conditional: bool):
    """2 × pairs held-out images, those of a pair next to each other, and their labels."""
    images, labels = held_out(data, max(100, 20 * options.pairs), conditional)
    if labels is not None:
        # Of each class as many as make pairs.
        order = np.argsort(labels, kind="stable")
        starts = [order[labels[order] == c] for c in np.unique(labels)]
        even = [s[: len(s) // 2 * 2].reshape(-1, 2) for s in starts]
        # One pair of each class in turn.
        turns = [pairs[i] for i in range(max(map(len, even))) for pairs in even if i < len(pairs)]
        chosen = np.concatenate(turns)[: 2 * options.pairs]
        return images[chosen], labels[chosen]
    return images[: 2 * options.pairs], None


class Flow(eqx.Module):
    """A denoiser's probability flow in both directions, compiled once for all tolerances."""

    denoiser: eqd.AbstractDenoiser

    def encode(self, x, labels, tolerance: float):
        return self._encode(x, labels, jnp.asarray(tolerance, x.dtype))

    def decode(self, latents, labels, tolerance: float):
        return self._decode(latents, labels, jnp.asarray(tolerance, latents.dtype))

    def sample(self, latents, labels, tolerance: float):
        """What is shown: decoded, and the last noise removed."""
        return self._finish(self.decode(latents, labels, tolerance), labels)

    @eqx.filter_jit
    def _encode(self, x, labels, tolerance):
        flow = eqd.ProbabilityFlow(rtol=tolerance, atol=tolerance)
        return jax.vmap(lambda y, label: flow.encode(self.denoiser, y, label))(x, labels)

    @eqx.filter_jit
    def _decode(self, latents, labels, tolerance):
        flow = eqd.ProbabilityFlow(rtol=tolerance, atol=tolerance)
        return jax.vmap(lambda z, label: flow.decode(self.denoiser, z, label))(latents, labels)

    @eqx.filter_jit
    def _finish(self, x, labels):
        t0 = jnp.asarray(self.denoiser.process.t0, x.dtype)
        return jax.vmap(lambda y, label: self.denoiser(t0, y, label).x0)(x, labels)


def interpolate(flow: Flow, x, labels, options: Encode):
    """Rows of decoded latents, on the circle between those of each pair."""
    latents = flow.encode(x, labels, options.tolerance)
    weights = jnp.linspace(0, 1, options.columns, dtype=x.dtype)
    rows = [
        jax.vmap(lambda w, a=a, b=b: eqd.slerp(a, b, w))(weights)
        for a, b in zip(latents[::2], latents[1::2], strict=True)
    ]
    shown = [
        flow.sample(
            row, None if labels is None else np.repeat(labels[2 * i], len(row)), options.tolerance
        )
        for i, row in enumerate(rows)
    ]
    return np.concatenate(shown)


def reconstruction(flow: Flow, x, labels, options: Encode, levels: int) -> list[str]:
    """A Markdown table: how far from itself an image comes back, in grey levels."""
    lines = ["| tolerance | mean error, grey levels | largest |", "|---|---|---|"]
    for tolerance in options.table:
        latents = flow.encode(x, labels, tolerance)
        back = flow.decode(latents, labels, tolerance)
        error = np.abs(np.asarray(back - x)) * (levels - 1) / 2
        lines.append(f"| {tolerance:g} | {error.mean():.2g} | {error.max():.2g} |")
    return lines


def main(options: Encode) -> None:
    compilation_cache()
    if options.pairs < 1 or options.columns < 2:
        raise ValueError(
            f"--pairs {options.pairs}, --columns {options.columns}: expected at least 1 and 2."
        )
    denoiser, settings = load(options.run)
    classes = num_classes_of(denoiser)
    data = load_data(settings, options.data_dir)
    images, labels = pairs_of(options, data, classes is not None)
    noise_key, prior_key = jax.random.split(jax.random.key(options.seed))
    # The flow's data are x at t0, with the first trace of noise: what a network trained on the grid
    # of pixel values has seen.
    images = jnp.asarray(images)
    noise = jax.random.normal(noise_key, images.shape, images.dtype)
    x = denoiser.process.perturb(denoiser.process.t0, images, noise)
    flow, folder = Flow(denoiser), options.out or options.run
    picture = folder / "encode_interpolation.png"
    rows = interpolate(flow, x, labels, options)
    eqd.data.write_grid(picture, rows, levels=data.levels, columns=options.columns)
    print(picture)
    latents = denoiser.process.prior_sample((options.columns, *data.shape), key=prior_key)
    each = None if classes is None else np.arange(options.columns, dtype=np.int32) % classes
    heated = [
        flow.sample(latents.astype(x.dtype) * t, each, options.tolerance)
        for t in options.temperatures
    ]
    picture = folder / "encode_temperature.png"
    eqd.data.write_grid(
        picture, np.concatenate(heated), levels=data.levels, columns=options.columns
    )
    print(picture)
    print("\n".join(reconstruction(flow, x, labels, options, data.levels)))


if __name__ == "__main__":
    try:
        main(tyro.cli(Encode))
    except EXPECTED as error:
        fail(error)
