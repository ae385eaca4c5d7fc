"""Checks of what a time or a process is used for."""

from typing import Any

import jax
import numpy as np

from .._check import is_traced, known_number, origin_of
from .._types import Time
from .base import AbstractProcess, without_signal
from .schedule import Schedule


def require_process(process: Any, owner: str) -> AbstractProcess:
    """The process itself; a `TypeError` for anything else, such as a number of steps."""
    if isinstance(process, AbstractProcess):
        return process
    number = known_number(process)
    steps = int(number) if number is not None and number >= 1 else 1000
    raise TypeError(
        f"{owner}({process!r}): expected a process, whose times are drawn; write "
        f"{owner}(eqdiff.cosine_schedule({steps})), or the process that the denoiser is on."
    )


def require_schedule(process: AbstractProcess, owner: str) -> Schedule:
    """The process itself, if it is a schedule; otherwise a `ValueError` that says what to write."""
    if isinstance(process, Schedule):
        return process
    raise ValueError(
        f"{owner} is defined on a discrete schedule, but the process is {type(process).__name__}. "
        "Write eqdiff.cosine_schedule(1000), or eqdiff.discretise(process, 1000) for the schedule "
        "of a VP process."
    )


def check_signal(process: AbstractProcess, owner: str, why: str, instead: str) -> None:
    """Raises `ValueError` for a schedule of zero terminal SNR, where `why`; write `instead`."""
    if isinstance(process, Schedule) and process.ends_without_signal:
        where, remedy = without_signal(process)
        raise ValueError(f"{owner}: {where}, and {why}. {instead} {remedy}.")


def check_time(process: AbstractProcess, t: Time) -> None:
    """Raises `ValueError` for a known time outside a process, or one that was drawn from another.

    Traced times are not inspected.
    """
    _check_origin(process, t)
    low, high = process.t0, process.t1
    remedy = "the process is used on [t0, t1], set where it is made"
    if isinstance(process, Schedule):
        low, high = 0, process.num_steps - 1
        remedy = f"times of a schedule are 0 to T - 1; T = {process.num_steps}"
    if is_traced(t, low, high):
        return
    value, low, high = (np.asarray(value, np.float64) for value in (t, low, high))
    # A time at an end may have been rounded to float32.
    slack = 1e-6 * (high - low)
    if not np.all((value >= low - slack) & (value <= high + slack)):
        raise ValueError(
            f"t = {value} is outside [{low:g}, {high:g}] of {type(process).__name__}: {remedy}."
        )


def _check_origin(process: AbstractProcess, t: Time) -> None:
    origin = origin_of(t)
    if origin is None or not known_to_differ(process, origin):
        return
    raise ValueError(
        f"The training times are drawn from {described(origin)}, but the loss uses them on "
        f"{described(process)}. Give both the same process: Uniform(process) and "
        "Denoiser(net, process)."
    )


def known_to_differ(a: AbstractProcess, b: AbstractProcess) -> bool:
    """Whether two processes are of different kinds or have different known numbers."""
    if type(a) is not type(b):
        return True
    if isinstance(a, Schedule):
        return a != b
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=False)
    return any(_far(known_number(x), known_number(y)) for x, y in pairs)


def _far(x: float | None, y: float | None) -> bool:
    # Of two precisions, as a field and the same number in a jitted argument may be.
    return x is not None and y is not None and abs(x - y) > 1e-6 * abs(y)


def described(process: AbstractProcess) -> str:
    """A process in an error text."""
    steps = f" of {process.num_steps} steps" if isinstance(process, Schedule) else ""
    return f"a {type(process).__name__}{steps}"
