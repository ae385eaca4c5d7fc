r"""One way to run a function over many examples.

A function of one example is mapped over any number of them in chunks of one compiled, batched call,
spread over a device mesh if one is given. Example $i$ has the key `fold_in(key, i)`: its result
depends on the key and on $i$ alone, not on the chunk size, the number of devices, or how many
others there are. A short last chunk is filled up with copies of the last example, whose results are
dropped, so that one program serves all.

Sampling is the same with the noise for an example.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, PyTree

from ._check import whole
from ._denoiser import AbstractDenoiser
from ._require import require
from ._sampler import AbstractSampler
from ._sampler.base import check_call
from ._store import Store
from ._types import Key


# What a failing program raises: a check of eqdiff's or Equinox's, or XLA itself.
_FAILURES = (eqx.EquinoxRuntimeError, jax.errors.JaxRuntimeError)

# If the first examples all fail, this many of them, the others are not tried.
_HOPELESS = 16


class FailedExamples(RuntimeError):
    """Raised after all examples were tried, where some of them failed.

    ```python
    try:
        values = eqd.map_examples(bits, images, key=key)
    except eqd.FailedExamples as error:
        print(error)
        values = error.results  # NaN where an example failed
    ```

    - `errors`: what each failed example's check said, by its index.
    - `results`: what would have been returned, with NaN for the failed examples.
    """

    def __init__(self, name: str, num: int, errors: dict[int, str], results: PyTree[np.ndarray]):
        shown = ", ".join(map(str, sorted(errors)[:20])) + (", …" if len(errors) > 20 else "")
        super().__init__(
            f"{name}: {len(errors)} of {num} examples failed, and their results are NaN in this "
            f"error's `results`, with those of the others. Their indices: {shown}. The first: "
            f"{errors[min(errors)]}"
        )
        self.errors, self.results = errors, results


def map_examples(
    fn: Callable[..., PyTree[Any]],
    *args: PyTree[Any],
    key: Key,
    batch_size: int = 256,
    mesh: Mesh | None = None,
    progress: bool = False,
    folder: str | os.PathLike | None = None,
) -> PyTree[np.ndarray]:
    """`fn(*example, key)` of every example, in chunks.

    ```python
    def bits(x, key):
        return eqd.bits_per_dim(denoiser, x, flow=flow, dequantise=dequantise, key=key).bits

    values = eqd.map_examples(bits, images, key=key, progress=True)
    ```

    **A bad example does not lose the others.** Where a chunk fails with an error at run time (a
    solve that did not arrive, a value off its levels), its examples are tried one by one: those
    that fail alone have NaN for a result (whole numbers become floating-point ones), and
    [`eqdiff.FailedExamples`][] is raised at the end, which names them and carries all results. If
    all fail, or the first 16, the error itself is raised at once. Errors before any computation (a
    wrong shape, a missing key) are raised as usual.

    **Arguments:**

    - `fn`: a function of one example of each of `args`, and a key. It is traced once a call; the
        arrays that it uses are inputs of the compiled program, not constants in it. Written as an
        [Equinox](https://docs.kidger.site/equinox) module, it is compiled once for all calls.
    - `args`: arrays or pytrees of them, all with a leading axis of one length.
    - `key`: example `i` has the key `jax.random.fold_in(key, i)`.
    - `batch_size`: how many examples are computed at once; memory grows with it.
    - `mesh`: a device mesh; each chunk is split along the mesh's first axis, its size rounded up to
        fill it. Devices do not wait for one another: `fn` itself must hold no collective.
    - `progress`: shows a bar with rate and ETA (needs tqdm).
    - `folder`: where to write each finished chunk, so that the same call continues after an
        interruption. A chunk with failures is not kept but tried again. A folder of a call with
        another key, other shapes or another batch size is refused; that `fn` and the data are
        still the same is yours to ensure.

    **Returns:** what `fn` returns, as NumPy arrays with a leading axis.

    **Raises:** `ValueError` for no arguments, leading axes of different lengths, numbers that are
    not whole and positive, or a folder of another call; [`eqdiff.FailedExamples`][].
    """
    if not jax.tree.leaves(args):
        raise ValueError("map_examples: expected at least one array to map over.")
    num = _length("map_examples", args)

    if not isinstance(fn, eqx.Module):
        fn = _converted(fn, args, key)

    name = "map_examples"
    return _in_chunks(name, _apply, fn, args, num, key, batch_size, mesh, progress, folder)


def generate(
    sampler: AbstractSampler,
    denoiser: AbstractDenoiser,
    num: int,
    shape: tuple[int, ...],
    *,
    key: Key,
    args: PyTree[Any] = None,
    batch_size: int = 256,
    mesh: Mesh | None = None,
    progress: bool = False,
    folder: str | os.PathLike | None = None,
) -> Float[np.ndarray, "num ..."]:
    """Draws `num` samples of the given shape.

    **Arguments:**

    - `sampler`, `denoiser`: how, and of what.
    - `num`: how many.
    - `shape`: of one sample, for example `(3, 32, 32)`.
    - `key`: sample `i` is drawn from this key and `i`.
    - `args`: what conditions the network, with a leading axis of length `num`; or `None`.
    - `batch_size`, `mesh`, `progress`, `folder`: as for [`eqdiff.map_examples`][], and so are
        samples that fail.

    **Returns:** a NumPy array of shape `(num, *shape)`.

    **Raises:** `ValueError` for `args` of another length than `num`, or numbers that are not whole
    and positive.
    """
    num = whole("generate", "num", num)
    check_call("generate", denoiser, jnp.zeros(0))
    if jax.tree.leaves(args) and _length("generate", args) != num:
        raise ValueError(
            f"generate: args must have a leading axis of length num={num}, but a leaf has shape "
            f"{np.shape(jax.tree.leaves(args)[0])}."
        )
    drawing = (sampler, denoiser, tuple(whole("generate", "shape", n) for n in shape))
    return _in_chunks(
        "sampling", _draw, drawing, args, num, key, batch_size, mesh, progress, folder
    )


class _Converted(eqx.Module):
    """A function whose arrays, wherever it took them from, are leaves of it."""

    program: Jaxpr = eqx.field(static=True)
    arrays: list[Any]
    structure: Any = eqx.field(static=True)

    def __call__(self, *args: PyTree[Any]) -> PyTree[Any]:
        outputs = jaxpr_as_fun(ClosedJaxpr(self.program, self.arrays))(*jax.tree.leaves(args))
        return jax.tree.unflatten(self.structure, outputs)


def _converted(fn: Callable[..., PyTree[Any]], args: PyTree[Any], key: Key) -> _Converted:
    """A plain function's arrays would become constants of the program, weights and all.

    Equinox's `filter_closure_convert` sees closures alone, not the variables of a script.
    """

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(leaf)[1:], jnp.result_type(leaf))

    single = jax.tree.map(one, args)
    program, shapes = jax.make_jaxpr(fn, return_shape=True)(*single, key)
    return _Converted(program.jaxpr, program.consts, jax.tree.structure(shapes))


def _apply(fn, row, key):
    return fn(*row, key)


def _draw(drawing, args, key):
    sampler, denoiser, shape = drawing
    # Prior and path must not share a key.
    prior_key, path_key = jax.random.split(key)
    x1 = denoiser.process.prior_sample(shape, key=prior_key)
    return sampler(denoiser, x1, args, key=path_key)


@eqx.filter_jit
def _run(one, what, rows, indices, key, mesh):
    """`one(what, row, key)` of each row, with the key of its index."""
    arrays, rest = eqx.partition(what, eqx.is_array)

    def batch(arrays, rows, indices, key):
        def example(row, index):
            return one(eqx.combine(arrays, rest), row, jax.random.fold_in(key, index))

        return jax.vmap(example)(rows, indices)

    if mesh is not None:
        # Each device by itself. In a program that devices run together, one that fails would leave
        # the others waiting for it, and XLA ends the process.
        split, same = PartitionSpec(mesh.axis_names[0]), PartitionSpec()
        batch = jax.shard_map(
            batch,
            mesh=mesh,
            in_specs=(same, split, split, same),
            out_specs=split,
            check_vma=False,
        )
    return batch(arrays, rows, indices, key)


def _length(owner: str, args: PyTree[Any]) -> int:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(args)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(
            f"{owner}: every array needs a leading axis of one length, but their shapes are "
            f"{shapes}."
        )
    return whole(owner, "examples", shapes[0][0])


def _in_chunks(name, one, what, args, num, key, batch_size, mesh, progress, folder):
    """`one(what, args[i], fold_in(key, i))` for all i, in chunks."""
    batch_size = min(whole(name, "batch_size", batch_size), num)
    # Once, not for each chunk: from an accelerator this copies.
    args = jax.tree.map(np.asarray, args)
    spread = lambda inputs: inputs  # noqa: E731
    if mesh is not None:
        size = mesh.shape[mesh.axis_names[0]]
        batch_size = -(-batch_size // size) * size
        # Axes of type Auto: those of jax.make_mesh are Explicit, and shardings would be part of the
        # types that `fn` is traced with.
        mesh = Mesh(mesh.devices, mesh.axis_names)
        # Weights that sit on one device could not meet inputs that are spread over several.
        arrays, rest = eqx.partition((what, key), eqx.is_array)
        everywhere = NamedSharding(mesh, PartitionSpec())
        what, key = eqx.combine(jax.device_put(arrays, everywhere), rest)
        split = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
        spread = lambda inputs: jax.device_put(inputs, split)  # noqa: E731

    def inputs_of(indices: np.ndarray) -> tuple[Any, ...]:
        rows = np.minimum(indices, num - 1)
        batch = jax.tree.map(lambda leaf: leaf[rows], args)
        return one, what, *spread((batch, jnp.asarray(indices, jnp.uint32))), key, mesh

    def call(indices: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(_run(*inputs_of(indices)))]

    # What a chunk will look like, also where it is read from a file or fails.
    shapes = eqx.filter_eval_shape(_run, *inputs_of(np.arange(batch_size)))
    store = None if folder is None else Store(folder, name, args, shapes, num, key, batch_size)
    failed: dict[int, str] = {}

    def chunk(start: int) -> list[np.ndarray]:
        kept = None if store is None else store.read(start)
        if kept is not None:
            return kept
        indices = np.arange(start, start + batch_size)
        try:
            result = [leaf[: num - start] for leaf in call(indices)]
        except _FAILURES:
            return _one_by_one(call, indices, num, shapes, failed)
        if store is not None:
            store.write(start, result)
        return result

    starts = range(0, num, batch_size)
    try:
        results = [chunk(s) for s in (_bar(starts, num, batch_size, name) if progress else starts)]
    finally:
        if failed and mesh is not None:
            _forget_failures(mesh.local_devices)
    leaves = [np.concatenate(parts) for parts in zip(*results, strict=True)]
    everything = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    if failed:
        raise FailedExamples(name, num, failed, everything)
    return everything


def _one_by_one(
    call: Callable[[np.ndarray], list[np.ndarray]],
    indices: np.ndarray,
    num: int,
    shapes: PyTree[Any],
    failed: dict[int, str],
) -> list[np.ndarray]:
    """The results of a chunk that failed as a whole, NaN for the examples that fail alone."""
    missing = [_nan(leaf) for leaf in jax.tree.leaves(shapes)]
    rows = []
    for index in indices[indices < num]:
        try:
            # The same program, filled with copies of one example: nothing is compiled anew.
            rows.append([leaf[0] for leaf in call(np.full_like(indices, index))])
        except _FAILURES as error:
            failed[int(index)] = _said(error)
            # None so far that did not fail: it is the function that is bad, not the examples.
            if len(failed) == index + 1 == min(num, _HOPELESS):
                raise
            rows.append(missing)
    return [np.stack(parts) for parts in zip(*rows, strict=True)]


def _forget_failures(devices: Iterable[jax.Device]) -> None:
    """Lets JAX forget a failed program of several devices.

    It is kept with each device, and `jax.effects_barrier`, also called at Python's exit, would
    raise its error again.
    """
    for device in devices:
        jax.jit(lambda x: jax.debug.callback(lambda _: None, x))(jax.device_put(0, device))


def _nan(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
    return np.full(leaf.shape[1:], np.nan, leaf.dtype if inexact else np.float64)


def _said(error: Exception) -> str:
    """What a failing check said, without what Equinox and JAX wrap around it."""
    said = re.search(r"EquinoxRuntimeError: (.+?)(\n\s*\n|$)", str(error), re.DOTALL)
    text = " ".join((said[1] if said else str(error)).split()) or type(error).__name__
    return text if len(text) < 400 else text[:400] + " …"


def _bar(starts: range, num: int, batch_size: int, what: str) -> Iterator[int]:
    tqdm = require("tqdm", "A progress bar", extra="data").tqdm
    with tqdm(total=num, unit="example", desc=what) as bar:
        for start in starts:
            yield start
            bar.update(min(batch_size, num - start))
