"""What every network says about an image that it cannot take, or a variant that does not exist."""

from collections.abc import Iterable

from .._types import Example


def check_image(x: Example, in_channels: int, unit: int, network: str, remedy: str) -> None:
    """**Raises:** `ValueError` where `x` is not one image of `in_channels` whose sides are multiples
    of `unit`."""
    if x.ndim != 3 or x.shape[0] != in_channels:
        hint = " Batch with jax.vmap(net)(labels, xs)." if x.ndim == 4 else ""
        raise ValueError(
            f"this {network} takes one image of shape ({in_channels}, height, width), got "
            f"{x.shape}.{hint}"
        )
    for name, side in zip(("height", "width"), x.shape[1:], strict=True):
        if side % unit != 0 or side == 0:
            below, above = side // unit * unit, (side // unit + 1) * unit
            nearest = f"{below} and {above}" if below > 0 else f"{above}"
            raise ValueError(
                f"this {network} takes images whose sides are multiples of {unit}, got {name} "
                f"{side}; the nearest are {nearest}. Pad the image, or {remedy}."
            )


def check_levels(x: Example, in_channels: int, num_levels: int, network: str) -> None:
    """`check_image` for a network that halves the sides at each of its levels but the last."""
    remedy = "use fewer levels (a shorter channel_mult)"
    check_image(x, in_channels, 2 ** (num_levels - 1), network, remedy)


def check_variant(name: str, value: object, known: Iterable[str]) -> None:
    """**Raises:** `ValueError` where the name of an architecture's variant is none of the known."""
    known = tuple(known)
    if value not in known:
        choices = ", ".join(repr(variant) for variant in known)
        raise ValueError(f"{name} is one of {choices}; got {value!r}.")
