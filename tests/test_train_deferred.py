"""Class labels of a train step are checked before it runs, not inside it."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqdiff as eqd
from eqdiff import nn, train


SCHEDULE = eqd.cosine_schedule(50)
OPTIMISER = optax.adam(1e-3)
X0 = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
GOOD, BAD = np.array([0, 2, 1, 2]), np.array([0, 2, 3, 2])
MAKE = {"make_step": train.make_step, "make_steps": train.make_steps}


def make_state():
    net = nn.MLP(4, 4, 8, 1, num_classes=3, key=jax.random.key(0))
    timesteps = eqd.Uniform(SCHEDULE)
    return train.init(net, OPTIMISER, timesteps=timesteps, key=jax.random.key(1))


def loss_fn(net, t, x0, args, *, key):
    return eqd.l_simple(eqd.predict(eqd.Denoiser(net, SCHEDULE), t, x0, args, key=key)), {}


def of_computed(net, t, x0, args, *, key):
    return loss_fn(net, t, x0, args % 3, key=key)


def batch_of(name, labels):
    """For several steps two batches, of which the first is good."""
    if name == "make_step":
        return X0, labels
    return np.stack([X0, X0]), np.stack([GOOD, np.asarray(labels)])


@contextlib.contextmanager
def programs(folder):
    """The text of every train step that is compiled meanwhile."""
    texts = []
    jax.config.update("jax_dump_ir_to", str(folder))
    try:
        yield texts
    finally:
        jax.config.update("jax_dump_ir_to", None)
        texts += [path.read_text() for path in folder.glob("*_run_*")]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("mesh", [None, "two devices"])
@pytest.mark.parametrize("name", MAKE)
def test_a_bad_label_is_named_and_costs_nothing(name, mesh, accumulate, tmp_path):
    mesh = None if mesh is None else train.data_mesh()
    step = MAKE[name](loss_fn, OPTIMISER, mesh=mesh, accumulate=accumulate)
    state = make_state()
    where = 2 if name == "make_step" else 6
    with programs(tmp_path) as compiled:
        with pytest.raises(ValueError, match=rf"{name}.*: example {where}: this MLP .*, got 3\."):
            step(state, batch_of(name, BAD))
    assert not compiled
    # Neither lost nor changed; and the same from a program that has been compiled.
    state, metrics = step(state, batch_of(name, GOOD))
    assert np.all(np.isfinite(metrics.loss))
    with pytest.raises(ValueError, match=rf"example {where}: .*, got 3\."):
        step(state, batch_of(name, BAD))
    state, _ = step(state, batch_of(name, GOOD))
    assert int(state.step) == (2 if name == "make_step" else 4)


def test_labels_on_a_device_and_none():
    step = train.make_step(loss_fn, OPTIMISER)
    with pytest.raises(ValueError, match=r"example 2: .*, got 3\."):
        step(make_state(), (jnp.asarray(X0), jnp.asarray(BAD)))
    with pytest.raises(ValueError, match="needs a class label"):
        step(make_state(), (X0, None))


def test_each_network_has_its_own_classes():
    """One step for states of two networks, whose programs ask for different things."""
    step = train.make_step(loss_fn, OPTIMISER)
    net = nn.MLP(4, 4, 8, 1, num_classes=4, key=jax.random.key(0))
    timesteps, key = eqd.Uniform(SCHEDULE), jax.random.key(1)
    other = train.init(net, OPTIMISER, timesteps=timesteps, key=key)
    step(make_state(), (X0, GOOD))
    other, _ = step(other, (X0, BAD))
    with pytest.raises(ValueError, match="example 2"):
        step(make_state(), (X0, BAD))
    with pytest.raises(ValueError, match=r"num_classes=4 .*, got 4"):
        step(other, (X0, BAD + 1))


@pytest.mark.parametrize("loss, callbacks", [(loss_fn, False), (of_computed, True)])
@pytest.mark.parametrize("name", MAKE)
def test_the_program_has_no_callback(name, loss, callbacks, tmp_path):
    """Unless the label is computed in it."""
    step, state = MAKE[name](loss, OPTIMISER), make_state()
    with programs(tmp_path) as compiled:
        step(state, batch_of(name, GOOD))
    (text,) = compiled
    assert bool(re.search(r"custom_call @\w*callback", text)) == callbacks


def test_traced_once():
    traces = []

    def counting(*args, **kwargs):
        traces.append(1)
        return loss_fn(*args, **kwargs)

    step, state = train.make_step(counting, OPTIMISER), make_state()
    for n in (4, 4, 2, 4):
        state, _ = step(state, (X0[:n], GOOD[:n]))
    assert len(traces) == 2
