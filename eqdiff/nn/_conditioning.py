r"""The conditions of a network as it holds them: modules with parameters, and what they make of the
`args` of a call.

`conditions=` is one condition of `_conditions.py`, or dictionaries and tuples of them; the modules
here stand in the same places, and so must the `args` of every call. `enter` walks both and returns
what the network adds to its embedding, to its input and to what it attends to.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from .._types import Args, Key
from ._condition_embeddings import (
    AbstractConditionEmbedding,
    ClassConditionEmbedding,
    Entered,
    FieldConditionEmbedding,
    TokenConditionEmbedding,
    VectorConditionEmbedding,
)
from ._conditions import (
    AbstractCondition,
    ClassCondition,
    describe,
    FieldCondition,
    has_null,
    TokenCondition,
    VectorCondition,
)
from ._cross import Context


# The parameters of conditions: one embedding, or dictionaries and tuples of them.
Embeddings = Any


def build_conditions(conditions: Any, owner: str, size: int, key: Key) -> Embeddings:
    """The parameters of conditions, in the same places.

    **Arguments:**

    - `conditions`: one, or dictionaries and tuples of them; `None` for none.
    - `owner`: the network's name.
    - `size`: of the embedding, and of the tokens that are attended to.
    - `key`: a PRNG key.

    **Raises:** `ValueError` for anything else.
    """
    if conditions is None:
        return None
    if isinstance(conditions, AbstractCondition):
        if isinstance(conditions, FieldCondition):
            return FieldConditionEmbedding(conditions)
        return _EMBEDDINGS[type(conditions)](conditions, size, key=key)
    if not isinstance(conditions, (dict, tuple)) or not conditions:
        raise ValueError(
            f"{owner}(conditions=...): expected a condition, such as eqdiff.nn.VectorCondition(3), "
            f"or a dictionary or tuple of them, got {describe(conditions)}."
        )
    keys = jax.random.split(key, len(conditions))
    if isinstance(conditions, tuple):
        pairs = zip(conditions, keys, strict=True)
        return tuple(build_conditions(c, owner, size, k) for c, k in pairs)
    for name in conditions:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(
                f"{owner}(conditions=...): {name!r} cannot name a condition; names are words, such "
                "as 'wind' or 'sea_level', since parameters are named after them."
            )
    pairs = zip(sorted(conditions), keys, strict=True)
    return {name: build_conditions(conditions[name], owner, size, k) for name, k in pairs}


_EMBEDDINGS = {
    ClassCondition: ClassConditionEmbedding,
    VectorCondition: VectorConditionEmbedding,
    TokenCondition: TokenConditionEmbedding,
}


def _is_embedding(node: Any) -> bool:
    return isinstance(node, AbstractConditionEmbedding)


def conditions_of(embeddings: Embeddings) -> Any:
    """What `build_conditions` was given."""
    return jax.tree.map(lambda e: e.condition, embeddings, is_leaf=_is_embedding)


def all_conditions(embeddings: Embeddings) -> list[AbstractCondition]:
    """Each of them."""
    return [e.condition for e in jax.tree.leaves(embeddings, is_leaf=_is_embedding)]


def field_channels(embeddings: Embeddings) -> int:
    """Further channels of the input."""
    found = all_conditions(embeddings)
    return sum(c.channels for c in found if isinstance(c, FieldCondition))


def has_tokens(embeddings: Embeddings) -> bool:
    """Whether there is something to attend to."""
    return any(isinstance(c, TokenCondition) for c in all_conditions(embeddings))


def refuse_both(conditions: Any, owner: str, **given: Any) -> None:
    """**Raises:** `ValueError` where a network would take classes in two ways."""
    also = {name: value for name, value in given.items() if value}
    if conditions is not None and also:
        said = ", ".join(f"{name}={value}" for name, value in also.items())
        raise ValueError(
            f"{owner} takes conditions=... or {said}, got both, and args could mean either. Put "
            "all into the conditions: {'label': eqdiff.nn.ClassCondition(10), ...}."
        )


def enter(
    embeddings: Embeddings,
    args: Args,
    owner: str,
    spatial: tuple[int, ...],
    dtype: Any,
    key: Key | None,
) -> Entered:
    """What the `args` of a call give a network.

    **Arguments:**

    - `embeddings`: what `build_conditions` returned.
    - `args`: what the network was given.
    - `owner`: its name.
    - `spatial`: the sides of its input.
    - `dtype`: of the result.
    - `key`: for dropping conditions; `None` to drop none.

    **Raises:** `ValueError` where a condition is missing, unexpected or of another shape.
    """
    if embeddings is None:
        if args is not None:
            raise ValueError(_unexpected(args, owner, len(spatial)))
        return Entered()
    found = []
    for i, (where, embedding, value) in enumerate(_matched(embeddings, args, owner, "args")):
        condition, keep = embedding.condition, None
        if value is not None:
            value = condition.read(value, f"{owner}: {where}")
            if isinstance(condition, FieldCondition) and value.ndim != 1 + len(spatial):
                raise ValueError(
                    f"{owner}: {where} is {condition.takes}; got {describe(value)} with x of "
                    f"{len(spatial)} spatial axes. Batch with jax.vmap(net)(c_noises, xs, args)."
                )
            if key is not None and condition.dropout > 0:
                # Not one of the body's keys, nor that of a class.
                drawn = jax.random.fold_in(jax.random.fold_in(key, 1), i)
                keep = jax.random.bernoulli(drawn, 1 - condition.dropout)
        elif not has_null(condition):
            raise ValueError(
                f"this {owner} needs {where}, {condition.takes}, and has no learned null to stand "
                f"for none. Give it, or build the network with {type(condition).__name__}(..., "
                "dropout=0.1), or null=True."
            )
        found.append(embedding(value, keep, spatial, dtype))
    return _together(found)


def _together(found: list[Entered]) -> Entered:
    vectors = [e.vector for e in found if e.vector is not None]
    channels = [e.channels for e in found if e.channels is not None]
    contexts = [e.context for e in found if e.context is not None]
    tokens, masks = [c.tokens for c in contexts], [c.mask for c in contexts]
    return Entered(
        sum(vectors[1:], vectors[0]) if vectors else None,
        jnp.concatenate(channels) if channels else None,
        Context(jnp.concatenate(tokens), jnp.concatenate(masks)) if contexts else None,
    )


def _matched(
    embeddings: Embeddings, args: Args, owner: str, where: str
) -> Iterator[tuple[str, AbstractConditionEmbedding, Args]]:
    """Every condition: where its value stands, its parameters and its value."""
    if _is_embedding(embeddings):
        yield where, embeddings, args
    elif isinstance(embeddings, dict):
        if args is not None:
            _check_names(embeddings, args, owner, where)
        for name, inner in embeddings.items():
            value = None if args is None else args[name]
            yield from _matched(inner, value, owner, f"{where}[{name!r}]")
    else:
        number = len(embeddings)
        if args is not None and not (isinstance(args, (tuple, list)) and len(args) == number):
            raise ValueError(
                f"this {owner} was built with a tuple of {number} conditions, and {where} is a "
                f"tuple of their values in that order, got {describe(args)}."
            )
        for i, inner in enumerate(embeddings):
            value = None if args is None else args[i]
            yield from _matched(inner, value, owner, f"{where}[{i}]")


def _check_names(embeddings: dict[str, Any], args: Args, owner: str, where: str) -> None:
    names = ", ".join(map(repr, embeddings))
    if not isinstance(args, dict):
        raise ValueError(
            f"this {owner} was built with the conditions {names}, and {where} is a dictionary of "
            f"their values by these names, got {describe(args)}."
        )
    for name in embeddings:
        if name not in args:
            conditions = all_conditions(embeddings[name])
            takes = conditions[0].takes if _is_embedding(embeddings[name]) else "its conditions"
            null = ", or None for its learned null" if all(map(has_null, conditions)) else ""
            raise ValueError(
                f"this {owner} was built with the conditions {names}, but {where} has no {name!r}: "
                f"add it, {where}={{..., {name!r}: ...}}, {takes}{null}."
            )
    for name in args:
        if name not in embeddings:
            raise ValueError(
                f"this {owner} was built with the conditions {names}, but {where} has {name!r} "
                f"too: leave it out, or build the network with conditions={{..., {name!r}: "
                f"{_suggested(args[name], 0)}}}."
            )


def _unexpected(args: Args, owner: str, dims: int) -> str:
    return (
        f"this {owner} was built without classes or conditions but was given args, "
        f"{describe(args)}. Build it with conditions={_suggested(args, dims)}, or pass args=None."
    )


def _suggested(value: Any, dims: int) -> str:
    """What a network that takes this value could be built with."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_suggested(v, dims)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)) and value:
        return "(" + ", ".join(_suggested(v, dims) for v in value) + ",)"
    shape = () if isinstance(value, int | float) else getattr(value, "shape", None)
    if shape is None:
        return "..."
    if shape == () and jnp.issubdtype(jnp.result_type(value), jnp.integer):
        return "eqdiff.nn.ClassCondition(num_classes=...)"
    if len(shape) < 2:
        return f"eqdiff.nn.VectorCondition({shape[0] if shape else 1})"
    if dims > 0 and len(shape) == 1 + dims:
        return f"eqdiff.nn.FieldCondition({shape[0]})"
    return f"eqdiff.nn.TokenCondition({shape[-1]})"
