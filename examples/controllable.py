"""Repairs held-out images with a run of train_cifar.py: `python examples/controllable.py RUN` (`--help` for its flags).

Half of each image is filled in, an image of half the size is enlarged, and a noisy one is cleaned, with one network that was trained for
none of it.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from _run import compilation_cache, continuous, EXPECTED, fail, load, load_data, num_classes_of
from _score import held_out

import eqdiff as eqd


@dataclasses.dataclass(frozen=True)
class Controllable:
    """Inpainting, super-resolution by 2 and denoising of held-out images. Writes a picture of seven rows (PNG): the images; the left half
    of each, and what inpainting makes of it; the small image, and enlarged; the noisy image, and denoised."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder that train_cifar.py wrote."""
    num: int = 10
    """How many images."""
    num_steps: int = 100
    """Steps of the samplers."""
    repeats: int = 10
    """How often inpainting makes each step (RePaint); its cost is as many times that of sampling."""
    noise: float = 0.5
    """Standard deviation of the noise that is removed, for images on [-1, 1]."""
    seed: int = 0
    """Of the measurements and of the samples."""
    batch_size: int = 50
    """Images at once."""
    data_dir: Path | None = None
    """Where the data are, if not where training found them."""
    out: Path | None = None
    """Name of the picture (default: RUN/controllable.png)."""
    overwrite: bool = False
    """Replace a picture that is there."""


# The small image is known to about the rounding of its grey levels.
_SMALL_STD = 0.05


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


class Inpainted(eqd.AbstractSampler):
    """Fills in the right half of an image; `args` are the image and its class."""

    num_steps: int = eqx.field(static=True)
    repeats: int = eqx.field(static=True)

    def __call__(self, denoiser, x1, args=None, *, key=None):
        image, label = args
        known = eqd.Inpaint(image, left_half(image.shape))
        sampler = eqd.Constrained(eqd.Ancestral(self.num_steps), known, repeats=self.repeats)
        return sampler(eqd.Clip(denoiser), x1, label, key=key)


class Measured(eqd.AbstractSampler):
    """Samples given a noisy linear measurement; `args` are the measurement and the class."""

    operator: Callable = eqx.field(static=True)
    std: float = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)

    def __call__(self, denoiser, x1, args=None, *, key=None):
        y, label = args
        guided = eqd.PosteriorGuidance(denoiser, y, self.operator, self.std)
        # Clipped outside: a clipped estimate has no derivative.
        return eqd.DDIM(self.num_steps, eta=1.0)(eqd.Clip(guided), x1, label, key=key)


def main(options: Controllable) -> None:
    compilation_cache()
    denoiser, settings = load(options.run)
    if options.num < 1 or options.batch_size < 1:
        raise ValueError(
            f"--num {options.num}, --batch-size {options.batch_size}: expected at least 1."
        )
    if not options.noise > 0:
        raise ValueError(f"--noise {options.noise}: expected a positive standard deviation.")
    picture = options.out or options.run / "controllable.png"
    if picture.exists() and not options.overwrite:
        raise FileExistsError(f"{picture} exists: choose another name with --out, or --overwrite.")
    data = load_data(settings, options.data_dir)
    images, labels = held_out(data, options.num, num_classes_of(denoiser) is not None)
    _, height, width = data.shape
    if height % 2 or width % 2:
        raise ValueError(f"Images of {height}x{width} cannot be halved; both sides must be even.")
    measure_key, *keys = jax.random.split(jax.random.key(options.seed), 4)

    def draw(title, sampler, denoiser, given, key):
        print(title)
        return eqd.generate(
            sampler,
            denoiser,
            len(images),
            data.shape,
            key=key,
            args=(given, labels),
            batch_size=options.batch_size,
            progress=True,
        )

    small = jax.vmap(shrink)(jnp.asarray(images))
    noisy = images + options.noise * jax.random.normal(measure_key, images.shape)
    # Without the chain's last step, at which nothing is left of the image.
    flow = continuous(denoiser)
    inpainted = Inpainted(options.num_steps, options.repeats)
    enlarged = Measured(shrink, _SMALL_STD, options.num_steps)
    denoised = Measured(lambda x: x, options.noise, options.num_steps)
    rows = [
        images,
        np.where(left_half(data.shape), images, 0),
        draw("inpainting", inpainted, denoiser, images, keys[0]),
        enlarge(np.asarray(small)),
        draw("super-resolution", enlarged, flow, small, keys[1]),
        np.asarray(noisy),
        draw("denoising", denoised, flow, noisy, keys[2]),
    ]
    eqd.data.write_grid(picture, np.concatenate(rows), levels=data.levels, columns=len(images))
    for name, row, given in (("the noisy images", 5, 6), ("the small images", 3, 4)):
        before, after = (float(np.sqrt(np.mean((rows[i] - images) ** 2))) for i in (row, given))
        print(f"{name}: root mean square error {before:.3f}, repaired {after:.3f}")
    print(picture)


if __name__ == "__main__":
    try:
        main(tyro.cli(Controllable))
    except EXPECTED as error:
        fail(error)
