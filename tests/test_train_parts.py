"""How parameters reach the examples of a batch: in runs of short vectors, with exact gradients."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import X64

from eqdiff.train import _parts, Flat, Leaves
from eqdiff.train._layout import join, pack, split


FLOAT = jnp.float64 if X64 else jnp.float32
BATCH = np.random.default_rng(1).normal(size=(6, 3)).astype(FLOAT)


class Net(eqx.Module):
    """Matrices between vectors between scalars, and one of no elements."""

    first: jax.Array
    scale: jax.Array
    bias: jax.Array
    temperature: jax.Array
    second: jax.Array
    shift: jax.Array
    empty: jax.Array

    def __init__(self):
        rng = np.random.default_rng(0)
        shapes = [(3, 5), (5,), (5,), (), (5, 4), (4,), (0,)]
        values = [jnp.asarray(rng.normal(size=shape), FLOAT) for shape in shapes]
        self.first, self.scale, self.bias, self.temperature = values[:4]
        self.second, self.shift, self.empty = values[4:]

    def __call__(self, x):
        h = jnp.tanh(x @ self.first * self.scale + self.bias)
        return (h @ self.second + self.shift) / jnp.exp(self.temperature) + jnp.sum(self.empty)


def _mixed(name, leaf):
    """A user's groups: two that mix matrices and vectors, and a leaf alone."""
    return {"first": "one", "scale": "one", "second": "other", "bias": None}.get(name, "other")


LAYOUTS = {
    "flat": Flat(),
    "one vector": Flat(lambda name, leaf: "all"),
    "mixed": Flat(_mixed),
    "leaves": Leaves(),
}


def slots_of(sizes):
    vectors = [jnp.zeros(n, jnp.float32) for n in sizes]
    return pack(vectors, Flat(lambda name, leaf: "all"))[0].slots


def test_runs_are_in_the_order_of_their_vector_and_no_longer_than_allowed(monkeypatch):
    monkeypatch.setattr(_parts, "_LONGEST", 100)
    sizes = [60, 30, 10, 1, 99, 1, 250, 50, 50, 3]
    parts = _parts.parts_of(slots_of(sizes))
    found = [[slot.size for slot in part.slots] for part in parts]
    assert found == [[60, 30, 10], [1, 99], [1], [250], [50, 50], [3]]
    assert all(part.is_run for part in parts)
    starts = [slot.start for part in parts for slot in part.slots]
    assert starts == [0, *itertools.accumulate(sizes)][:-1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_part_is_contiguous_and_every_parameter_in_one(layout):
    slots = pack(Net(), LAYOUTS[layout])[0].slots
    parts = _parts.parts_of(slots)
    assert sorted(s.name for part in parts for s in part.slots) == sorted(s.name for s in slots)
    for part in parts:
        assert part.is_run or len(part.slots) == 1
        for one, other in itertools.pairwise(part.slots):
            assert one.vector == other.vector
            assert (one.start or 0) + one.size == other.start
        # A matrix ends a run, a leaf alone is none.
        assert part.is_run == all(len(s.shape) < 2 and s.start is not None for s in part.slots)
    runs = [[s.name for s in part.slots] for part in parts if part.is_run]
    expected = {
        "flat": [["scale", "bias", "temperature", "shift", "empty"]],
        "one vector": [["scale", "bias", "temperature"], ["shift", "empty"]],
        "mixed": [["scale"], ["temperature"], ["shift", "empty"]],
        "leaves": [],
    }
    assert runs == expected[layout]


def by_parts(packing, params, loss):
    """The gradient as a train step takes it."""
    parts = _parts.parts_of(packing.slots)

    def mean_loss(taken):
        def one(given, x):
            found = _parts.parameters(parts, given)
            return loss(packing.network([found[slot.name] for slot in packing.slots], {}), x)

        given = _parts.copies(parts, taken, len(BATCH))
        return jnp.mean(jax.vmap(one, (_parts.axes(parts), 0))(given, BATCH))

    value, gradient = jax.value_and_grad(mean_loss)(_parts.take(parts, params))
    return value, _parts.join_parts(parts, gradient)


def loss(net, x):
    return jnp.sum(net(x) ** 2)


@pytest.mark.parametrize("longest", [2**15, 6])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_those_of_the_network(layout, longest, monkeypatch):
    monkeypatch.setattr(_parts, "_LONGEST", longest)
    net = Net()
    packing, pieces, _ = pack(net, LAYOUTS[layout])
    params = join(packing.slots, pieces)
    value, gradient = jax.jit(lambda params: by_parts(packing, params, loss))(params)
    expected_value, expected = jax.jit(
        jax.value_and_grad(lambda net: jnp.mean(jax.vmap(lambda x: loss(net, x))(BATCH)))
    )(net)
    tolerance = 1e-13 if X64 else 2e-6
    np.testing.assert_allclose(value, expected_value, rtol=tolerance)
    assert {k: x.shape for k, x in gradient.items()} == {k: x.shape for k, x in params.items()}
    found = packing.network(split(packing.slots, gradient), {})
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        largest = np.max(np.abs(other), initial=1.0)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * largest)


def primitives(jaxpr):
    found = set()
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                found |= primitives(getattr(value, "jaxpr", value))
    return found


def _is_jaxpr(x):
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def lowered(fn, *args):
    return jax.jit(fn).lower(*args).as_text()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_has_no_vector_of_zeros(layout):
    packing, pieces, _ = pack(Net(), LAYOUTS[layout])
    text = lowered(lambda params: by_parts(packing, params, loss), join(packing.slots, pieces))
    assert "stablehlo.pad" not in text
