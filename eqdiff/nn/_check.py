"""What every network says about an image that it cannot take, or a variant that does not exist."""

from collections.abc import Iterable

from .._types import Example


_AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


def check_image(
    x: Example, in_channels: int, unit: int, network: str, remedy: str, dims: int = 2
) -> None:
    """**Raises:** `ValueError` where `x` is not one image of `in_channels` whose sides are multiples
    of `unit`; the first of three need not be."""
    axes = _AXES[dims]
    if x.ndim != 1 + dims or x.shape[0] != in_channels:
        hint = " Batch with jax.vmap(net)(labels, xs)." if x.ndim == 2 + dims else ""
        raise ValueError(
            f"this {network} takes one image of shape ({', '.join((str(in_channels), *axes))}), got "
            f"{x.shape}.{hint}"
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
    """**Raises:** `ValueError` where `dims` is no number of spatial dimensions."""
    if dims not in _AXES:
        raise ValueError(f"dims, the number of spatial dimensions, is 1, 2 or 3; got {dims}.")


def check_variant(name: str, value: object, known: Iterable[object]) -> None:
    """**Raises:** `ValueError` where the name of an architecture's variant is none of the known."""
    known = tuple(known)
    if value not in known:
        choices = ", ".join(repr(variant) for variant in known)
        raise ValueError(f"{name} is one of {choices}; got {value!r}.")
