r"""One optimiser step, from a batch of data to new parameters.

With times $t_i$ and importance weights $w_i$ drawn for the $n$ examples of a batch, the step
follows the gradient of

$$L(\theta) = \frac1n \sum_{i=1}^n w_i\, \ell_\theta(t_i, x_i). \tag{1}$$

The sum may be accumulated over microbatches of equal size to save memory. The gradient is then
their *mean*, exactly that of (1); the official code adds the microbatches' gradients without
dividing, so there the gradient's norm grows with their number (Adam hides it). Times are drawn once
for the whole batch, and the timestep strategy learns from all $n$ unweighted losses at once, in the
order of the batch.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from .._check import drawn_from
from .._deferred import defer, Deferred
from .._process import AbstractProcess
from .._types import Scalar
from ._batch import into_microbatches, Order, split_examples
from ._compiled import microbatch_turns, Step
from ._ema import ema_update
from ._layout import Params
from ._metrics import quartile_metrics, StepMetrics
from ._parts import axes, copies, join_parts, parameters, parts_of, take
from ._shard import check_options, is_shared, keep_state, replicated, shared_out
from ._state import TrainState


# loss_fn(net, t, x0, args, *, key) -> (loss, terms) for one example.
LossFn = Callable[..., tuple[Scalar, dict[str, Scalar]]]
Batch = tuple[PyTree[Any], PyTree[Any], Order]


def _as_scalar(name: str, value: Any) -> Scalar:
    if jnp.shape(value) != ():
        raise ValueError(
            f"loss_fn is for one example and returns scalars, but {name} has shape "
            f"{jnp.shape(value)}: average it inside, for example with jnp.mean."
        )
    value = jnp.asarray(value)
    # Means and sums over a batch need float32, whatever the network computes in.
    return value if value.dtype == jnp.float64 else value.astype(jnp.float32)


def _call(
    loss_fn: LossFn, process: AbstractProcess, net: PyTree, example: tuple
) -> tuple[Scalar, dict[str, Scalar], Deferred]:
    t, x0, args, key = example
    # A denoiser that is given this very t for another process says so: a time of a longer schedule
    # would otherwise train in silence.
    with drawn_from(t, process):
        out, deferred = defer(args, lambda: loss_fn(net, t, x0, args, key=key))
    if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], dict)):
        raise ValueError(
            "loss_fn must return the pair (loss, terms), terms a dictionary of scalars to log (it "
            f"may be empty): got {type(out).__name__}. Write `return loss, {{}}`."
        )
    loss, terms = out
    terms = {k: _as_scalar(f"the term {k!r}", v) for k, v in terms.items()}
    return _as_scalar("the loss", loss), terms, deferred


def _weighted_mean(weights: Float[Array, " n"], values: Float[Array, " n"]) -> Scalar:
    return jnp.mean(weights.astype(values.dtype) * values)


def _gradient(
    loss_fn: LossFn,
    process: AbstractProcess,
    state: TrainState,
    examples: tuple,
    accumulate: int,
    mesh: Mesh | None,
) -> tuple[Params, tuple]:
    """The gradient of (1), and the loss and terms of each example, as they lie in memory.

    With them, the checks of `args` that the loss leaves to the caller.
    """
    packing = state.packing
    parts = parts_of(packing.slots)
    taken = take(parts, _gathered(state.params, mesh))

    def mean_loss(taken: list[Array], weights: Float[Array, " n"], *examples: Any):
        def one(given: list[Array], *example: Any):
            found = parameters(parts, given)
            net = packing.network([found[slot.name] for slot in packing.slots], state.constants)
            return _call(loss_fn, process, net, example)

        given, each = copies(parts, taken, weights.size), (axes(parts), *len(examples) * (0,))
        losses, terms, deferred = jax.vmap(one, each)(given, *examples)
        return _weighted_mean(weights, losses), (losses, terms, deferred)

    def gradient_of(*examples: Any) -> tuple[Params, tuple]:
        gradient, losses = jax.grad(mean_loss, has_aux=True)(taken, *examples)
        joined = join_parts(parts, gradient)
        return joined if mesh is None else shared_out(joined, mesh), losses

    if accumulate == 1:
        return gradient_of(*examples)

    def microbatch(total: Params, examples: tuple):
        gradient, losses = gradient_of(*examples)
        return jax.tree.map(jnp.add, total, gradient), losses

    unroll = accumulate // microbatch_turns(accumulate)
    nothing = jax.tree.map(jnp.zeros_like, state.params)
    total, losses = jax.lax.scan(microbatch, nothing, examples, unroll=unroll)
    return jax.tree.map(lambda g: g / accumulate, total), losses


def _gathered(params: Params, mesh: Mesh | None) -> Params:
    # Whole vectors before the network cuts parameters out of them: cut out of a shared one, each
    # would be a message of its own.
    return eqx.filter_shard(params, replicated(mesh)) if mesh and is_shared(mesh) else params


def _draw(state: TrainState, n: int):
    """The times, their weights and one key per example for this step."""
    key = jax.random.fold_in(state.key, state.step)
    times_key, examples_key = jax.random.split(key)
    t, weights = state.timesteps.sample(state.timestep_state, n, key=times_key)
    return t, weights, jax.random.split(examples_key, n)


def _advance(
    state: TrainState,
    optimiser: optax.GradientTransformationExtraArgs,
    gradient: Params,
    loss: Scalar,
    nonfinite: Bool[Array, ""],
) -> tuple[tuple[Params, tuple[Params, ...], PyTree], dict[str, Scalar]]:
    """The new parameters, averages and optimiser's state: the old ones if a step is spoilt. And the
    norms of what was done."""
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimiser.update(gradient, state.opt_state, state.params, value=loss)
        new = optax.apply_updates(state.params, updates)
    n = state.step + 1
    ema = tuple(
        ema_update(rule, average, new, n)
        for rule, average in zip(state.ema_rules, state.ema, strict=True)
    )

    def unless_spoilt(old: Any, new: Any) -> Any:
        # One NaN in the parameters is NaN in all of them a step later, and for good.
        return jnp.where(nonfinite, old, new) if eqx.is_array(new) else new

    old = (state.params, state.ema, state.opt_state)
    kept = jax.tree.map(unless_spoilt, old, (new, ema, opt_state))
    update_norm = jnp.where(nonfinite, 0.0, _norm(updates))
    return kept, {"update_norm": update_norm, "param_norm": _norm(kept[0])}


def _norm(tree: PyTree) -> Scalar:
    with jax.numpy_dtype_promotion("standard"):
        return optax.tree.norm(tree)


def _report(
    process: AbstractProcess,
    t: Shaped[Array, " n"],
    weights: Float[Array, " n"],
    losses: Float[Array, " n"],
    terms: dict[str, Float[Array, " n"]],
    **known: Array,
) -> StepMetrics:
    sums, counts = quartile_metrics(t, {"loss": losses, **terms}, process)
    return StepMetrics(
        terms={name: _weighted_mean(weights, values) for name, values in terms.items()},
        quartile_sums=sums,
        quartile_counts=counts,
        **known,
    )


def _make_update(
    loss_fn: LossFn,
    optimiser: optax.GradientTransformation,
    mesh: Mesh | None,
    accumulate: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics, Deferred]]:
    """The step itself, to be compiled."""
    extended = optax.with_extra_args_support(optimiser)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics, Deferred]:
        x0, args, order = batch
        n = math.prod(jax.tree.leaves(x0)[0].shape[: 1 if accumulate == 1 else 2])
        t, weights, keys = _draw(state, n)
        draws = into_microbatches((weights, t, keys), accumulate)
        draws = jax.tree.map(order.laid_out, draws)
        if mesh is not None:
            draws = eqx.filter_shard(draws, split_examples(mesh, accumulate))
        examples = (draws[0], draws[1], x0, args, draws[2])
        process = state.timesteps.process
        gradient, reported = _gradient(loss_fn, process, state, examples, accumulate, mesh)
        losses, terms, deferred = jax.tree.map(lambda x: order.by_position(x).reshape(-1), reported)

        loss, grad_norm = _weighted_mean(weights, losses), _norm(gradient)
        nonfinite = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
        kept, norms = _advance(state, extended, gradient, loss, nonfinite)
        params, ema, opt_state = kept
        norms = {"grad_norm": grad_norm, **norms}
        metrics = _report(
            process, t, weights, losses, terms, loss=loss, nonfinite=nonfinite, **norms
        )
        new = TrainState(
            params=params,
            constants=state.constants,
            ema=ema,
            opt_state=opt_state,
            timesteps=state.timesteps,
            timestep_state=state.timesteps.update(state.timestep_state, t, losses),
            key=state.key,
            step=state.step + 1,
            ema_rules=state.ema_rules,
            packing=state.packing,
        )
        if mesh is not None:
            new, metrics = keep_state(new, mesh), eqx.filter_shard(metrics, replicated(mesh))
        return new, metrics, deferred

    return update


def make_step(
    loss_fn: LossFn,
    optimiser: optax.GradientTransformation,
    *,
    mesh: Mesh | None = None,
    accumulate: int = 1,
) -> Step:
    r"""Compiles a loss into a train step `state, metrics = step(state, batch)`.

    A step draws times, averages the weighted loss over the batch (equation 1), updates the
    parameters, their moving averages and the timestep strategy. The state you pass is *donated*:
    its memory is reused for the new one, so you cannot use it again.

    A step whose loss or gradient is not finite leaves parameters, averages and the optimiser's
    state as they were, and says so in its metrics (`nonfinite`): one bad example does not turn the
    weights into NaN. The next step draws other times and noise.

    **Arguments:**

    - `loss_fn`: `loss_fn(net, t, x0, args, *, key) -> (loss, terms)` for one example, `terms` a
        dictionary of scalars to log. Only `net` is differentiated.
    - `optimiser`: the one given to [`eqdiff.train.init`][]. The mean loss reaches it as `value=`,
        for transformations such as `optax.contrib.reduce_on_plateau`.
    - `mesh`: devices with an axis `"data"`, across which the batch is split
        ([`eqdiff.train.data_mesh`][]); by default everything runs on the default device. The result
        does not depend on the number of devices or processes, nor on whether devices share the
        state.
    - `accumulate`: the number of microbatches into which the batch is cut, to save memory. The
        gradient is the mean over the whole batch.

    **Returns:** an [`eqdiff.train.Step`][]. It takes a state and a batch `(x0, args)`, arrays with
    a leading axis of examples (`args` a pytree of them, or `None`), and returns the new state and
    [`eqdiff.train.StepMetrics`][]. In a job of several processes a batch is this process's share
    of the global one, every so many-th example, as [`eqdiff.data.loader`][] reads it; an array of
    all processes is the global batch itself.

    **Raises:** `ValueError`, from the step and before any compute, for a batch that cannot be
    divided evenly, for a loss function that returns something else, for one whose denoiser has
    another process than the times were drawn from, and for a class label that the network does not
    have. The state survives these. Labels that are on a device already are copied to the host
    for the check.

    **Example:**

    ```python
    import optax
    denoiser = eqd.Denoiser(eqd.nn.MLP(2, 2, key=jax.random.key(0)), eqd.VPSDE())
    optimiser, times = optax.adam(1e-3), eqd.Uniform(eqd.VPSDE())
    state = eqd.train.init(denoiser, optimiser, timesteps=times, key=jax.random.key(1))
    loss_fn = lambda d, t, x0, args, key: (eqd.l_simple(eqd.predict(d, t, x0, args, key=key)), {})
    step = eqd.train.make_step(loss_fn, optimiser)
    state, metrics = step(state, (jnp.ones((8, 2)), None))
    ```
    """
    mesh = check_options(mesh, accumulate)
    update = _make_update(loss_fn, optimiser, mesh, accumulate)
    return Step("make_step", update, mesh=mesh, accumulate=accumulate)


def make_steps(
    loss_fn: LossFn,
    optimiser: optax.GradientTransformation,
    *,
    mesh: Mesh | None = None,
    accumulate: int = 1,
) -> Step:
    r"""Several train steps in one call, `state, metrics = steps(state, batches)`.

    The steps are those of [`eqdiff.train.make_step`][], one after another under `jax.lax.scan`, so
    that Python and the transfer of data are paid for once: worth it where a step takes a GPU no
    more than a few milliseconds. A call takes as long as its steps do, and nothing can be logged or
    saved in between.

    The numbers are bit for bit those of single steps, unless the compiler has other kernels for a
    loop. That for CPUs has, for convolutions: they are rounded otherwise there and twenty times
    slower, so train convolutional networks on a CPU in single steps.

    **Arguments:**

    - `loss_fn`, `optimiser`, `mesh`, `accumulate`: as for [`eqdiff.train.make_step`][].

    **Returns:** the steps. They take a state and a stack of batches: `(x0, args)` as for a step,
    with one more leading axis, that of the steps. Their number is the length of that axis; each
    new length is compiled anew. The [`eqdiff.train.StepMetrics`][] returned have the same leading
    axis, and [`eqdiff.train.summarise`][] takes them as they are.

    **Raises:** as [`eqdiff.train.make_step`][].

    **Example:**

    ```python
    import optax
    optimiser, times = optax.adam(1e-3), eqd.Uniform(eqd.VPSDE())
    state = eqd.train.init(jnp.zeros(2), optimiser, timesteps=times, key=jax.random.key(0))
    steps = eqd.train.make_steps(lambda m, t, x0, args, key: (((m - x0) ** 2).sum(), {}), optimiser)
    state, metrics = steps(state, (jnp.ones((10, 8, 2)), None))  # ten batches of eight
    ```
    """
    mesh = check_options(mesh, accumulate)
    one = _make_update(loss_fn, optimiser, mesh, accumulate)

    def several(state: TrainState, batches: Batch) -> tuple[TrainState, StepMetrics, Deferred]:
        arrays, rest = eqx.partition(state, eqx.is_array)

        def body(arrays: PyTree, batch: Batch) -> tuple[PyTree, tuple[StepMetrics, Deferred]]:
            # Fused with how a batch is cut out of its stack and metrics are put into theirs, a step
            # would be rounded otherwise than alone.
            arrays, batch = jax.lax.optimization_barrier((arrays, batch))
            state, metrics, deferred = one(eqx.combine(arrays, rest), batch)
            new = jax.lax.optimization_barrier((eqx.filter(state, eqx.is_array), metrics))
            return new[0], (new[1], deferred)

        arrays, (metrics, deferred) = jax.lax.scan(body, arrays, batches)
        return eqx.combine(arrays, rest), metrics, deferred

    owner = "make_steps, counting over all steps"
    return Step(owner, several, mesh=mesh, accumulate=accumulate, lead=1)
