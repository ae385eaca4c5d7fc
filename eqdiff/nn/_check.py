"""The checks of a network's arguments: its time input, its image, its class, its variant.

A class whose value is known is checked at once. A traced one is left to whoever compiles the
network's program and knows its inputs (`_deferred.py`): `eqdiff.generate`, `eqdiff.map_examples`,
train steps. Where nobody does, it is checked when the program runs, by `equinox.error_if`, once per
call: a reduction over the batch and a branch, whose callback runs only where a class is wrong. JAX
neither exports programs with callbacks nor keeps them in its compilation cache; `EQX_ON_ERROR=off`
in the environment leaves the check out and `EQX_ON_ERROR=nan` returns NaNs instead of stopping,
both without a callback.
"""

from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Shaped

from .._deferred import ask
from .._types import Args, Example, Scalar


_AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


def check_image(
    x: Example, in_channels: int, unit: int, network: str, remedy: str, dims: int = 2
) -> None:
    """**Raises:** `ValueError` where `x` is not one image of `in_channels` whose sides are
    multiples of `unit`; the first of three need not be."""
    axes = _AXES[dims]
    if x.ndim != 1 + dims or x.shape[0] != in_channels:
        hint = " Batch with jax.vmap(net)(c_noises, xs)." if x.ndim == 2 + dims else ""
        raise ValueError(
            f"this {network} takes one image of shape ({', '.join((str(in_channels), *axes))}), "
            f"got {x.shape}.{hint}"
        )
    for name, side in zip(axes, x.shape[1:], strict=True):
        multiple = 1 if name == "depth" else unit
        if side % multiple != 0 or side == 0:
            below, above = side // multiple * multiple, (side // multiple + 1) * multiple
            nearest = f"{below} and {above}" if below > 0 else f"{above}"
            raise ValueError(
                f"this {network} takes images whose sides are multiples of {multiple}, got {name} "
                f"{side}; the nearest are {nearest}. Pad the image, or {remedy}."
            )


def check_levels(
    x: Example, in_channels: int, num_levels: int, network: str, dims: int = 2
) -> None:
    """`check_image` for a network that halves the sides at each of its levels but the last."""
    remedy = "use fewer levels (a shorter channel_mult)"
    check_image(x, in_channels, 2 ** (num_levels - 1), network, remedy, dims)


def check_dims(dims: int) -> None:
    """**Raises:** `ValueError` where `dims` is not a number of spatial dimensions."""
    if dims not in _AXES:
        raise ValueError(f"dims, the number of spatial dimensions, is 1, 2 or 3; got {dims}.")


def check_variant(name: str, value: object, known: Iterable[object]) -> None:
    """**Raises:** `ValueError` for an unknown variant."""
    known = tuple(known)
    if value not in known:
        choices = ", ".join(repr(variant) for variant in known)
        raise ValueError(f"{name} is one of {choices}; got {value!r}.")


def check_c_noise(c_noise: Any, dtype: Any, network: str) -> Scalar:
    """The time input, ready to be embedded.

    **Arguments:**

    - `c_noise`: what the network was given.
    - `dtype`: of the network's embeddings, float32 or float64.
    - `network`: its name.

    **Returns:** the time input in the wider of its own precision and `dtype`: it is cast to `dtype`
    only after it has been embedded.

    **Raises:** `ValueError` where it is not one number.
    """
    if jnp.shape(c_noise) != ():
        raise ValueError(
            f"{network} takes one c_noise per example, got shape {jnp.shape(c_noise)}. Batch with "
            "jax.vmap(net)(c_noises, xs); for the same one everywhere, "
            "jax.vmap(net, in_axes=(None, 0))(c_noise, xs)."
        )
    wide = jnp.dtype(jnp.float64) in (jnp.result_type(c_noise), jnp.dtype(dtype))
    return jnp.asarray(c_noise).astype(jnp.float64 if wide else jnp.float32)


def check_class(
    args: Args, num_classes: int | None, network: str, *, unconditional: bool = False
) -> Shaped[Array, ""] | None:
    """The class label as an array, `None` for a network without classes.

    **Arguments:**

    - `args`: what the network was given.
    - `num_classes`: how many classes it has.
    - `network`: its name.
    - `unconditional`: whether it takes one label more, which stands for no class.

    **Raises:** `ValueError` where a class label is missing, unexpected, not one integer, or out of
    range; a traced one that is out of range ends the program when it runs.
    """
    if num_classes is None:
        if args is not None:
            raise ValueError(
                f"this {network} was built without classes but was given args={args}. "
                "Build it with num_classes=..., or pass args=None."
            )
        return None
    if args is None:
        raise ValueError(
            f"this {network} was built with num_classes={num_classes} and needs a class label: "
            f"net(c_noise, x, args) with an integer 0 <= args < {num_classes}."
        )
    if jnp.shape(args) != () or not jnp.issubdtype(jnp.result_type(args), jnp.integer):
        raise ValueError(
            f"the class label of one example is one integer, got shape {jnp.shape(args)} and dtype "
            f"{jnp.result_type(args)}. Batch with jax.vmap(net)(c_noises, xs, class_labels); turn "
            "one-hot vectors into integers with jnp.argmax."
        )
    return _in_range(args, num_classes, network, unconditional)


def _in_range(
    class_label: Args, num_classes: int, network: str, unconditional: bool
) -> Shaped[Array, ""]:
    also = f" (and {num_classes} for no class)" if unconditional else ""
    expected = (
        f"this {network} was built with num_classes={num_classes} and takes class labels from 0 to "
        f"{num_classes - 1}{also}, got {{}}. If your labels count from 1, write label - 1."
    )
    number = num_classes + unconditional
    if not isinstance(class_label, Tracer):
        value = int(np.asarray(class_label))
        if not 0 <= value < number:
            raise ValueError(expected.format(value))
        return jnp.asarray(value, jnp.int32)
    # Bytes cannot be compared with 1000, and four bytes would wrap eight around.
    dtype = jnp.int64 if class_label.dtype.itemsize == 8 else jnp.int32
    index = class_label.astype(dtype)
    if ask(class_label, number, expected):
        return index
    wrong = (index < 0) | (index >= number)
    # The error hangs on a zero that is added, not on the label: both branches of its condition then
    # have one type under `jax.shard_map` too, where the label varies over a mesh and an error's
    # result does not.
    zero = jnp.zeros((), dtype)
    message = expected.format("another one, whose value cannot be shown under jit")
    return index + eqx.error_if(zero, wrong, message)
