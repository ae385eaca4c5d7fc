r"""Batches in a random order that can be resumed exactly.

The order is one endless *stream*: epoch after epoch, each a fresh permutation of the data set. The
example at position $p$ of the stream, and how it is flipped or augmented, depends on $(p,
\text{seed})$ alone,

$$\text{index}(p) = \pi_{\lfloor p / n \rfloor}(p \bmod n), \tag{1}$$

with $\pi_e$ a pseudo-random permutation that is evaluated pointwise (grain's index shuffle: no
table of $n$ entries). Process $i$ of $m$ reads positions $i, i + m, i + 2m, \dots$, so that the
processes' $k$-th batches together are the $k$-th window of the stream for every $m$. The whole
state of a loader is therefore one number, its position. A damaged example is replaced by the next
one of the source that is whole, which depends on nothing else either.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from .._require import require
from ..nn import Conditions
from ._adapters import as_source
from ._augment import AbstractAugmentation
from ._cache import MappedSource
from ._damaged import Skipping
from ._dataset import network_input, network_labels
from ._source import AbstractSource, ArraySource
from ._stream import coin


# grain computes lengths in float64 and overflows at its own "infinite" length when batches hold one
# example. At a million examples a second this lasts for 285 years.
_ENDLESS = 2**53


def _concatenate(parts):
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


class Loader:
    """An iterator over batches, made by [`eqdiff.data.loader`][].

    **Example:**

    ```python
    batches = eqd.data.loader(eqd.data.digits().train, 128, seed=0)  # an eqd.data.Loader
    images, labels = next(batches)
    ```
    """

    def __init__(
        self,
        source: AbstractSource,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        epochs: int | None,
        drop_last: bool,
        horizontal_flip: bool,
        augment: AbstractAugmentation | None,
        skip_damaged: int,
        process_index: int,
        process_count: int,
        num_threads: int,
    ):
        self._source = source
        self._examples = Skipping(source, skip_damaged)
        self._batch_size = batch_size
        self._augment = augment
        # What the stream depends on, as plain Python values, which the state hands on to JSON.
        self._order = {
            "length": len(source),
            "seed": int(seed),
            "shuffle": bool(shuffle),
            "horizontal_flip": bool(horizontal_flip),
        }
        if augment is not None:
            self._order["augment"] = repr(augment)
        self._end = None if epochs is None else epochs * len(source)
        self._drop_last = drop_last
        self._process_index = process_index
        self._process_count = process_count
        self._num_threads = num_threads
        self._iterator: Any = None
        self._position = 0

    def _batch(
        self, positions: Int[np.ndarray, " batch"], indices: Int[np.ndarray, " batch"]
    ) -> tuple[Any, Any]:
        examples, labels = self._examples.take(indices)
        x, labels = network_input(examples, self._source.levels), network_labels(labels)
        if x is examples or x.base is not None:
            x = x.copy()  # The user's own floats are not ours to flip.
        if self._order["horizontal_flip"]:
            flips = coin(self._order["seed"], positions)
            x[flips] = x[flips][..., ::-1]
        if self._augment is None:
            return x, labels
        x, parameters = self._augment(x, seed=self._order["seed"], positions=positions)
        return x, Conditions(labels, parameters)

    def _last(self) -> int:
        """The position where these epochs end, for all processes together."""
        if self._end is None:
            return _ENDLESS
        # Equally many for every process, or a parallel job's last step would never end.
        whole = self._process_count * (self._batch_size if self._drop_last else 1)
        return self._position + (self._end - self._position) // whole * whole

    def _start(self) -> Iterator:
        """grain's pipeline from the current position on."""
        grain = require("grain", "eqdiff.data.loader", extra="data")
        count, begin = self._process_count, self._position + self._process_index
        # Indices are batched before examples are gathered: for arrays that is one NumPy call per
        # batch. Files are decoded one example at a time, spread over the threads.
        whole = self._num_threads == 0 or isinstance(self._source, ArraySource | MappedSource)
        chunk = self._batch_size if whole else 1
        ahead = 2 * self._batch_size // chunk

        def gather(number, indices):
            positions = begin + count * (number * chunk + np.arange(len(indices)))
            return self._batch(positions, indices)

        indices = grain.MapDataset.range(self._order["length"])
        if self._order["shuffle"]:
            # grain shuffles epoch e with seed + e: hashed, or seed 1 would be seed 0 one epoch on.
            hashed = np.random.SeedSequence([self._order["seed"], 0]).generate_state(1)
            indices = indices.shuffle(seed=int(hashed[0]))
        indices = indices.repeat()
        batches = indices[begin : self._last() : count].batch(chunk).map_with_index(gather)
        options = grain.ReadOptions(
            num_threads=self._num_threads,
            prefetch_buffer_size=max(ahead, self._num_threads) if self._num_threads else 0,
        )
        batches = batches.to_iter_dataset(options)
        if not whole:
            batches = batches.batch(self._batch_size, batch_fn=_concatenate)
        return iter(batches)

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> tuple[Any, Any]:
        """The next batch: examples as a network sees them (images in [-1, 1]), and their labels."""
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._position += len(batch[0]) * self._process_count
        return batch

    @property
    def damaged(self) -> tuple[str, ...]:
        """What was skipped so far: a message for each damaged example, which names its file."""
        return tuple(self._examples.found.values())

    def get_state(self) -> dict[str, Any]:
        """What to save in order to continue from here: a small JSON-serialisable dictionary.

        `position` counts the examples that all processes together have taken. The other entries say
        which stream it is a position in. After the same number of batches the state is the same in
        every process, so one of them may save it for all.
        """
        return {"position": self._position, **self._order}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state, here or in another loader of the same stream.

        The batch size and the number of processes may differ from those of the loader that saved
        it: the stream of examples continues where it was.

        **Arguments:**

        - `state`: what `get_state` returned.

        **Raises:** `ValueError` if the state belongs to another stream (another data set, seed,
        shuffle, flip or augmentation), or lies beyond the last epoch.
        """
        expected = {"position", *self._order}
        if set(state) - {"augment"} != expected - {"augment"}:
            raise ValueError(
                f"the state has entries {sorted(state)}, expected {sorted(expected)}: "
                "pass what get_state() of a Loader returned"
            )
        for name in ("length", "seed", "shuffle", "horizontal_flip", "augment"):
            saved, here = state.get(name), self._order.get(name)
            if saved != here:
                raise ValueError(
                    f"the state was saved by a loader with {name}={saved}, this one has "
                    f"{name}={here}: the order of examples would differ; make the loader with the "
                    "same arguments"
                )
        position, end = int(state["position"]), self._end
        if position < 0 or (end is not None and position > end):
            raise ValueError(
                f"the state is at position {position}, but these epochs end at {end}: "
                "pass more epochs="
            )
        self.close()
        self._position = position

    def close(self) -> None:
        """Ends the loader's threads. Iterating again starts new ones, at the same position."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None


