"""Layouts of the parameters: whichever it is, a step is that of plain Optax on the network."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import X64

from eqdiff import train
from eqdiff._process import linear_schedule
from eqdiff._timesteps import Uniform


TIMESTEPS = Uniform(linear_schedule(100))
TOLERANCE = 1e-12 if X64 else 2e-6
BATCHES = np.random.default_rng(0).normal(size=(4, 8, 3)).astype(float if X64 else np.float32)


class Net(eqx.Module):
    """Leaves of every kind: matrices, vectors, a scalar, an empty one, constants, a function."""

    layers: list[eqx.nn.Linear]
    scale: jax.Array
    temperature: jax.Array
    empty: jax.Array
    counter: jax.Array
    table: np.ndarray
    activation: Callable
    name: str = eqx.field(static=True)

    def __init__(self, key):
        layers = [eqx.nn.Linear(3, 5, key=key), eqx.nn.Linear(5, 3, key=key)]
        self.layers = jax.tree.map(lambda x: x.astype(float), layers)
        self.scale, self.temperature = jnp.ones(5), jnp.asarray(2.0)
        self.empty, self.counter = jnp.zeros((0, 2)), jnp.asarray(7, jnp.int32)
        self.table, self.activation, self.name = np.arange(3, dtype=np.int32), jnp.tanh, "net"

    def __call__(self, x):
        h = self.scale * self.activation(self.layers[0](x))
        return self.layers[1](h) / self.temperature + self.table.astype(x.dtype)


def loss_fn(net, t, x0, args, *, key):
    noise = jax.random.normal(key, x0.shape, x0.dtype)
    return jnp.mean((net(x0 + noise) - noise) ** 2) * (1 + t.astype(x0.dtype) / 100), {}


def plain_optax(net, optimiser, key, rate):
    """The same steps on the network's own tree, with one average of constant rate."""
    params, rest = eqx.partition(net, eqx.is_inexact_array)

    def mean_loss(params, x0, n):
        times_key, examples_key = jax.random.split(jax.random.fold_in(key, n))
        t, _ = TIMESTEPS.sample(None, len(x0), key=times_key)
        keys = jax.random.split(examples_key, len(x0))

        def one(t, x, key):
            return loss_fn(eqx.combine(params, rest), t, x, None, key=key)[0]

        return jnp.mean(jax.vmap(one)(t, x0, keys))

    average = params
    with jax.numpy_dtype_promotion("standard"):
        opt_state = optimiser.init(params)
        for n, x0 in enumerate(BATCHES):
            gradient = jax.jit(jax.grad(mean_loss))(params, x0, n)
            updates, opt_state = optimiser.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
            average = jax.tree.map(lambda a, p: rate * a + (1 - rate) * p, average, params)
    return eqx.combine(params, rest), eqx.combine(average, rest)


def trained(net, optimiser, key, rate, **options):
    state = train.init(
        net, optimiser, timesteps=TIMESTEPS, ema=(train.EMA(rate),), key=key, **options
    )
    step = train.make_step(loss_fn, optimiser)
    for x0 in BATCHES:
        state, _ = step(state, (x0, None))
    return state


def assert_same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        if eqx.is_array(a):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)


def decayed(mask):
    return optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(1e-2, weight_decay=0.3, mask=mask)
    )


def first_layer_slower(labels):
    return optax.multi_transform({"slow": optax.adam(1e-4), "fast": optax.adam(1e-2)}, labels)


def by_layer(name, leaf):
    return "slow" if name.startswith("layers.0.") else "fast"


def layer_labels(params):
    fast = jax.tree.map(lambda _: "fast", params)
    slow = jax.tree.map(lambda _: "slow", params.layers[0])
    return eqx.tree_at(lambda p: p.layers[0], fast, slow)


