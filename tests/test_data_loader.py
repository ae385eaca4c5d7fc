"""The loader's stream: complete epochs, exact resumption, shares of processes, flips."""

import json

import numpy as np
import pytest

from eqdiff import data


def numbered(n, levels=256):
    """Image i holds i in its left column and 0 in its right: identity and flip can be read off."""
    images = np.zeros((n, 1, 1, 2), np.uint16)
    images[:, 0, 0, 0] = np.arange(n)
    return data.ArraySource(images, np.arange(n), levels=max(n, levels))


def labels(batches, count=None):
    taken = batches if count is None else (next(batches) for _ in range(count))
    return [label for _, ys in taken for label in ys.tolist()]


def test_batch_contents():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 3, 4, 5), np.uint8)
    source = data.ArraySource(images, np.arange(20))
    x, y = next(data.loader(source, 8, seed=0))
    assert x.shape == (8, 3, 4, 5) and x.dtype == np.float32
    assert y.shape == (8,) and y.dtype == np.int32
    assert np.array_equal(x, data.normalise(images[y]))
    assert x.flags.writeable and not np.shares_memory(x, images)


def test_levels_of_the_source_are_used():
    source = data.ArraySource(np.full((4, 1, 2, 2), 16, np.uint8), levels=17)
    x, _ = next(data.loader(source, 4, seed=0))
    assert np.all(x == 1)


