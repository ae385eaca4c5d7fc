r"""Batches in a random order that can be resumed exactly.

The order is one endless *stream*: epoch after epoch, each a fresh permutation of the data set. The
example at position $p$ of the stream, and whether it is flipped, depends on $(p, \text{seed})$
alone,

$$\text{index}(p) = \pi_{\lfloor p / n \rfloor}(p \bmod n), \tag{1}$$

with $\pi_e$ a pseudo-random permutation that is evaluated pointwise (grain's index shuffle: no
table of $n$ entries). Process $i$ of $m$ reads positions $i, i + m, i + 2m, \dots$, so that the
processes' $k$-th batches together are the $k$-th window of the stream, whatever $m$. The whole
state of a loader is therefore one number, its position.
"""

import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from .._require import require
from ._pixels import normalise
from ._source import AbstractSource, ArraySource


# grain computes lengths in float64 and overflows at its own "infinite" length when batches hold one
# example. At a million examples a second this lasts for 285 years.
_ENDLESS = 2**53


def _coin(seed: int, positions: Int[np.ndarray, " batch"]) -> Bool[np.ndarray, " batch"]:
    """A fair coin per position of the stream: the top bit of SplitMix64 (Steele, Lea & Flood 2014).

    A counter-based generator gives each position its coin whatever the batch size and wherever one
    resumes.
    """
    key = np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)
    z = key + positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) >> np.uint64(63) == 1


def _concatenate(parts):
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


