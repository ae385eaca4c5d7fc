"""A compiled step, with as little Python in a call as there can be.

A state is flattened once in a call, its arrays are passed to `jax.jit` as a list, and anything else
in it is part of the key by which a compiled program is found. `eqx.filter_jit` does the
same leaf by leaf, several times over.

Where several processes take part, a batch that one of them cannot use is an error in all: the
others would wait indefinitely in a computation that the one never starts.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from .._deferred import Deferred
from ._batch import check_batch, place_batch
from ._metrics import StepMetrics
from ._processes import gather
from ._shard import place_state, processes_of
from ._state import TrainState


@jax.tree_util.register_static
class _Skeleton:
    """A pytree without its arrays. Hashed and compared as a whole."""

    def __init__(self, structure: Any, fixed: tuple[Any, ...]):
        self.structure, self.fixed = structure, fixed
        # Two tables are looked up in a call.
        self._hash = hash((structure, fixed))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: Any) -> bool:
        return (self.structure, self.fixed) == (other.structure, other.fixed)

    def filled(self, arrays: list[Any]) -> PyTree:
        remaining = iter(arrays)
        leaves = [next(remaining) if x is None else x for x in self.fixed]
        return jax.tree.unflatten(self.structure, leaves)


def _taken_apart(tree: PyTree) -> tuple[_Skeleton, list[Any]]:
    leaves, structure = jax.tree.flatten(tree)
    # None is not a leaf of a pytree, so it can stand for an array.
    fixed = tuple(None if isinstance(x, jax.Array | np.ndarray) else x for x in leaves)
    arrays = [x for x, rest in zip(leaves, fixed, strict=True) if rest is None]
    return _Skeleton(structure, fixed), arrays


class StepCost(NamedTuple):
    """What a compiled step costs, from [`eqdiff.train.Step.compile`][].

    **Fields:**

    - `seconds`: how long it took to trace and compile; nearly nothing if that was done before.
    - `flops`: the floating-point operations of one call on all devices together, as XLA counts
        them in the program it is given (with what is computed again by rematerialisation; a loop
        of the network's own counts as one turn). `None` where XLA does not say.
    - `peak_bytes`: the memory of one device that the step needs at most, with the state. `None`
        where XLA does not say.

    **Example:**

    ```python
    import optax
    optimiser, times = optax.adam(1e-3), eqd.Uniform(eqd.VPSDE())
    state = eqd.train.init(jnp.zeros(2), optimiser, timesteps=times, key=jax.random.key(0))
    step = eqd.train.make_step(lambda m, t, x0, args, key: (((m - x0) ** 2).sum(), {}), optimiser)
    cost = step.compile(state, (jnp.ones((8, 2)), None))  # an eqd.train.StepCost
    ```
    """

    seconds: float
    flops: float | None
    peak_bytes: int | None


class Step:
    """A train step, or several, made by [`eqdiff.train.make_step`][] or
    [`eqdiff.train.make_steps`][] and called as `state, metrics = step(state, batch)`.

    **Example:**

    ```python
    import optax
    optimiser, times = optax.adam(1e-3), eqd.Uniform(eqd.VPSDE())
    state = eqd.train.init(jnp.zeros(2), optimiser, timesteps=times, key=jax.random.key(0))
    step = eqd.train.make_step(lambda m, t, x0, args, key: (((m - x0) ** 2).sum(), {}), optimiser)
    cost = step.compile(state, (jnp.ones((8, 2)), None))  # of an eqd.train.Step
    ```
    """

    def __init__(
        self,
        owner: str,
        update: Callable[[PyTree, PyTree], tuple[PyTree, PyTree, Deferred]],
        *,
        mesh: Mesh | None,
        accumulate: int,
        lead: int = 0,
    ):
        """`update(state, batch) -> (state, metrics, deferred)`, whose metrics have no leaves but
        arrays, of a batch behind `lead` axes. Errors are those of `owner`.
        """
        self._owner = owner
        self._options = mesh, accumulate, lead
        self._processes = processes_of(mesh)
        self._known: dict[Any, Deferred] = {}
        self._shapes: Any = None

        @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
        def run(skeleton: _Skeleton, arrays: list[Any], batch: PyTree):
            state, metrics, deferred = update(skeleton.filled(arrays), batch)
            return *_taken_apart(state), metrics, deferred

        self._run = run

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        skeleton, arrays, metrics, _ = self._run(*self._prepared(state, batch))
        return skeleton.filled(arrays), metrics

    def compile(self, state: TrainState, batch: Any) -> StepCost:
        """Compiles the step for states and batches like these, and takes none.

        The first call would do it otherwise, in silence. Neither argument is changed or donated.

        **Returns:** a [`eqdiff.train.StepCost`][].

        **Raises:** as the step itself.
        """
        began = time.perf_counter()
        lowered = self._run.lower(*self._prepared(state, batch))
        compiled = lowered.compile()
        seconds = time.perf_counter() - began
        return StepCost(seconds, self._flops(lowered, batch), _peak_bytes(compiled))

    def _flops(self, lowered: Any, batch: Any) -> float | None:
        counted = (lowered.cost_analysis() or {}).get("flops")
        if counted is None:
            return None
        # XLA counts a loop as one turn. That over microbatches is none on a CPU.
        _, accumulate, lead = self._options
        steps = np.shape(jax.tree.leaves(batch)[0])[:lead]
        return float(counted) * math.prod(steps) * microbatch_turns(accumulate)

    def _prepared(self, state: TrainState, batch: Any) -> tuple[_Skeleton, list[Any], PyTree]:
        """What the compiled function is called with."""
        mesh, accumulate, lead = self._options
        if self._processes > 1:
            state = place_state(state, mesh)
            return self._agreed(state, batch)
        check_batch(batch, mesh, accumulate, lead)
        return self._ready(place_state(state, mesh), batch)

    def _ready(self, state: TrainState, batch: Any) -> tuple[_Skeleton, list[Any], PyTree]:
        placed = place_batch(batch, *self._options)
        skeleton, arrays = _taken_apart(state)
        if batch[1] is not None:
            self._check(skeleton, arrays, placed, batch[1])
        return skeleton, arrays, placed

    def _check(self, skeleton: _Skeleton, arrays: list[Any], batch: PyTree, args: PyTree) -> None:
        leaves, structure = jax.tree.flatten(batch)
        key = (skeleton, structure, *((x.shape, x.dtype) for x in leaves))
        if key not in self._known:
            # `jax.jit` compiles this very trace afterwards.
            self._known[key] = self._run.eval_shape(skeleton, arrays, batch)[-1]
        self._known[key].check(self._owner, args)

    def _agreed(self, state: TrainState, batch: Any) -> tuple[_Skeleton, list[Any], PyTree]:
        """What is ready in every process."""
        said, failure, ready, shapes = "", None, None, None
        try:
            check_batch(batch, *self._options)
            ready = self._ready(state, batch)
            shapes = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(ready[2])]
            if shapes != self._shapes:
                said = f"batches {shapes}"
        except Exception as error:
            said, failure = f"!{error}", error
        found = gather(said, "step")
        if failure is not None:
            raise failure
        assert ready is not None
        for index, text in found.items():
            if text.startswith("!"):
                raise ValueError(f"in process {index}: {text[1:]}")
        if found and (len(found) != self._processes or len({*found.values()}) > 1):
            listed = "; ".join(f"process {index}: {text}" for index, text in found.items())
            raise ValueError(
                f"{self._owner}: the processes give shares of different shapes, and there is one "
                f"program for all ({listed}; those not named go on as before): give each equally "
                "many examples."
            )
        self._shapes = shapes
        return ready


def microbatch_turns(accumulate: int) -> int:
    """The turns of the loop over microbatches in a compiled step."""
    # On a CPU there is none: inside a loop XLA's convolutions are up to twenty times slower.
    return 1 if jax.default_backend() == "cpu" else accumulate


def _peak_bytes(compiled: Any) -> int | None:
    found = compiled.memory_analysis()
    if found is None:
        return None
    given = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return given + found.temp_size_in_bytes
