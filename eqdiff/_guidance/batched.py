r"""One differential equation for a whole batch.

`jax.vmap` of a solve gives every example its own steps: each result is independent of the batch it
was computed in, but the loop runs until the slowest example has arrived. A batch as *one* state
$X = (x_1, \dots, x_B)$ has one clock and one step size, so that every example sees the same times.
"""

from collections.abc import Callable
from typing import Any

import jax

from .._denoiser import AbstractDenoiser, AbstractWrapper, Estimate
from .._types import Args, Example, Key, Time


class Batched(AbstractWrapper):
    r"""A denoiser of batches: $x$ and `args` have a leading axis of examples, which share one $t$.

    With it a solver takes shared steps over the batch:
    `eqd.ProbabilityFlow()(eqd.Batched(denoiser), batch)` instead of `jax.vmap(lambda x:
    eqd.ProbabilityFlow()(denoiser, x))(batch)`. Likelihoods and encodings of a batched denoiser are
    those of each example, each held to the tolerance; samplers control the root mean square over
    the batch. It must be the outermost wrapper. The page *Adaptive solves* says when to use it.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    x0 = eqd.ProbabilityFlow()(eqd.Batched(denoiser), jnp.ones((16, 3)))  # shared steps
    ```
    """

    denoiser: AbstractDenoiser

    def __init__(self, denoiser: AbstractDenoiser):
        """**Arguments:**

        - `denoiser`: a denoiser of single examples.
        """
        self.denoiser = denoiser

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        check_batch(x, args)
        keys = None if key is None else jax.random.split(key, x.shape[0])
        return jax.vmap(lambda y, a, k: self.denoiser(t, y, a, key=k))(x, args, keys)


def check_batch(x: Example, args: Args) -> None:
    """Raises `ValueError` unless x and every array of args have the same leading axis."""
    if x.ndim == 0:
        raise ValueError("Batched: x is a number; expected a leading axis of examples: x[None].")
    shapes = [jax.numpy.shape(leaf) for leaf in jax.tree.leaves(args)]
    if any(shape[:1] != x.shape[:1] for shape in shapes):
        raise ValueError(
            f"Batched: x has {x.shape[0]} examples, but args has arrays of shape {shapes}: each "
            f"needs a leading axis of {x.shape[0]}. Repeat what all examples share, for "
            f"example jnp.full({x.shape[0]}, class_label)."
        )


def over_examples(
    denoiser: AbstractDenoiser,
) -> tuple[AbstractDenoiser, Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """The denoiser of single examples, and what maps a function of one example over those of the
    state.
    """
    if isinstance(denoiser, Batched):
        return denoiser.denoiser, jax.vmap
    return denoiser, lambda function: function