class Loader:
    """An iterator over batches, made by [`eqdiff.data.loader`][]."""

    def __init__(
        self,
        source: AbstractSource,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        epochs: int | None,
        horizontal_flip: bool,
        process_index: int,
        process_count: int,
        num_threads: int,
    ):
        self._source = source
        self._batch_size = batch_size
        # What the stream depends on, as plain Python values, which the state hands on to JSON.
        self._order = {
            "length": len(source),
            "seed": int(seed),
            "shuffle": bool(shuffle),
            "horizontal_flip": bool(horizontal_flip),
        }
        self._end = None if epochs is None else epochs * len(source)
        self._process_index = process_index
        self._process_count = process_count
        self._num_threads = num_threads
        self._iterator: Any = None
        self._position = 0

    def _batch(
        self, positions: Int[np.ndarray, " batch"], indices: Int[np.ndarray, " batch"]
    ) -> tuple[Float32[np.ndarray, "batch channels height width"], Int32[np.ndarray, " batch"]]:
        images, labels = self._source.take(indices)
        images = normalise(images, levels=self._source.levels)
        if self._order["horizontal_flip"]:
            flips = _coin(self._order["seed"], positions)
            images[flips] = images[flips][..., ::-1]
        return images, labels.astype(np.int32)

    def _start(self) -> Iterator:
        """grain's pipeline from the current position on."""
        grain = require("grain", "eqdiff.data.loader", extra="data")
        count, begin = self._process_count, self._position + self._process_index
        # Indices are batched before examples are gathered: for arrays that is one NumPy call per
        # batch. Files are decoded one example at a time, spread over the threads.
        whole = self._num_threads == 0 or isinstance(self._source, ArraySource)
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
        end = _ENDLESS
        if self._end is not None:
            # Equally many for every process, or a parallel job's last step would never end.
            end = self._position + (self._end - self._position) // count * count
        batches = indices[begin:end:count].batch(chunk).map_with_index(gather)
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

    def __next__(
        self,
    ) -> tuple[Float32[np.ndarray, "batch channels height width"], Int32[np.ndarray, " batch"]]:
        """The next batch: images in [-1, 1] and their labels."""
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._position += len(batch[1]) * self._process_count
        return batch

    def get_state(self) -> dict[str, int | bool]:
        """What to save in order to continue from here: a small JSON-serialisable dictionary.

        `position` counts the examples that all processes together have taken. The other entries say
        which stream it is a position in. After the same number of batches the state is the same in
        every process, so one of them may save it for all.
        """
        return {"position": self._position, **self._order}

    def set_state(self, state: dict[str, int | bool]) -> None:
        """Continues from a saved state, here or in another loader of the same stream.

        The batch size and the number of processes may differ from those of the loader that saved
        it: the stream of examples continues where it was.

        **Arguments:**

        - `state`: what `get_state` returned.

        **Raises:** `ValueError` if the state belongs to another stream (another data set, seed,
        shuffle or flip), or lies beyond the last epoch.
        """
        expected = {"position", *self._order}
        if set(state) != expected:
            raise ValueError(
                f"the state has entries {sorted(state)}, expected {sorted(expected)}: "
                "pass what get_state() of a Loader returned"
            )
        for name, value in self._order.items():
            if state[name] != value:
                raise ValueError(
                    f"the state was saved by a loader with {name}={state[name]}, this one has "
                    f"{name}={value}: the order of examples would differ; make the loader with the "
                    "same arguments"
                )
        end = self._end
        if state["position"] < 0 or (end is not None and state["position"] > end):
            raise ValueError(
                f"the state is at position {state['position']}, but these epochs end at {end}: "
                "pass more epochs="
            )
        self.close()
        self._position = state["position"]

    def close(self) -> None:
        """Ends the loader's threads. Iterating again starts new ones, at the same position."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None


def loader(
    source: AbstractSource,
    batch_size: int,
    *,
    seed: int,
    shuffle: bool = True,
    epochs: int | None = None,
    horizontal_flip: bool = False,
    process_index: int | None = None,
    process_count: int | None = None,
    num_threads: int | None = None,
) -> Loader:
    """Batches of a source, endless or for some epochs, in an order that depends on `seed` alone.

    ```python
    data = eqd.data.cifar10()
    batches = eqd.data.loader(data.train, 128, seed=0, horizontal_flip=True)
    images, labels = next(batches)        # float32 (128, 3, 32, 32) in [-1, 1], int32 (128,)
    state = batches.get_state()           # json.dumps(state) goes into the checkpoint
    batches.set_state(state)              # the same batches again from here
    ```

    **No example is dropped or repeated within an epoch.** Without `epochs` batches run on across
    the end of an epoch, so all are full, and may be larger than the data set. With `epochs` the
    very last batch holds what is left and may be smaller; only if the examples do not divide by the
    number of processes are the last ones (fewer than `process_count`) left out, so that all
    processes see batches of the same sizes.

    **Arguments:**

    - `source`: of labelled images, such as `dataset.train`; wrap your own arrays in
        [`eqdiff.data.ArraySource`][].
    - `batch_size`: examples per batch of *this process*.
    - `seed`: of the shuffle and of the flips, a non-negative integer.
    - `shuffle`: whether to permute the examples, anew in each epoch; otherwise they come in the
        source's order.
    - `epochs`: how many times to go through the data; `None` for endless.
    - `horizontal_flip`: whether to mirror each image left to right with probability one half.
    - `process_index`, `process_count`: which share of the stream to read; by default
        `jax.process_index()` and `jax.process_count()`.
    - `num_threads`: the threads that work ahead, about two batches; with 0 each batch is made when
        it is asked for. The order is the same. Default: 0 for an [`eqdiff.data.ArraySource`][],
        else the number of CPUs, at most 16.

    **Returns:** a [`eqdiff.data.Loader`][].

    **Raises:** `ImportError` without grain, from the first batch; `TypeError` for another source;
    `ValueError` for an empty one and for numbers outside these ranges.
    """
    if not isinstance(source, AbstractSource):
        raise TypeError(
            f"source is a {type(source).__name__}, expected an eqdiff.data.AbstractSource: pass "
            "dataset.train, or write ArraySource(images, labels)"
        )
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
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    if not 0 <= index < count:
        raise ValueError(
            f"process_index={index}, process_count={count}: expected an index from 0 to {count - 1}"
        )
    if num_threads is not None and num_threads < 0:
        raise ValueError(f"num_threads={num_threads}: expected at least 0, or None")
    if num_threads is None:
        num_threads = 0 if isinstance(source, ArraySource) else min(16, os.cpu_count() or 1)
    return Loader(
        source,
        batch_size,
        seed=seed,
        shuffle=shuffle,
        epochs=epochs,
        horizontal_flip=horizontal_flip,
        process_index=index,
        process_count=count,
        num_threads=num_threads,
    )
