r"""One way to run a function over many examples.

A function of one example is mapped over any number of them in chunks of one compiled, batched call,
spread over a device mesh if one is given. Example $i$ has the key `fold_in(key, i)`: its result
depends on the key and on $i$ alone, not on the chunk size, the number of devices, or how many
others there are. A short last chunk is filled up with copies of the last example, whose results are
dropped, so that one program serves all.

Sampling is the same with the noise for an example.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
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
    solve that did not arrive, a value off the grid), its examples are tried one by one: those that
    fail alone have NaN for a result (whole numbers become floating-point ones there), and a warning
    at the end gives their indices and the error of each kind. Errors before any computation (a
    wrong shape, a missing key) are raised as usual.

    **Arguments:**

    - `fn`: a function of one example of each of `args`, and a key. It is traced once; what it
        closes over is an input of the compiled program, not a constant in it.
    - `args`: arrays or pytrees of them, all with a leading axis of one length.
    - `key`: example `i` has the key `jax.random.fold_in(key, i)`.
    - `batch_size`: how many examples are computed at once; memory grows with it.
    - `mesh`: a device mesh; each chunk is split along the mesh's first axis, its size rounded up to
        fill all devices.
    - `progress`: shows a bar with rate and ETA (needs tqdm).
    - `folder`: where to write each finished chunk, so that the same call continues after an
        interruption. Chunks written by a call with another key, other shapes or another batch size
        are an error; that `fn` and the data are still the same is yours to ensure.

    **Returns:** what `fn` returns, as NumPy arrays with a leading axis.

    **Raises:** `ValueError` for no arguments, leading axes of different lengths, numbers that are
    not whole and positive, or a folder of another call.
    """
    if not jax.tree.leaves(args):
        raise ValueError("map_examples: expected at least one array to map over.")
    num = _length("map_examples", args)

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(leaf)[1:], jnp.result_type(leaf))

    if not isinstance(fn, eqx.Module):
        # A plain function's closure would become constants of the program, weights and all.
        fn = eqx.filter_closure_convert(fn, *jax.tree.map(one, args), key)

    def run(static: Any, rows: PyTree[Any], indices: Any, key: Key) -> PyTree[Any]:
        return _apply(static, rows, indices, key)

    return _in_chunks("map_examples", run, fn, args, num, key, batch_size, mesh, progress, folder)


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
    drawing = (sampler, denoiser)
    shape = tuple(whole("generate", "shape", n) for n in shape)

    def run(static: Any, rows: PyTree[Any], indices: Any, key: Key) -> PyTree[Any]:
        return _draw(*static, shape, rows, indices, key)

    return _in_chunks("sampling", run, drawing, args, num, key, batch_size, mesh, progress, folder)


@eqx.filter_jit
def _apply(fn, rows, indices, key):
    def one(index, row):
        return fn(*row, jax.random.fold_in(key, index))

    return jax.vmap(one)(indices, rows)


@eqx.filter_jit
def _draw(sampler, denoiser, shape, rows, indices, key):
    def one(index, args):
        # Prior and path must not share a key.
        prior_key, path_key = jax.random.split(jax.random.fold_in(key, index))
        x1 = denoiser.process.prior_sample(shape, key=prior_key)
        return sampler(denoiser, x1, args, key=path_key)

    return jax.vmap(one)(indices, rows)


def _length(owner: str, args: PyTree[Any]) -> int:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(args)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(
            f"{owner}: every array needs a leading axis of one length, but their shapes are "
            f"{shapes}."
        )
    return whole(owner, "examples", shapes[0][0])


def _in_chunks(what, run, static, args, num, key, batch_size, mesh, progress, folder):
    """All chunks of `run(static, rows, indices, key)`, concatenated."""
    batch_size = min(whole(what, "batch_size", batch_size), num)
    spread = lambda inputs: inputs  # noqa: E731
    if mesh is not None:
        batch_size = -(-batch_size // mesh.devices.size) * mesh.devices.size
        # Weights that sit on one device could not meet inputs that are spread over several.
        arrays, rest = eqx.partition((static, key), eqx.is_array)
        everywhere = NamedSharding(mesh, PartitionSpec())
        static, key = eqx.combine(jax.device_put(arrays, everywhere), rest)
        split = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
        spread = lambda inputs: jax.device_put(inputs, split)  # noqa: E731

    def inputs_of(indices: np.ndarray) -> tuple[PyTree[Any], Any]:
        rows = np.minimum(indices, num - 1)
        # Not np.take: it would hand JAX arrays to jax.numpy, which has no such mode.
        batch = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], args)
        return spread((batch, jnp.asarray(indices, jnp.uint32)))

    def call(indices: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(run(static, *inputs_of(indices), key))]

    # What a chunk will look like, also where it is read from a file or fails.
    shapes = eqx.filter_eval_shape(run, static, *inputs_of(np.arange(batch_size)), key)
    store = None if folder is None else Store(folder, args, num, key, batch_size)
    failed: dict[int, str] = {}

    def chunk(start: int) -> list[np.ndarray]:
        kept = None if store is None else store.read(start)
        if kept is not None:
            return kept
        indices = np.arange(start, start + batch_size)
        try:
            result = [leaf[: num - start] for leaf in call(indices)]
        except _FAILURES as error:
            result = _one_by_one(call, indices, num, shapes, failed)
            if start == 0 and batch_size > 1 and len(failed) == min(num, batch_size):
                # Not a bad example but a bad function.
                raise error
        if store is not None:
            store.write(start, result)
        return result

    starts = range(0, num, batch_size)
    results = [chunk(s) for s in (_bar(starts, num, batch_size, what) if progress else starts)]
    if failed:
        shown = ", ".join(map(str, sorted(failed)[:20])) + (", …" if len(failed) > 20 else "")
        warnings.warn(
            f"{what}: {len(failed)} of {num} examples failed, and their results are NaN. Their "
            "indices: "
            f"{shown}. The first: {failed[min(failed)]}",
            RuntimeWarning,
            stacklevel=3,
        )
    leaves = [np.concatenate(parts) for parts in zip(*results, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


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
            failed[int(index)] = _first_line(error)
            rows.append(missing)
    return [np.stack(parts) for parts in zip(*rows, strict=True)]


def _nan(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
    return np.full(leaf.shape[1:], np.nan, leaf.dtype if inexact else np.float64)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _bar(starts: range, num: int, batch_size: int, what: str) -> Iterator[int]:
    tqdm = require("tqdm", "A progress bar", extra="data").tqdm
    with tqdm(total=num, unit="example", desc=what) as bar:
        for start in starts:
            yield start
            bar.update(min(batch_size, num - start))
