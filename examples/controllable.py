"""Repairs held-out images with a run of train_cifar.py: `python examples/controllable.py RUN`.

`--help` lists the flags. Half of each image is filled in, an image of half the size is enlarged,
and a noisy one is cleaned, with one network that was trained for none of it.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from likelihood import held_out
from sample import load
from tyro.conf import Positional

import eqdiff as eqd


# The small image is known to about the rounding of its grey levels.
_SMALL_STD = 0.05


def between(process: eqd.AbstractProcess, num_steps: int):
    """Times from t1, without a schedule's last step if its rate was clipped.

    At that step nothing is left of the image to guide. Evenly spaced, but for EDM's noise levels.
    """
    if isinstance(process, eqd.EDMSDE):
        return eqd.karras_times(process, num_steps)
    return jnp.linspace(process.t1, process.t0, num_steps)


def left_half(shape):
    """A mask of the pixels in the left half."""
    _, height, width = shape
    return np.broadcast_to(np.arange(width) < width // 2, (height, width))


def shrink(x):
    """Means of 2×2 pixels."""
    channels, height, width = x.shape
    return x.reshape(channels, height // 2, 2, width // 2, 2).mean((2, 4))


def enlarge(x):
    """Each pixel as 2×2, to look at."""
    return x.repeat(2, axis=-2).repeat(2, axis=-1)


def from_noise(sampler: eqd.AbstractSampler, denoiser: eqd.AbstractDenoiser, shape, label, key):
    """One sample."""
    prior_key, path_key = jax.random.split(key)
    x1 = denoiser.process.prior_sample(shape, key=prior_key)
    # Clipped outside of any guidance: a clipped estimate has no derivative.
    return sampler(eqd.Clip(denoiser), x1, label, key=path_key)


def inpainter(denoiser: eqd.AbstractDenoiser, num_steps: int, repeats: int) -> Callable:
    """A function of an image, its class and a key that fills in the right half of the image."""

    def one(image, label, key):
        known = eqd.Inpaint(image, left_half(image.shape))
        if isinstance(denoiser.process, eqd.Schedule):
            chain = eqd.Ancestral(num_steps)
        else:
            chain = eqd.DDIM(num_steps, spacing=between, eta=1.0)
        sampler = eqd.Constrained(chain, known, repeats=repeats)
        return from_noise(sampler, denoiser, image.shape, label, key)

    return one


def solver(
    denoiser: eqd.AbstractDenoiser, operator: Callable, std: float, shape, num_steps: int
) -> Callable:
    """A function of a noisy linear measurement, a class and a key: an image that would give it."""

    def one(y, label, key):
        guided = eqd.PosteriorGuidance(denoiser, eqd.Measurement(y, operator, std))
        sampler = eqd.DDIM(num_steps, spacing=between, eta=1.0)
        return from_noise(sampler, guided, shape, label, key)

    return one


def main(
    run: Positional[Path],
    num: int = 10,
    num_steps: int = 100,
    repeats: int = 10,
    noise: float = 0.5,
    seed: int = 0,
    batch_size: int = 50,
    data_dir: Path | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Inpainting, super-resolution by 2 and denoising of held-out images.

    Writes a picture of seven rows (PNG): the images; the left half of each, and what inpainting
    makes of it; the small image, and enlarged; the noisy image, and denoised.

    Args:
        run: folder that train_cifar.py wrote.
        num: how many images.
        num_steps: steps of the samplers.
        repeats: how often inpainting makes each step (RePaint); it costs as many times what
            sampling does.
        noise: standard deviation of the noise that is removed, for images on [-1, 1].
        seed: of the measurements and of the samples.
        batch_size: images at once.
        data_dir: where the data are, if not where training found them.
        out: name of the picture (default: RUN/controllable.png).
        overwrite: replace a picture that is there.
    """
    denoiser, settings = load(run)
    if not noise > 0:
        raise ValueError(f"--noise {noise}: expected a positive standard deviation.")
    picture = out or run / "controllable.png"
    if picture.exists() and not overwrite:
        raise FileExistsError(f"{picture} exists: choose another name with --out, or --overwrite.")
    data, images, labels = held_out(settings, num, data_dir)
    _, height, width = data.shape
    if height % 2 or width % 2:
        raise ValueError(f"Images of {height}x{width} cannot be halved; both sides must be even.")
    measure_key, *keys = jax.random.split(jax.random.key(seed), 4)

    def repair(title, function, given, key):
        print(title)
        shared = {"key": key, "batch_size": batch_size, "progress": True}
        return eqd.map_examples(function, given, labels, **shared)

    small = jax.vmap(shrink)(jnp.asarray(images))
    noisy = images + noise * jax.random.normal(measure_key, images.shape)
    shape = data.shape
    inpaint = inpainter(denoiser, num_steps, repeats)
    supersample = solver(denoiser, shrink, _SMALL_STD, shape, num_steps)
    denoise = solver(denoiser, lambda x: x, noise, shape, num_steps)
    rows = [
        images,
        np.where(left_half(shape), images, 0),
        repair("inpainting", inpaint, images, keys[0]),
        enlarge(np.asarray(small)),
        repair("super-resolution", supersample, small, keys[1]),
        np.asarray(noisy),
        repair("denoising", denoise, noisy, keys[2]),
    ]
    eqd.data.write_grid(picture, np.concatenate(rows), levels=data.levels, columns=len(images))
    for name, row, given in (("the noisy images", 5, 6), ("the small images", 3, 4)):
        before, after = (float(np.sqrt(np.mean((rows[i] - images) ** 2))) for i in (row, given))
        print(f"{name}: root mean square error {before:.3f}, repaired {after:.3f}")
    print(picture)


if __name__ == "__main__":
    eqd.train.command(main)
