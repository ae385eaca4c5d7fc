r"""One way to run a function over many examples.

A function of one example is mapped over any number of them in chunks of one compiled, batched call,
spread over a device mesh if one is given. Example $i$ has the key `fold_in(key, i)`: its result
depends on the key and on $i$ alone, not on the chunk size, the number of devices, or how many
others there are. A short last chunk is filled up with copies of the last example, whose results are
dropped, so that one program serves all.

Class labels among the arguments are checked before the program runs, so that it need not call back
to Python: see `_deferred.py`.

Sampling is the same, with the noise as the example.
"""

import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jax.sharding import Mesh
from jaxtyping import Float, PyTree

from ._check import whole
from ._chunks import Job
from ._deferred import defer, Deferred
from ._denoiser import AbstractDenoiser
from ._sampler import AbstractSampler
from ._sampler.base import check_call
from ._share import in_chunks, to_writer
from ._types import Key
from ._writer import AbstractWriter


Result = TypeVar("Result")


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

    **A bad example does not lose the others.** Where a chunk fails with an error at run time (a
    solve that did not finish, a value off its levels), its examples are tried one by one: those
    that fail alone have NaN for a result (whole numbers become floating-point ones), and
    [`eqdiff.FailedExamples`][] is raised at the end, which names them and carries all results. If
    all fail, or the first 16, the error itself is raised at once. Errors before any computation (a
    wrong shape, a missing key) are raised as usual.

    **Arguments:**

    - `fn`: a function of one example of each of `args`, and a key. It is traced once per call; the
        arrays that it uses are inputs of the compiled program, not constants in it. Written as an
        [Equinox](https://docs.kidger.site/equinox) module, it is compiled once for all calls.
    - `args`: arrays or pytrees of them, all with a leading axis of one length.
    - `key`: example `i` has the key `jax.random.fold_in(key, i)`.
    - `batch_size`: how many examples are computed at once; memory grows with it. The next ones are
        prepared meanwhile, so that a device does not wait for the host.
    - `mesh`: a device mesh; each chunk is split over its devices, whatever their axes, its size
        rounded up to fill them. Devices run independently: `fn` must not contain a collective. If
        the devices are those of several processes, all of these make the call, each computes its
        share of the chunks on its own devices, and all return everything; with a `folder`, which
        they must share. Without a mesh each process works for itself.
    - `progress`: shows a bar with rate and ETA (needs tqdm).
    - `folder`: where to write each finished chunk, so that the same call continues after an
        interruption, a `kill -9` at any moment included. Damaged chunks, and those of other data,
        are computed again; a chunk with failures is tried again. A folder of a call with another
        key, other shapes, another batch size, other weights or another program of `fn` is refused.

    **Returns:** what `fn` returns, as NumPy arrays with a leading axis.

    **Raises:** `ValueError` for no arguments, leading axes of different lengths, numbers that are
    not whole and positive, a class label that the network does not have, or a folder of another
    call; [`eqdiff.FailedExamples`][].

    **Example:**

    ```python
    denoiser, key = eqd.GaussianDenoiser(eqd.VPSDE()), jax.random.key(0)
    loss = lambda x, key: eqd.l_simple(eqd.predict(denoiser, 0.5, x, key=key))
    values = eqd.map_examples(loss, jnp.ones((100, 3)), key=key, batch_size=50)  # shape (100,)
    ```
    """
    if not jax.tree.leaves(args):
        raise ValueError("map_examples: expected at least one array to map over.")
    num = _length("map_examples", args)

    if not isinstance(fn, eqx.Module):
        fn = _converted(fn, args, key)

    name = "map_examples"
    one = _apply_converted if isinstance(fn, _Converted) else _apply
    return in_chunks(Job(name, one, fn, args, num, key, batch_size, mesh), folder, progress)


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

    - `sampler`, `denoiser`: the sampler, and the denoiser to sample.
    - `num`: how many.
    - `shape`: of one sample, for example `(3, 32, 32)`.
    - `key`: sample `i` is drawn from this key and `i`.
    - `args`: the network's conditioning, with a leading axis of length `num`; or `None`.
    - `batch_size`, `mesh`, `progress`, `folder`: as for [`eqdiff.map_examples`][], which also
        describes what happens to samples that fail.

    **Returns:** a NumPy array of shape `(num, *shape)`.

    **Raises:** `ValueError` for `args` of another length than `num`, numbers that are not whole and
    positive, or a class label that the network does not have.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    x0 = eqd.generate(eqd.DDIM(10), denoiser, 64, (3,), key=jax.random.key(0))  # shape (64, 3)
    ```
    """
    job = _drawing("generate", sampler, denoiser, num, shape, key, args, batch_size, mesh)
    return in_chunks(job, folder, progress)


def generate_to(
    writer: AbstractWriter,
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
) -> None:
    """Draws `num` samples as [`eqdiff.generate`][] does, straight to files.

    No more than two chunks are in memory at a time. The same call continues after an interruption,
    a `kill -9` at any moment included, computes only the chunks that are missing, damaged or made
    with other `args`, and leaves the same files as a call that was never interrupted.

    **Arguments:**

    - `writer`: the destination: [`eqdiff.data.PNGWriter`][], [`eqdiff.data.NPZWriter`][], or your
        own [`eqdiff.AbstractWriter`][].
    - All others as for [`eqdiff.generate`][].

    **Raises:** as [`eqdiff.generate`][], and as the writer: `ValueError` if the destination holds
    anything else, `OSError` if it cannot be written. [`eqdiff.FailedExamples`][] has no results
    here: chunks with a failed sample are not written.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE(), 0.0, 0.3)
    writer = eqd.data.NPZWriter("samples.npz")
    eqd.generate_to(writer, eqd.DDIM(2), denoiser, 4, (3, 8, 8), key=jax.random.key(0))
    ```
    """
    job = _drawing("generate_to", sampler, denoiser, num, shape, key, args, batch_size, mesh)
    to_writer(job, writer, progress)


def _drawing(name, sampler, denoiser, num, shape, key, args, batch_size, mesh) -> Job:
    num = whole(name, "num", num)
    check_call(name, denoiser, jnp.zeros(0))
    if jax.tree.leaves(args) and _length(name, args) != num:
        raise ValueError(
            f"{name}: args must have a leading axis of length num={num}, but a leaf has shape "
            f"{np.shape(jax.tree.leaves(args)[0])}."
        )
    drawing = (sampler, denoiser, tuple(whole(name, "shape", n) for n in shape))
    return Job(name, _draw, drawing, args, num, key, batch_size, mesh)


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
    program, shapes = jax.make_jaxpr(_deferring(fn), return_shape=True)(*single, key)
    return _Converted(program.jaxpr, program.consts, jax.tree.structure(shapes))


# JAX keeps what it has traced as long as the function lives, so one function needs one wrapper.
_DEFERRING: weakref.WeakKeyDictionary[Callable[..., Any], Any] = weakref.WeakKeyDictionary()


def _deferring(fn: Callable[..., Result]) -> Callable[..., tuple[Result, Deferred]]:
    """The same function, which leaves checks of its arguments to its caller."""
    try:
        weak = weakref.ref(fn)
    except TypeError:
        # Some built-in types have none; theirs are traced for each call.
        return lambda *args: defer(args, lambda: fn(*args))
    if fn not in _DEFERRING:

        def deferring(*args: Any) -> tuple[Any, Deferred]:
            # Not the function itself, which would then live forever.
            function = weak()
            assert function is not None
            return defer(args, lambda: function(*args))

        _DEFERRING[fn] = deferring
    return _DEFERRING[fn]


def _apply(fn, row, key):
    return defer(row, lambda: fn(*row, key))


def _apply_converted(fn, row, key):
    return fn(*row, key)


def _draw(drawing, args, key):
    return defer(args, lambda: _sample(drawing, args, key))


def _sample(drawing, args, key):
    sampler, denoiser, shape = drawing
    # Prior and path must not share a key.
    prior_key, path_key = jax.random.split(key)
    x1 = denoiser.process.prior_sample(shape, key=prior_key)
    return sampler(denoiser, x1, args, key=path_key)


def _length(owner: str, args: PyTree[Any]) -> int:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(args)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(
            f"{owner}: every array needs a leading axis of one length, but their shapes are "
            f"{shapes}."
        )
    return whole(owner, "examples", shapes[0][0])
