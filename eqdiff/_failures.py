"""Examples that fail: their error, and the messages of JAX that are suppressed."""

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


# What a failing program raises: XLA, or a check of eqdiff's or Equinox's, which JAX may raise as
# either.
FAILURES = (jax.errors.JaxRuntimeError, ValueError)

# If the first examples all fail, this many of them, the others are not tried.
HOPELESS = 16


class FailedExamples(RuntimeError):
    """Raised once all examples have been tried, if some of them failed.

    - `errors`: the message of each failed example, by its index.
    - `results`: what would have been returned, with NaN for the failed examples; `None` for
        [`eqdiff.generate_to`][].

    **Example:**

    ```python
    check = lambda x, key: eqx.error_if(x, x > 1, "too large")
    try:
        eqd.map_examples(check, jnp.arange(3.0), key=jax.random.key(0))
    except eqd.FailedExamples as error:
        values = error.results  # 0, 1, NaN
    ```
    """

    def __init__(
        self, name: str, num: int, errors: dict[int, str], results: PyTree[np.ndarray] | None
    ):
        shown = ", ".join(map(str, sorted(errors)[:20])) + (", …" if len(errors) > 20 else "")
        where = (
            "and the chunks with them have not been written; all others have, and the same call "
            "tries only these again."
            if results is None
            else "and their results are NaN in this error's `results`, with those of the others."
        )
        super().__init__(
            f"{name}: {len(errors)} of {num} examples failed, {where} Their indices: {shown}. The "
            f"first: {errors[min(errors)]}"
        )
        self.errors, self.results = errors, results


def forget(devices: Iterable[jax.Device]) -> None:
    """Lets JAX forget a failed program of several devices.

    It is kept with each device, and `jax.effects_barrier`, also called at Python's exit, would
    raise its error again.
    """
    for device in devices:
        jax.jit(lambda x: jax.debug.callback(lambda _: None, x))(jax.device_put(0, device))


def missing(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
    return np.full(leaf.shape[1:], np.nan, leaf.dtype if inexact else np.float64)


def message(error: Exception) -> str:
    """What a failing check said, without what Equinox and JAX wrap around it."""
    said = re.search(r"EquinoxRuntimeError: (.+?)(\n\s*\n|$)", str(error), re.DOTALL)
    return " ".join((said[1] if said else str(error)).split()) or type(error).__name__


def said(error: Exception) -> str:
    text = message(error)
    return text if len(text) < 400 else text[:400] + " …"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps JAX from logging the traceback of a check that fails, whose error is raised anyway."""
    logger = logging.getLogger("jax._src.callback")

    def not_a_failure(record: logging.LogRecord) -> bool:
        return record.getMessage() != "jax.pure_callback failed"

    logger.addFilter(not_a_failure)
    try:
        yield
    finally:
        logger.removeFilter(not_a_failure)
