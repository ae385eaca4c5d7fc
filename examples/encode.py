"""Encodes images with a run of train_cifar.py: `python examples/encode.py RUN`.

Decodes between the latents, and at several temperatures. `--help` lists the flags.
"""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from likelihood import held_out
from sample import load
from tyro.conf import Positional

import eqdiff as eqd


def paired(images, labels, num: int):
    """2 × num of the images, those of a pair next to each other, and their labels."""
    if labels is None:
        return images[: 2 * num], None
    # Of each class as many as make pairs.
    each = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    even = [s[: len(s) // 2 * 2].reshape(-1, 2) for s in each]
    # One pair of each class in turn.
    turns = [pairs[i] for i in range(max(map(len, even))) for pairs in even if i < len(pairs)]
    chosen = np.concatenate(turns)[: 2 * num]
    return images[chosen], labels[chosen]


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


def interpolate(flow: Flow, x, labels, columns: int, tolerance: float):
    """Rows of decoded latents, on the circle between those of each pair."""
    latents = flow.encode(x, labels, tolerance)
    weights = jnp.linspace(0, 1, columns, dtype=x.dtype)
    rows = [
        jax.vmap(lambda w, a=a, b=b: eqd.slerp(a, b, w))(weights)
        for a, b in zip(latents[::2], latents[1::2], strict=True)
    ]
    shown = [
        flow.sample(row, None if labels is None else np.repeat(labels[2 * i], len(row)), tolerance)
        for i, row in enumerate(rows)
    ]
    return np.concatenate(shown)


def reconstruction(flow: Flow, x, labels, tolerances: tuple[float, ...], levels: int) -> list[str]:
    """A Markdown table: how far from itself an image comes back, in grey levels."""
    lines = ["| tolerance | mean error, grey levels | largest |", "|---|---|---|"]
    for tolerance in tolerances:
        latents = flow.encode(x, labels, tolerance)
        back = flow.decode(latents, labels, tolerance)
        error = np.abs(np.asarray(back - x)) * (levels - 1) / 2
        lines.append(f"| {tolerance:g} | {error.mean():.2g} | {error.max():.2g} |")
    return lines


def main(
    run: Positional[Path],
    pairs: int = 8,
    columns: int = 9,
    tolerance: float = 1e-4,
    table: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5),
    temperatures: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1),
    seed: int = 0,
    data_dir: Path | None = None,
    out: Path | None = None,
) -> None:
    """Carries held-out images to their latents along the probability flow, and back.

    Makes a picture of spherical interpolations, one of temperatures, and a table of the
    reconstruction error against the solver's tolerance.

    Args:
        run: folder that train_cifar.py wrote.
        pairs: rows of the picture, each between two images (of one class, if the model knows
            classes).
        columns: pictures in a row, the two ends included.
        tolerance: relative and absolute, of the flow's solver.
        table: tolerances of the table.
        temperatures: by which latents drawn from the prior are scaled, one row of samples for each.
        seed: of the noise at t0 and of the prior's latents.
        data_dir: where the data are, if not where training found them.
        out: folder for the pictures (default: RUN).
    """
    if pairs < 1 or columns < 2:
        raise ValueError(f"--pairs {pairs}, --columns {columns}: expected at least 1 and 2.")
    denoiser, settings = load(run)
    classes = settings["num_classes"]
    data, images, labels = held_out(settings, max(100, 20 * pairs), data_dir)
    images, labels = paired(images, labels, pairs)
    noise_key, prior_key = jax.random.split(jax.random.key(seed))
    # The flow's data are x at t0, with the first trace of noise: what a network trained on the grid
    # of pixel values has seen.
    images = jnp.asarray(images)
    noise = jax.random.normal(noise_key, images.shape, images.dtype)
    x = denoiser.process.perturb(denoiser.process.t0, images, noise)
    flow, folder = Flow(denoiser), out or run
    picture = folder / "encode_interpolation.png"
    rows = interpolate(flow, x, labels, columns, tolerance)
    eqd.data.write_grid(picture, rows, levels=data.levels, columns=columns)
    print(picture)
    latents = denoiser.process.prior_sample((columns, *data.shape), key=prior_key)
    each = None if classes is None else np.arange(columns, dtype=np.int32) % classes
    heated = [flow.sample(latents.astype(x.dtype) * t, each, tolerance) for t in temperatures]
    picture = folder / "encode_temperature.png"
    eqd.data.write_grid(picture, np.concatenate(heated), levels=data.levels, columns=columns)
    print(picture)
    print("\n".join(reconstruction(flow, x, labels, table, data.levels)))


if __name__ == "__main__":
    eqd.train.command(main)
