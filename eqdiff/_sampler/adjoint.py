"""Derivatives that an adjoint does not have, named."""

import contextlib
from collections.abc import Iterator

import diffrax

from .._check import of


@contextlib.contextmanager
def adjoint_named(owner: object, adjoint: diffrax.AbstractAdjoint) -> Iterator[None]:
    """Turns JAX's error about a derivative of a solve into one that says which adjoint to take.

    Under `jax.jit`, and for the gradient of a gradient, JAX raises its own later, out of reach.
    """
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as e:
        if "forward-mode" not in str(e) and "custom_vjp" not in str(e):
            raise
        if "the vector field has none" in str(e):
            # A trace's own error: it is the network that has no derivative, whatever the adjoint.
            raise
        raise ValueError(
            f"{of(owner)}: this derivative of a solve needs another adjoint than "
            f"{type(adjoint).__name__}(): for forward mode write adjoint=diffrax.ForwardMode(), "
            "for higher derivatives such as jax.hessian adjoint=diffrax.DirectAdjoint()."
        ) from e
