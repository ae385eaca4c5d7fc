r"""Which times a sampler visits: a number of them and a spacing, or the times themselves."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from .._check import is_traced, of, whole
from .._process import (
    AbstractProcess,
    check_time,
    default_times,
    exactly,
    has_no_signal,
    noisiest,
    require_schedule,
)
from .._process._table import Table


# (process, num_steps) -> decreasing times.
Spacing = Callable[[AbstractProcess, int], Shaped[Array, " n"]]


class Grid(eqx.Module):
    """Decreasing times, noise first: `Grid(50)`, `Grid(50, spacing=karras_times)` or
    `Grid(times=...)`.

    Times that begin below the process's noisiest one start a sampler from a state that was noised
    to the first of them, `process.perturb(times[0], image, noise)`: SDEdit (Meng et al. 2022).

    **Example:**

    ```python
    times = eqd.Grid(18, spacing=eqd.karras_times).times(eqd.EDMSDE())
    ```
    """

    num_steps: int | None = eqx.field(static=True)
    spacing: Spacing
    # Known times are static, so that they are known under jit too.
    _known: Table | None = eqx.field(static=True)
    _traced: Array | None

    def __init__(
        self, num_steps: int | None = None, *, spacing: Spacing | None = None, times: Any = None
    ):
        """**Arguments:**

        - `num_steps`: how many times; all steps of a schedule if nothing is given.
        - `spacing`: a function `(process, num_steps) -> times`: [`eqdiff.uniform_times`][] (the
            default), [`eqdiff.karras_times`][] (the default for [`eqdiff.EDMSDE`][]) and so on.
        - `times`: the decreasing times themselves, instead of both.

        **Raises:** `ValueError` if `times` is given together with one of the others, for a number
        that is not a positive integer, and times that are not a vector or do not decrease; when
        used, for times outside the process.
        """
        _check("Grid", num_steps, spacing, times)
        self._known = self._traced = None
        if times is not None:
            times, num_steps = _decreasing("Grid", times), len(times)
            traced = is_traced(times)
            self._known, self._traced = (None, times) if traced else (Table(times), None)
        self.num_steps = None if num_steps is None else whole("Grid", "num_steps", num_steps)
        self.spacing = default_times if spacing is None else spacing

    def times(self, process: AbstractProcess) -> Shaped[Array, " n"]:
        """The times on a process, decreasing.

        **Raises:** `ValueError` for known times that the process does not have, or where no number
        was given and the process is not a schedule.
        """
        return as_times(self.exact(process))

    def exact(self, process: AbstractProcess) -> Any:
        """The times as NumPy's, in float64 where they are not whole, or as they are if traced."""
        if self._known is not None:
            # Elements of a NumPy array are known under jit.
            for t in self._known.array[[0, -1]]:
                check_time(process, t.item())
            return self._known.array
        if self._traced is not None:
            return self._traced
        num_steps = self.num_steps
        if num_steps is None:
            num_steps = require_schedule(process, "A sampler that visits every step").num_steps
        times = exactly(self.spacing, process, num_steps)
        return times if is_traced(times) else np.asarray(times)

    def begins_without_signal(self, process: AbstractProcess) -> bool:
        """Whether the first time is known to be the process's noisiest, and α = 0 there."""
        if not has_no_signal(process):
            return False
        times = self.exact(process)
        return not is_traced(times) and bool(times[0] == np.asarray(noisiest(process), times.dtype))


def as_times(times: Any) -> Shaped[Array, " n"]:
    """Times in the default precision, whole ones as int32."""
    if is_traced(times):
        return times
    whole = np.issubdtype(times.dtype, np.integer)
    return jnp.asarray(times, jnp.int32 if whole else float)


def grid_of(
    owner: Any,
    num_steps: int | None,
    spacing: Spacing | None,
    times: Any,
    *,
    default: int | None = None,
    default_spacing: Spacing = default_times,
) -> Grid:
    """The grid of a sampler, whose name error texts begin with, and whose defaults these are."""
    _check(owner, num_steps, spacing, times)
    if times is not None:
        return Grid(times=times)
    return Grid(
        default if num_steps is None else num_steps,
        spacing=default_spacing if spacing is None else spacing,
    )


def _check(owner: Any, num_steps: Any, spacing: Any, times: Any) -> None:
    if num_steps is not None:
        whole(owner, "num_steps", num_steps)
    if times is None:
        return
    if num_steps is not None or spacing is not None:
        other = f"num_steps={num_steps}" if num_steps is not None else "a spacing"
        raise ValueError(
            f"{of(owner)}: times and {other} were both given; give one of them. Times have their "
            "own number and spacing."
        )
    _decreasing(owner, times)


def _decreasing(owner: Any, times: Any) -> Any:
    """The times, as NumPy's if they are known."""
    # NumPy's, which take lists.
    if np.ndim(times) != 1 or np.size(times) == 0:
        raise ValueError(f"{of(owner)}: times is a vector of times, got shape {np.shape(times)}.")
    remedy = (
        f"{of(owner)}: the times must decrease, from noise to data. For increasing ones write "
        "times[::-1]."
    )
    if is_traced(times):
        return eqx.error_if(times, jnp.any(times[1:] >= times[:-1]), remedy)
    known = np.asarray(times)
    if not np.all(known[1:] < known[:-1]):
        raise ValueError(f"{remedy} Got {times}.")
    return known
