"""The order in which the host and the device work on chunks."""

import jax
import numpy as np
import pytest

import eqdiff as eqd


KEY = jax.random.key(7)
X = np.linspace(-1, 1, 21, dtype=np.float32).reshape(7, 3)


class Lazy:
    """Stands for an array on a device: says when it is fetched, and whether that fails."""

    def __init__(self, events, start, values):
        self.events, self.start, self.values = events, start, values

    def __array__(self, dtype=None, copy=None):
        self.events.append(f"fetch {self.start}")
        if self.values is None:
            raise jax.errors.JaxRuntimeError("lost")
        return self.values


@pytest.fixture
def events(monkeypatch):
    """What the host does with the device, in order, and which chunks fail as a whole."""
    events, original, lost = [], eqd._chunks.program, set()

    def program(*args):
        if isinstance(args[2], jax.core.Tracer):
            return original(*args)
        indices = np.asarray(args[2])
        events.append(f"dispatch {indices[0]}")
        failing = indices[0] in lost and indices[0] != indices[-1]
        values = None if failing else np.asarray(original(*args)[0])
        return [Lazy(events, indices[0], values)], original(*args)[1]

    monkeypatch.setattr(eqd._chunks, "program", program)
    return events, lost


def double(x, key):
    return 2 * x


def test_the_next_chunk_is_dispatched_before_one_is_fetched(events):
    events, _ = events
    found = eqd.map_examples(double, X, key=KEY, batch_size=2)
    np.testing.assert_allclose(found, 2 * X)
    order = "dispatch 0, dispatch 2, fetch 0, dispatch 4, fetch 2, dispatch 6, fetch 4, fetch 6"
    assert ", ".join(events) == order


def test_the_next_chunk_is_under_way_while_a_failed_one_is_tried(events, tmp_path):
    events, lost = events
    lost.add(2)
    found = eqd.map_examples(double, X, key=KEY, batch_size=2, folder=tmp_path)
    np.testing.assert_allclose(found, 2 * X)
    order = (
        "dispatch 0, dispatch 2, fetch 0, dispatch 4, fetch 2, dispatch 2, fetch 2, dispatch 3, "
        "fetch 3, dispatch 6, fetch 4, fetch 6"
    )
    assert ", ".join(events) == order
    # What was tried again is not kept; the rest is, and is not fetched again.
    events.clear()
    np.testing.assert_allclose(
        eqd.map_examples(double, X, key=KEY, batch_size=2, folder=tmp_path), 2 * X
    )
    assert events[0] == "dispatch 2" and not {"fetch 0", "fetch 4", "fetch 6"} & set(events)


def test_one_trace_and_one_program_for_all_chunks(monkeypatch):
    traces = []

    def fn(x, key):
        traces.append(x.shape)
        return x

    eqd.map_examples(fn, X, key=KEY, batch_size=2)
    assert traces == [(3,)]


def test_progress_counts_what_has_arrived(events, monkeypatch):
    events, _ = events

    class Bar:
        def __init__(self, total, unit, desc):
            assert (total, unit, desc) == (7, "example", "map_examples")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            events.append("closed")

        def update(self, count):
            events.append(f"+{count}")

    monkeypatch.setattr("tqdm.tqdm", Bar)
    eqd.map_examples(double, X, key=KEY, batch_size=2, progress=True)
    told = [event for event in events if not event.startswith("dispatch")]
    assert told == "fetch 0,+2,fetch 2,+2,fetch 4,+2,fetch 6,+1,closed".split(",")
