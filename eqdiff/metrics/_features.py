r"""Features of images, on which all metrics of sample quality rest.

A feature network maps one image to a vector. What published networks were fed are 8-bit images, so
samples in $[-1, 1]$ are first put on the 256 grey levels

$$k = \operatorname{round}\big(\operatorname{clip}(127.5\,(x + 1), 0, 255)\big). \tag{1}$$

Published code disagrees about the rounding. EDM (Karras et al. 2022) takes the nearest level;
improved-diffusion, guided-diffusion and score_sde convert to integers, which takes the level
*below*, and so compare images that are half a level too dark. Nearest is the default here, because
it returns real images exactly; `jnp.floor` is the other.
"""

import abc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, Float32, Shaped, UInt8

from .._check import whole
from .._map import map_examples
from ._classifier import ClassifierFeatures


# Blocks of an iterable's images have as many batches: long enough to keep a device busy, and at
# 256×256 no more than a few hundred megabytes.
_BATCHES = 10

# Samples overshoot [−1, 1] a little; 8-bit values given as floats go far beyond.
_LARGEST = 8.0


class AbstractFeatures(eqx.Module):
    """A network that maps one image to a vector of features.

    Write your own as a subclass with a `name` and `__call__`; any other function of one image
    serves as well, but its name is then not kept with the statistics.

    **Fields:**

    - `name`: which network it is, with everything that changes its numbers, such as how images are
        resized. Statistics carry it, so that those of two networks are never compared.
    """

    name: eqx.AbstractVar[str]

    @abc.abstractmethod
    def __call__(self, image: Shaped[Array, "channels height width"]) -> Float[Array, " d"]:
        """The features of one image, uint8 or floats in [-1, 1]."""


def to_uint8(
    image: Shaped[ArrayLike, "..."], *, rounding: Callable[[Array], Array] = jnp.round
) -> UInt8[Array, "..."]:
    """Puts an image in [-1, 1] on 8-bit grey levels by equation (1), inside compiled programs too.

    **Arguments:**

    - `image`: floats, clipped to [-1, 1]; uint8 is returned as it is.
    - `rounding`: `jnp.round` to the nearest level, as EDM does; `jnp.floor` to the one below, as
        improved-diffusion, guided-diffusion and score_sde do.

    **Returns:** uint8 of the same shape.

    **Raises:** `TypeError` for other integers.

    **Example:**

    ```python
    pixels = eqd.metrics.to_uint8(jnp.array([-1.0, 0.0, 1.0]), rounding=jnp.floor)
    ```
    """
    image = jnp.asarray(image)
    if image.dtype == jnp.uint8:
        return image
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise TypeError(f"to_uint8 got {image.dtype}, expected uint8 or floats in [-1, 1].")
    if image.dtype.itemsize < 4:
        # bfloat16 does not hold 255 levels.
        image = image.astype(jnp.float32)
    return rounding(jnp.clip((image + 1) * 127.5, 0, 255)).astype(jnp.uint8)


def extract(
    features: Callable[[Array], Array] | ClassifierFeatures,
    images: Shaped[ArrayLike, "n ..."] | Iterable[Shaped[ArrayLike, "_ ..."]],
    *,
    batch_size: int = 50,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> Float32[np.ndarray, "n d"]:
    """The features of many images, in chunks of one compiled program.

    **Arguments:**

    - `features`: an [`eqdiff.metrics.AbstractFeatures`][], or any function of one image; or an
        [`eqdiff.metrics.ClassifierFeatures`][], which runs on the host.
    - `images`: `(n, channels, height, width)`, uint8 or floats in [-1, 1]; or an iterable of such
        arrays, so that not all of them have to be in memory.
    - `batch_size`, `mesh`, `progress`: as for [`eqdiff.map_examples`][]. With a mesh of several
        processes, all of them are given the same images and share the work.

    **Returns:** float32, one row per image.

    **Raises:** `ValueError` for no images, images that are not finite or far outside [-1, 1], or
    `features` that return anything but a vector; `TypeError` for other integers than uint8.

    **Example:**

    ```python
    images = jax.random.uniform(jax.random.key(0), (100, 3, 8, 8), minval=-1, maxval=1)
    features = eqd.metrics.extract(lambda image: image.mean((1, 2)), images)  # (100, 3)
    ```
    """
    batch_size = whole("extract", "batch_size", batch_size)
    blocks = [images] if hasattr(images, "shape") else _blocks(images, _BATCHES * batch_size)
    fn, found = _one(features), []
    for number, block in enumerate(blocks):
        block = _checked(block)
        if isinstance(features, ClassifierFeatures):
            found.append(np.asarray(features(block), np.float32))
            continue
        missing = batch_size - len(block) if number else 0
        if missing > 0:
            # The program of the blocks before serves this one too.
            block = np.concatenate([block, np.repeat(block[-1:], missing, axis=0)])
        values = map_examples(
            fn,
            block,
            key=jax.random.key(0),
            batch_size=batch_size,
            mesh=mesh,
            progress=progress,
        )
        if values.ndim != 2:
            raise ValueError(
                "extract: expected features that are a vector for each image, got shape "
                f"{values.shape[1:]}."
            )
        found.append(values[: len(values) - max(missing, 0)].astype(np.float32))
    if not found:
        raise ValueError("extract: expected at least one image.")
    return np.concatenate(found)


class _Features(eqx.Module):
    """As a module, the function is compiled once for all blocks, and its weights are inputs."""

    features: Any

    def __call__(self, image: Array, key: Any) -> Array:
        return self.features(image)


def _one(features: Callable[..., Any]) -> Callable[..., Any]:
    if not isinstance(features, eqx.Module):
        return lambda image, key: features(image)
    return _Features(features)


def _blocks(images: Any, size: int) -> Iterator[np.ndarray]:
    """The same images in blocks of one size, but for the last."""
    waiting, num = [], 0
    for batch in images:
        batch = np.asarray(batch)
        while len(batch):
            part, batch = batch[: size - num], batch[size - num :]
            waiting.append(part)
            num += len(part)
            if num == size:
                yield np.concatenate(waiting)
                waiting, num = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _checked(images: Any) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim < 2 or len(images) == 0:
        raise ValueError(
            "extract: expected images of shape (n, channels, height, width), at least one, got "
            f"{images.shape}."
        )
    if images.dtype == np.uint8:
        return images
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"extract got {images.dtype}, expected uint8 or floats in [-1, 1].")
    largest = np.abs(images).reshape(len(images), -1).max(axis=1)
    if not np.isfinite(largest).all():
        bad = np.flatnonzero(~np.isfinite(largest))
        raise ValueError(
            f"extract: {len(bad)} of {len(images)} images are not finite, the first is number "
            f"{bad[0]}: leave them out, and say so next to the number."
        )
    if largest.max() > _LARGEST:
        raise ValueError(
            f"extract got floats up to {largest.max():g}, expected [-1, 1]: 8-bit images are given "
            "as uint8."
        )
    return images