def _check_numbers(
    source: AbstractSource,
    batch_size: int,
    seed: int,
    epochs: int | None,
    skip_damaged: int,
    num_threads: int | None,
) -> None:
    if len(source) == 0:
        raise ValueError(
            f"{source} has no examples: pass test_size= or test_fraction= above 0 to have a test "
            "set"
        )
    if batch_size < 1 or (epochs is not None and epochs < 1) or seed < 0:
        raise ValueError(
            f"batch_size={batch_size}, epochs={epochs}, seed={seed}: expected a batch size of at "
            "least 1, at least 1 epoch (or None for endless) and a seed of at least 0"
        )
    if skip_damaged < 0:
        raise ValueError(
            f"skip_damaged={skip_damaged}: expected how many damaged examples to skip, at least 0"
        )
    if num_threads is not None and num_threads < 0:
        raise ValueError(f"num_threads={num_threads}: expected at least 0, or None")


def _check_flip(shape: tuple[int, ...]) -> None:
    if len(shape) < 3:
        raise ValueError(
            f"horizontal_flip=True for examples of shape {shape}: expected images (channels, "
            "height, width) or volumes, whose last axis is a width; leave it out"
        )


def loader(
    source: Any,
    batch_size: int,
    *,
    seed: int,
    shuffle: bool = True,
    epochs: int | None = None,
    drop_last: bool = False,
    horizontal_flip: bool = False,
    augment: AbstractAugmentation | None = None,
    skip_damaged: int = 0,
    process_index: int | None = None,
    process_count: int | None = None,
    num_threads: int | None = None,
) -> Loader:
    """Batches of a source, endless or for some epochs, in an order that depends on `seed` alone.

    **No example is dropped or repeated within an epoch.** Without `epochs`, batches run on across
    the end of an epoch: all are full, and may be larger than the data set. With `epochs` the
    very last batch holds what is left and may be smaller, or is left out with `drop_last`; only if
    the examples do not divide by the number of processes are the last ones (fewer than
    `process_count`) left out, so that all processes see batches of the same sizes.

    **Arguments:**

    - `source`: of labelled examples, such as `dataset.train`. Or what
        [`eqdiff.data.as_source`][] makes one of: a NumPy array, a tuple `(array, labels)`, a
        `datasets.Dataset` of Hugging Face, any random-access source of grain.
    - `batch_size`: examples per batch of *this process*.
    - `seed`: of the shuffle, the flips and the augmentation, a non-negative integer.
    - `shuffle`: whether to permute the examples, anew in each epoch; otherwise they come in the
        source's order.
    - `epochs`: how many times to go through the data; `None` for endless.
    - `drop_last`: whether to leave out the last batch of the last epoch where it is not full: what
        microbatches (`accumulate`) and a mesh of devices want, which divide a batch.
    - `horizontal_flip`: whether to mirror each image left to right with probability one half.
    - `augment`: an augmentation such as [`eqdiff.data.EDMAugmentation`][]. The labels are then
        [`eqdiff.nn.Conditions`][] of the labels and of the augmentation's parameters.
    - `skip_damaged`: how many damaged examples to skip at most, each named in a warning and in
        `Loader.damaged`. The next whole example of the source takes its place, so that resumption
        stays exact. By default the first one is an error.
    - `process_index`, `process_count`: which share of the stream to read; by default
        `jax.process_index()` and `jax.process_count()`.
    - `num_threads`: the threads that work ahead, about two batches; with 0 each batch is made when
        it is asked for. The order is the same. Default: 0 for an [`eqdiff.data.ArraySource`][]
        without augmentation, else the number of CPUs, at most 16.

    **Returns:** a [`eqdiff.data.Loader`][].

    **Raises:** `ImportError` without grain, from the first batch; `TypeError` for another source;
    `ValueError` for an empty one, for numbers outside these ranges, and for a flip or an
    augmentation that examples of this shape do not have;
    [`eqdiff.data.DamagedFileError`][], a `ValueError`, from a batch with one damaged example too
    many.

    **Example:**

    ```python
    data = eqd.data.digits()
    batches = eqd.data.loader(data.train, 128, seed=0)
    images, labels = next(batches)  # float32 (128, 1, 8, 8) in [-1, 1], int32 (128,)
    state = batches.get_state()  # JSON-serialisable: save it with the weights
    batches.set_state(state)  # the same batches again from here
    ```
    """
    source = as_source(source)
    _check_numbers(source, batch_size, seed, epochs, skip_damaged, num_threads)
    if horizontal_flip:
        _check_flip(source.shape)
    if augment is not None:
        augment.check(source.shape)
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    if not 0 <= index < count:
        raise ValueError(
            f"process_index={index}, process_count={count}: expected an index from 0 to {count - 1}"
        )
    if num_threads is None:
        instant = isinstance(source, ArraySource) and augment is None
        num_threads = 0 if instant else min(16, os.cpu_count() or 1)
    return Loader(
        source,
        batch_size,
        seed=seed,
        shuffle=shuffle,
        epochs=epochs,
        drop_last=drop_last,
        horizontal_flip=horizontal_flip,
        augment=augment,
        skip_damaged=skip_damaged,
        process_index=index,
        process_count=count,
        num_threads=num_threads,
    )
