"""A small run whose every array counts, and what checkpoints of it are compared with."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from eqdiff import train
from eqdiff._process import AbstractProcess, VPSDE
from eqdiff._timesteps import AbstractTimesteps


class Counting(AbstractTimesteps):
    """Draws times that depend on every loss it has seen."""

    process: AbstractProcess = VPSDE()

    def init(self):
        return jnp.zeros(())

    def sample(self, state, n, *, key):
        return jax.random.uniform(key, (n,)) + state, jnp.ones(n)

    def update(self, state, t, losses):
        return 0.5 * state + jnp.mean(losses).astype(state.dtype)


OPTIMISER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
BATCHES = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)


def loss_fn(net, t, x0, args, *, key):
    dropped = net.dropout(x0, key=key)
    return jnp.mean((net.linear(dropped) - x0) ** 2) * jnp.cos(t).astype(x0.dtype), {}


class Net(eqx.Module):
    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    empty: jax.Array
    counter: jax.Array


def make_state(seed=0, width=3, ema=(0.9, train.EMA(0.99))):
    key = jax.random.key(seed)
    linear = eqx.nn.Linear(width, width, dtype=jnp.float32, key=key)
    net = Net(linear, eqx.nn.Dropout(0.5), jnp.zeros((0, 3)), jnp.asarray(7))
    return train.init(net, OPTIMISER, timesteps=Counting(), ema=ema, key=key)


def as_numpy(x):
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def arrays(tree):
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(path): as_numpy(x) for path, x in leaves}


def assert_identical(one, two):
    one, two = arrays(one), arrays(two)
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype and np.array_equal(one[name], two[name]), name


def files(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def damage(folder, how):
    """Spoils the largest file below a folder that is read."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != "_METADATA")
    path = max(found, key=lambda p: p.stat().st_size)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.unlink()