@pytest.mark.parametrize("batch_size", (1, 7, 10, 64))
def test_each_epoch_visits_every_example_once(batch_size):
    n, epochs = 10, 6
    batches = data.loader(numbered(n), batch_size, seed=3)
    seen = labels(batches, -(-n * epochs // batch_size))[: n * epochs]
    orders = np.array(seen).reshape(epochs, n)
    assert np.array_equal(np.sort(orders), np.tile(np.arange(n), (epochs, 1)))
    assert len({tuple(order) for order in orders.tolist()}) > 1


def test_order_does_not_depend_on_batch_size():
    orders = [labels(data.loader(numbered(12), b, seed=5), 60 // b) for b in (1, 5, 12, 30, 60)]
    assert all(order == orders[0] for order in orders)


def test_seeds():
    def order(seed):
        return labels(data.loader(numbered(50), 50, seed=seed), 2)

    assert order(0) == order(0)
    assert order(0)[:50] != order(1)[:50]
    # grain alone would give seed 1 the second epoch of seed 0.
    assert order(0)[50:] != order(1)[:50]


def test_without_shuffle_and_with_epochs():
    batches = data.loader(numbered(5), 3, seed=0, shuffle=False, epochs=2)
    assert [y.tolist() for _, y in batches] == [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4]]
    with pytest.raises(StopIteration):
        next(batches)
    batch = next(data.loader(numbered(5), 12, seed=0, shuffle=False))
    assert batch[1].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize("num_threads", (0, 3))
@pytest.mark.parametrize("batch_size, before", ((4, 0), (4, 1), (4, 5), (25, 2)))
def test_resume_is_exact(num_threads, batch_size, before):
    def make():
        return data.loader(
            numbered(10), batch_size, seed=1, horizontal_flip=True, num_threads=num_threads
        )

    first, second = make(), make()
    for _ in range(before):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    truth = [next(first) for _ in range(8)]  # Crosses at least three ends of an epoch.
    next(second)
    second.set_state(state)
    assert second.get_state() == state
    first.set_state(state)  # Also backwards, in the loader itself.
    for x, y in truth:
        for other in (first, second):
            x2, y2 = next(other)
            assert np.array_equal(x, x2) and np.array_equal(y, y2)
    first.close()
    second.close()


def test_resume_of_finite_epochs():
    def make():
        return data.loader(numbered(7), 4, seed=1, epochs=2)

    whole = labels(make())
    batches = make()
    head = labels(batches, 2)
    other = make()
    other.set_state(batches.get_state())
    assert head + labels(other) == whole
    finished = other.get_state()
    other = make()
    other.set_state(finished)
    assert labels(other) == []


@pytest.mark.parametrize("count", (2, 3))
def test_processes_share_the_stream(count):
    """The processes' k-th batches together are the k-th batch of one process, of their size."""

    def make(i, m, b):
        return data.loader(
            numbered(10), b, seed=2, horizontal_flip=True, process_index=i, process_count=m
        )

    whole = make(0, 1, 6)
    parts = [make(i, count, 6 // count) for i in range(count)]
    for _ in range(5):
        x, y = next(whole)
        for i, part in enumerate(parts):
            x_part, y_part = next(part)
            assert np.array_equal(y_part, y[i::count])
            assert np.array_equal(x_part, x[i::count])
    assert all(part.get_state() == whole.get_state() for part in parts)
    # A job may continue with another number of processes.
    part = make(1, count, 6 // count)
    part.set_state(whole.get_state())
    assert np.array_equal(next(part)[1], next(whole)[1][1::count])


def test_processes_get_equally_many():
    def make(i):
        return data.loader(numbered(11), 2, seed=2, epochs=1, process_index=i, process_count=3)

    parts = [[y.tolist() for _, y in make(i)] for i in range(3)]
    assert [[len(y) for y in part] for part in parts] == [[2, 1]] * 3
    assert len({k for part in parts for y in part for k in y}) == 9


def test_flips_are_fair_and_independent():
    n = 4096
    batches = data.loader(numbered(n + 1), n + 1, seed=0, shuffle=False, horizontal_flip=True)
    coins = []
    for _ in range(2):
        x, y = next(batches)
        k = np.rint((x + 1) / 2 * n).astype(int).reshape(-1, 2)
        assert np.array_equal(k.sum(axis=1), y)  # Either (k, 0) or (0, k).
        coins.append(k[1:, 0] == 0)
    first, second = coins
    # Five standard deviations of a fair coin; also between neighbours and between epochs.
    for coin in (first, second, first[1:] ^ first[:-1], first ^ second):
        assert abs(coin.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(coin))
    still, _ = next(data.loader(numbered(n + 1), n + 1, seed=0, shuffle=False))
    assert np.all(still[1:, 0, 0, 1] == -1)


def test_threads_keep_the_order():
    def make(threads):
        return data.loader(numbered(30), 8, seed=0, num_threads=threads)

    threaded = make(4)
    assert labels(threaded, 9) == labels(make(0), 9)
    threaded.close()


def test_state_errors():
    batches = data.loader(numbered(10), 4, seed=1, epochs=1)
    state = batches.get_state()
    assert state == {
        "position": 0,
        "length": 10,
        "seed": 1,
        "shuffle": True,
        "horizontal_flip": False,
    }
    for other, message in (
        (state | {"seed": 2}, "seed=2, this one has seed=1"),
        (state | {"length": 9}, "length=9"),
        (state | {"position": 11}, "position 11.*end at 10.*epochs="),
        ({"next_index": 3}, "get_state"),
    ):
        with pytest.raises(ValueError, match=message):
            batches.set_state(other)


@pytest.mark.parametrize(
    "num, options, message",
    [
        (4, {"batch_size": 0}, "batch_size=0"),
        (4, {"epochs": 0}, "epochs=0"),
        (4, {"seed": -1}, "seed=-1"),
        (4, {"process_index": 2, "process_count": 2}, "expected an index from 0 to 1"),
        (4, {"num_threads": -1}, "num_threads=-1"),
        (0, {}, "no examples"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_loaders_are_refused(num, options, message):
    with pytest.raises(ValueError, match=message):
        data.loader(numbered(num), **{"batch_size": 1, "seed": 0, **options})


class _Squares(data.AbstractSource):
    """A source of the user's own, read one example at a time by threads."""

    def __init__(self):
        self.shape, self.levels = (1, 1, 1), 256

    def __len__(self):
        return 9

    def take(self, indices):
        return (indices**2).reshape(-1, 1, 1, 1), indices


@pytest.mark.parametrize("num_threads", (0, 2))
def test_own_sources(num_threads):
    batches = data.loader(_Squares(), 4, seed=0, epochs=2, num_threads=num_threads)
    sizes = []
    for x, y in batches:
        assert np.allclose(x[:, 0, 0, 0], -1 + 2 * y.astype(float) ** 2 / 255, atol=1e-7)
        assert x.dtype == np.float32 and y.dtype == np.int32
        sizes.append(len(y))
    assert sizes == [4, 4, 4, 4, 2]
    batches.close()
