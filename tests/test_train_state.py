"""The state and its moving averages, against the official implementations' numbers."""

import math
import pathlib
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_golden, load_golden

import eqdiff
from eqdiff import train
from eqdiff._process import cosine_schedule
from eqdiff._timesteps import Uniform
from eqdiff.train._ema import ema_update


ROOT = pathlib.Path(__file__).parent.parent


def make_state(key, **options):
    net = eqx.nn.Linear(2, 2, key=key)
    return train.init(
        net, optax.adam(1e-3), timesteps=Uniform(cosine_schedule(10)), key=key, **options
    )


def test_ema_golden():
    golden = load_golden("public_idiff_pieces")
    average = {k: jnp.asarray(golden[f"ema/target0_{k}"]) for k in "ab"}
    for i in range(3):
        params = {k: jnp.asarray(golden[f"ema/src{i}_{k}"]) for k in "ab"}
        average = ema_update(train.EMA(0.97), average, params, jnp.asarray(i + 1))
    for k in "ab":
        assert_golden(average[k], "public_idiff_pieces", f"ema/out_{k}")


@pytest.mark.parametrize("rule, case", [(train.EMA, 0), (train.EMAWarmup, 1)])
def test_ema_golden_of_score_sde(rule, case):
    """`use_num_updates` of the PyTorch repository is the warm-up."""
    golden = load_golden("public_sde_losses")
    average = jnp.asarray(golden[f"ema_num_updates{case}/init"])
    shadow = []
    for i, params in enumerate(golden[f"ema_num_updates{case}/params"]):
        average = ema_update(rule(0.95), average, jnp.asarray(params), jnp.asarray(i + 1))
        shadow.append(average)
    assert_golden(jnp.stack(shadow), "public_sde_losses", f"ema_num_updates{case}/shadow")


def test_ema_warmup_ends():
    gains = [float(train.EMAWarmup(0.75).gain(jnp.asarray(n))) for n in (1, 26, 27, 1000)]
    np.testing.assert_allclose(gains, [9 / 11, 0.25, 0.25, 0.25])


def left_of_the_start(rule, num_steps):
    """The share of the untrained network in the average: that of parameters 1 which become 0."""
    average = jnp.ones((), jnp.float32)
    step = jax.jit(lambda average, n: ema_update(rule, average, jnp.zeros_like(average), n))
    for n in range(1, num_steps + 1):
        average = step(average, jnp.asarray(n))
    return float(average)


def test_what_is_left_of_the_untrained_network():
    """Equations (2) and (3) of `_ema.py`."""
    np.testing.assert_allclose(left_of_the_start(train.EMA(0.99), 100), 0.99**100, rtol=1e-5)
    for n in (1, 10, 30):
        exact = math.factorial(10) * math.factorial(n + 1) / math.factorial(n + 10)
        np.testing.assert_allclose(left_of_the_start(train.EMAWarmup(0.999), n), exact, rtol=1e-5)


def documented_runs():
    """The averages and number of steps of every program in the documentation that samples one."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
            ema, steps = re.search(r"ema=(\(.*?,\))", block), re.search(r"range\((\d+)\)", block)
            if ema and steps and "ema_net" in block:
                yield page.name, ema[1], int(steps[1])


def test_averages_in_the_documentation_are_of_trained_networks(getkey):
    runs = list(documented_runs())
    assert {"README.md", "getting-started.md"} <= {name for name, *_ in runs}
    for name, ema, num_steps in runs:
        for rule in make_state(getkey(), ema=eval(ema, {"eqd": eqdiff})).ema_rules:
            assert left_of_the_start(rule, num_steps) < 0.05, (name, ema)


def test_ema_keeps_what_never_moves():
    constant = jnp.asarray(np.random.default_rng(0).normal(size=100), jnp.float32)
    average = constant
    for n in range(1, 50):
        average = ema_update(train.EMA(0.9999), average, constant, jnp.asarray(n))
    np.testing.assert_array_equal(average, constant)


@pytest.mark.parametrize("rule", [train.EMA, train.EMAWarmup])
@pytest.mark.parametrize("rate", [1.0, -0.1, 9999.0])
def test_ema_rates(rule, rate):
    with pytest.raises(ValueError, match=r"expected a rate in \[0, 1\)"):
        rule(rate)


def test_several_averages(getkey):
    state = make_state(getkey(), ema=(0.999, train.EMA(0.9)))
    assert state.ema_rules == (train.EMAWarmup(0.999), train.EMA(0.9))
    x = jnp.ones(2)
    for index in (0, 1, -1):
        np.testing.assert_array_equal(state.ema_net(index)(x), state.net(x))
    with pytest.raises(ValueError, match="has 2 averages"):
        state.ema_net(2)
    with pytest.raises(ValueError, match="has 0 averages"):
        make_state(getkey(), ema=()).ema_net()


def test_buffers_are_not_shared(getkey):
    key = getkey()
    state = make_state(key, ema=(0.9, 0.9))
    leaves = [x for x in jax.tree.leaves(state) if eqx.is_array(x) and x.dtype != key.dtype]
    pointers = [x.unsafe_buffer_pointer() for x in leaves]
    assert len(set(pointers)) == len(pointers)


def test_states_are_alike(getkey):
    """One architecture, one tree structure: a step compiled for one state serves the other."""
    one, two = (make_state(getkey(), ema=(0.9, train.EMAWarmup(0.9))) for _ in range(2))
    assert jax.tree.structure(one) == jax.tree.structure(two)


def test_shapes_alone(getkey):
    key = getkey()
    shapes = eqx.filter_eval_shape(make_state, key)
    state = make_state(key)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)


def test_old_style_keys_are_taken(getkey):
    assert jnp.issubdtype(make_state(jax.random.PRNGKey(0)).key.dtype, jax.dtypes.prng_key)


def test_rbg_keys_are_refused():
    net = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    with pytest.raises(ValueError, match="threefry2x32"):
        train.init(
            net,
            optax.sgd(1.0),
            timesteps=Uniform(cosine_schedule(10)),
            key=jax.random.key(0, impl="rbg"),
        )


def test_narrow_parameters_are_refused(getkey):
    net = eqx.nn.Linear(2, 2, dtype=jnp.bfloat16, key=getkey())
    with pytest.raises(ValueError, match=r"net\.weight is bfloat16"):
        train.init(net, optax.sgd(1.0), timesteps=Uniform(cosine_schedule(10)), key=getkey())
