"""Checks of arguments: what was given, what was expected, what to write instead (floor 0).

Values are checked before any computation where they are known. A JAX tracer's value is not, so the
checks here pass tracers by; those that matter under `jit` as well use `refuse`.
"""

import contextlib
import math
import operator
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree


def is_traced(*values: Any) -> bool:
    """Whether any value is a JAX tracer, so that it cannot be inspected."""
    return any(isinstance(value, Tracer) for value in values)


def known_number(value: Any) -> float | None:
    """The value of a number that can be inspected, whatever its type; `None` for anything else."""
    if is_traced(value) or value is None:
        return None
    value = np.asarray(value)
    return float(value) if value.shape == () and value.dtype.kind in "iufb" else None


def check_positive(owner: Any, **values: Any) -> None:
    """Raises `ValueError` for a known number that is not positive and finite."""
    for name, value in values.items():
        number = known_number(value)
        if number is not None and not (math.isfinite(number) and number > 0):
            raise ValueError(f"{of(owner)}({name}={value}): expected a positive finite number.")


def check_finite(owner: Any, **values: Any) -> None:
    """Raises `ValueError` for a known number that is not finite."""
    for name, value in values.items():
        number = known_number(value)
        if number is not None and not math.isfinite(number):
            raise ValueError(f"{of(owner)}({name}={value}): expected a finite number.")


def check_fraction(owner: Any, **values: float) -> None:
    """Raises `ValueError` for a number outside [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{of(owner)}({name}={value}): expected a number between 0 and 1.")


def check_interval(owner: Any, t0: Any, t1: Any, *, end: float = math.inf) -> None:
    """Raises `ValueError` unless known times satisfy 0 < t0 < t1 ≤ end, t1 finite."""
    low, high = known_number(t0), known_number(t1)
    if low is None or high is None:
        return
    if not (0 < low < high <= end and math.isfinite(high)):
        bound = f" <= {end:g}" if math.isfinite(end) else ", finite"
        raise ValueError(
            f"{of(owner)}(t0={t0}, t1={t1}): expected 0 < t0 < t1{bound}. The kernel is singular "
            f"at t = 0, so write for example {of(owner)}(t0=1e-3)."
        )


def whole(owner: Any, name: str, value: Any, *, least: int = 1, remedy: str = "") -> int:
    """A whole number of any type as a Python `int`; `ValueError` for anything else.

    NumPy's and JAX's integers are whole numbers too; booleans and 50.0 are not.
    """
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        kind = "a positive whole number" if least == 1 else f"a whole number of at least {least}"
        raise ValueError(f"{of(owner)}({name}={value!r}): expected {kind}.{remedy}")
    return number


def check_example(owner: Any, x: Any) -> None:
    """Raises `ValueError` for an example of whole numbers: pixels, where normalised data belong."""
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        raise ValueError(
            f"{of(owner)} works on floating-point data, images on [-1, 1], but was given "
            f"{jnp.result_type(x)} of shape {jnp.shape(x)}. For 8-bit pixels write "
            "x / 127.5 - 1, or eqdiff.data's Dataset.normalise."
        )


def check_precision(owner: Any, x: Any) -> None:
    """Raises `ValueError` for an example of whole numbers or of half precision."""
    check_example(owner, x)
    if jnp.finfo(jnp.result_type(x)).bits < 32:
        raise ValueError(
            f"{of(owner)}: the example is {jnp.result_type(x)}, in which the steps near the data "
            "are lost to rounding. Write x.astype(jnp.float32); the network may compute in half "
            "precision."
        )


def check_levels(
    owner: str,
    image: Float[Array, "..."],
    levels: int,
    low: float = -1.0,
    high: float = 1.0,
) -> Float[Array, "..."]:
    """An image, which is an error if a value is on none of `levels` equally spaced ones.

    A `ValueError` that shows the values where they are known, a runtime error where they are
    traced.
    """
    check_precision(owner.partition("(")[0], image)
    remedy = (
        f"{owner} expects images on {levels} equally spaced levels from {low:g} to {high:g}: 8-bit "
        "pixels are levels=256, on [-1, 1] as pixels / 127.5 - 1. Are the data noisy already, or "
        "scaled otherwise?"
    )
    position = (image - low) * ((levels - 1) / (high - low))
    level = jnp.rint(position)
    # Rounding of float32 moves a 16-bit pixel by 0.004 of a level.
    off = ~(jnp.abs(position - level) < 0.02) | (level < 0) | (level > levels - 1)
    if not is_traced(off):
        if np.any(off):
            given, bad = np.asarray(image), np.asarray(image)[np.asarray(off)]
            raise ValueError(
                f"The image has values from {given.min():g} to {given.max():g}, {bad.size} of "
                f"{given.size} on none of the levels, such as {bad.flat[0]:g}. {remedy}"
            )
        return image
    # Under jit the values cannot be shown; which way they are wrong can.
    ways = [jnp.any(~jnp.isfinite(image)), jnp.any(position < -0.02)]
    ways.append(jnp.any(position > levels - 1 + 0.02))
    way = jnp.where(ways[0], 0, jnp.where(ways[1], 1, jnp.where(ways[2], 2, 3)))
    # Under vmap the largest is shown, and a good image has none to show.
    way = jnp.where(jnp.any(off), way, 0)
    texts = [
        "that are not finite",
        f"below {low:g}",
        f"above {high:g}",
        "that are on none of the levels",
    ]
    messages = [f"The image has values {text}. {remedy}" for text in texts]
    return eqx.branched_error_if(image, jnp.any(off), way, messages)


def refuse(tree: PyTree, bad: Bool[Array, ""], message: str) -> PyTree:
    """`ValueError` where `bad` is known already, an error at run time where it is traced."""
    if is_traced(bad):
        return eqx.error_if(tree, bad, message)
    if bool(bad):
        raise ValueError(message)
    return tree


def of(owner: Any) -> str:
    """The name that an error text begins with: that of a class for an object, or a text itself."""
    return owner if isinstance(owner, str) else type(owner).__name__


# The time that a training step drew, and the process it was drawn from, while a loss is traced.
_drawn: ContextVar[tuple[Any, Any] | None] = ContextVar("drawn", default=None)


@contextlib.contextmanager
def drawn_from(t: Any, process: Any) -> Iterator[None]:
    """While this lasts, using the time `t` on a process other than this one is an error."""
    token = _drawn.set((t, process))
    try:
        yield
    finally:
        _drawn.reset(token)


def origin_of(t: Any) -> Any:
    """The process from which a training step drew exactly this time, `None` if none did."""
    drawn = _drawn.get()
    return drawn[1] if drawn is not None and drawn[0] is t else None