CASES = {
    # what plain Optax is given, what a train state is given, in which layout
    "adam": (optax.adam(1e-2), optax.adam(1e-2), train.Flat()),
    "no decay of vectors": (
        decayed(lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
        decayed({"matrices": True, "vectors": False}),
        train.Flat(),
    ),
    "groups by name": (
        first_layer_slower(layer_labels),
        first_layer_slower({"slow": "slow", "fast": "fast"}),
        train.Flat(by_layer),
    ),
    "one alone": (
        optax.adamw(1e-2, weight_decay=0.3),
        optax.adamw(1e-2, weight_decay=0.3),
        train.Flat(lambda name, leaf: None if name == "scale" else "others"),
    ),
    "factored": (
        optax.adafactor(1e-2, min_dim_size_to_factor=2),
        optax.adafactor(1e-2, min_dim_size_to_factor=2),
        train.Leaves(),
    ),
    "norms of leaves": (optax.lamb(1e-2), optax.lamb(1e-2), train.Leaves()),
    "decay by name": (
        decayed(lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
        decayed(lambda params: {name: name.endswith("weight") for name in params}),
        train.Leaves(),
    ),
}
# LAMB and Adafactor divide by the root mean square of each leaf; an empty one has none.
NEED_ELEMENTS = ("factored", "norms of leaves")


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_plain_optax(case, getkey):
    on_tree, on_state, layout = CASES[case]
    net, key = Net(getkey()), getkey()
    if case in NEED_ELEMENTS:
        net = eqx.tree_at(lambda n: n.empty, net, jnp.ones((1, 2)))
    expected, averaged = plain_optax(net, on_tree, key, 0.75)
    state = trained(net, on_state, key, 0.75, layout=layout)
    assert_same(state.net, expected)
    assert_same(state.ema_net(), averaged)
    moved = [np.abs(a - b).max() for a, b in zip(arrays(state.net), arrays(net), strict=True)]
    assert max(moved) > 1e-3


def arrays(net):
    leaves = jax.tree.leaves(eqx.filter(net, eqx.is_inexact_array))
    return [np.asarray(x) for x in leaves if x.size > 0]


def test_adafactor_needs_leaves(getkey):
    """What `Leaves` is for: a vector has no rows and columns, so the same optimiser differs."""
    optimiser = optax.adafactor(1e-2, min_dim_size_to_factor=2)
    net, key = eqx.tree_at(lambda n: n.empty, Net(getkey()), jnp.ones((1, 2))), getkey()
    flat, leaves = (
        trained(net, optimiser, key, 0.5, layout=layout).net.layers[0].weight
        for layout in (train.Flat(), train.Leaves())
    )
    assert np.abs(flat - leaves).max() > 1e-3


def test_how_many_arrays_there_are(getkey):
    """As many for a deep network as for a shallow one."""
    counts = set()
    for depth in (1, 9):
        net = eqx.nn.MLP(3, 3, 8, depth, key=getkey())
        state = train.init(net, optax.adam(1e-2), timesteps=TIMESTEPS, key=getkey())
        assert {k: x.ndim for k, x in state.params.items()} == {"matrices": 1, "vectors": 1}
        counts.add(len(jax.tree.leaves(eqx.filter(state, eqx.is_array))))
    # Parameters, an average, two moments: two vectors each. Count, key and step.
    assert counts == {8 + 3}


def test_no_gradient_of_a_cut(getkey):
    """Through the cuts, each parameter's gradient would be padded to the length of the whole."""
    optimiser = optax.adam(1e-2)
    state = train.init(Net(getkey()), optimiser, timesteps=TIMESTEPS, key=getkey())
    step = train.make_step(loss_fn, optimiser)
    jaxpr, *_ = eqx.filter_make_jaxpr(step)(state, (BATCHES[0], None))
    assert "slice" in str(jaxpr) and "concatenate" in str(jaxpr)
    assert " pad[" not in str(jaxpr)


@pytest.mark.parametrize("layout", [train.Flat(), train.Leaves()], ids=["flat", "leaves"])
def test_networks_outlive_the_state(layout, getkey):
    net, key, optimiser = Net(getkey()), getkey(), optax.adam(1e-2)
    state = train.init(net, optimiser, timesteps=TIMESTEPS, key=key, layout=layout)
    kept, averaged = state.net, state.ema_net()
    train.make_step(loss_fn, optimiser)(state, (BATCHES[0], None))
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
    x = jnp.asarray(BATCHES[0, 0])
    for other in (kept, averaged):
        np.testing.assert_array_equal(other(x), net(x))
        assert int(other.counter) == 7 and other.activation is jnp.tanh and other.name == "net"


def test_groups_of_several_dtypes(x64, getkey):
    net = Net(getkey())
    net = eqx.tree_at(lambda n: n.scale, net, net.scale.astype(jnp.float32))
    state = train.init(net, optax.adam(1e-2), timesteps=TIMESTEPS, key=getkey())
    assert {k: str(x.dtype) for k, x in state.params.items()} == {
        "matrices": "float64",
        "vectors.float32": "float32",
        "vectors.float64": "float64",
    }
    assert_same(state.net, net)


def test_groups_see_names_and_shapes(getkey):
    seen = {}

    def groups(name, leaf):
        seen[name] = (leaf.shape, leaf.dtype)
        return "all"

    net = Net(getkey())
    train.init(net, optax.sgd(1.0), timesteps=TIMESTEPS, layout=train.Flat(groups), key=getkey())
    assert seen["layers.1.weight"] == ((3, 5), net.scale.dtype) and seen["temperature"][0] == ()
    assert sorted(seen) == sorted(
        [
            *(f"layers.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")),
            *("scale", "temperature", "empty"),
        ]
    )


@pytest.mark.parametrize(
    "net, groups, message",
    [
        (lambda: {"a": jnp.ones(2), "b": jnp.ones(2)}, lambda *_: "a", "choose another name"),
        (lambda: {"a": {"b": jnp.ones(2)}, "a.b": jnp.ones(2)}, lambda *_: "c", "called net.a.b"),
    ],
    ids=["a vector called like a parameter", "two parameters of one name"],
)
def test_names_that_clash(net, groups, message):
    with pytest.raises(ValueError, match=message):
        train.init(
            net(),
            optax.sgd(1.0),
            timesteps=TIMESTEPS,
            layout=train.Flat(groups),
            key=jax.random.key(0),
        )


def test_a_long_vector_ends_in_zeros_that_nothing_sees(getkey, tmp_path):
    net = eqx.nn.MLP(3, 3, 300, 2, key=getkey())
    net = jax.tree.map(lambda x: x.astype(float) if eqx.is_array(x) else x, net)
    size = sum(x.size for x in jax.tree.leaves(eqx.filter(net, eqx.is_array)) if x.ndim > 1)
    key, optimiser = getkey(), optax.adamw(1e-3, weight_decay=0.1)
    flat = trained(net, optimiser, key, 0.9)
    vector = flat.params["matrices"]
    assert size == 91800 and vector.shape == (90 * 1024,)
    for x in jax.tree.leaves((flat.params["matrices"], flat.ema, flat.opt_state)):
        if x.shape == vector.shape:
            assert np.count_nonzero(x[:size]) > size / 2 and not np.any(x[size:])
    leaves = trained(net, optimiser, key, 0.9, layout=train.Leaves())
    for a, b in ((flat.net, leaves.net), (flat.ema_net(), leaves.ema_net())):
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            if eqx.is_array(x):
                np.testing.assert_allclose(x, y, rtol=0, atol=10 * TOLERANCE)
    checkpointer = train.Checkpointer(tmp_path)
    checkpointer.save(4, flat)
    fresh = train.init(net, optimiser, timesteps=TIMESTEPS, ema=(train.EMA(0.9),), key=key)
    back, _, _ = checkpointer.restore(fresh)
    assert eqx.tree_equal(back, flat)
