"""Checkpoints of format 1, whose filters had their outputs last, go on as today's do."""

import pathlib
import tarfile
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqdiff as eqd
from eqdiff import train
from eqdiff.nn._conv import Conv
from eqdiff.nn._flags import ncsnpp, openai_unet
from eqdiff.train import _checkpoint, _upgrade


CHECKPOINTS = pathlib.Path(__file__).parent / "checkpoints"
LAYOUTS = {
    "flat": train.Flat(),
    "one vector": train.Flat(lambda name, leaf: "all"),
    "leaves": train.Leaves(),
}
_SIZES: dict[str, Any] = dict(
    in_channels=3,
    out_channels=3,
    channels=4,
    num_res_blocks=1,
    channel_mult=(1,),
    attention_downsamples=(),
)
# As the runs that wrote them drew it.
DATA = np.random.default_rng(0).normal(size=(5, 4, 3, 8, 8)).astype(np.float32)


class WithOwn(eqx.Module):
    """A U-Net, and a convolution of somebody else's whose filter has the shape (3, 3, 3, 3)."""

    unet: eqd.nn.UNet
    own: eqx.nn.Conv2d

    def __call__(self, c_noise, x, args=None, *, key=None):
        return self.own(self.unet(c_noise, x, args, key=key))


def with_own():
    key = jax.random.key(9)
    unet = openai_unet(**{**_SIZES, "channels": 2}, num_heads=1, norm_groups=1, key=key)
    own = eqx.nn.Conv2d(3, 3, 3, padding=1, dtype=jnp.float32, key=key)
    return WithOwn(unet, own)


def of_scores():
    return ncsnpp(**_SIZES, dropout=0.0, centred=False, scale_by_sigma=True, key=jax.random.key(9))


CASES = {
    "unet": (
        with_own,
        eqd.linear_schedule(50),
        eqd.PredictNoise(),
        optax.adam(1e-2),
        (0.9,),
    ),
    "ncsnpp": (of_scores, eqd.VESDE(), eqd.PredictScore(), optax.sgd(1e-6), ()),
}


def make(name, layout):
    make_net, process, parameterisation, optimiser, ema = CASES[name]

    def loss_fn(net, t, x0, args, *, key):
        denoiser = eqd.Denoiser(net, process, parameterisation)
        return eqd.l_simple(eqd.predict(denoiser, t, x0, args, key=key)), {}

    state = train.init(
        make_net(),
        optimiser,
        timesteps=eqd.Uniform(process),
        ema=ema,
        layout=LAYOUTS[layout],
        key=jax.random.key(0),
    )
    return state, train.make_step(loss_fn, optimiser)


def answers(state):
    nets = [state.net, *(state.ema_net(i) for i in range(len(state.ema)))]
    x = jnp.asarray(DATA[0, 0])
    return [np.ravel(eqx.filter_jit(net)(jnp.asarray(1.5, jnp.float32), x)) for net in nets]


def assert_near(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize(
    "name, layout",
    [
        ("unet", "flat"),
        ("ncsnpp", "flat"),
        pytest.param("unet", "one vector", marks=pytest.mark.slow),
        pytest.param("unet", "leaves", marks=pytest.mark.slow),
    ],
)
def test_a_network_of_format_1_answers_and_trains_as_it_did(name, layout, tmp_path):
    """The answers and the next losses are those of the version that wrote it."""
    with tarfile.open(CHECKPOINTS / f"format1_{name}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    checkpointer = train.Checkpointer(tmp_path / f"format1_{name}")
    with jax.enable_x64(False):
        state, step = make(name, layout)
        state, extra, _ = checkpointer.restore(state)
        assert_near(answers(state), extra["answers"])
        losses = []
        for x0 in DATA[2:]:
            state, metrics = step(state, (x0, None))
            losses.append(metrics.loss)
        np.testing.assert_allclose(losses, extra["losses"], rtol=1e-5)
        assert_near(answers(state), extra["answers_after"])


def saved_as_format_1(directory, tree, monkeypatch):
    monkeypatch.setattr(_checkpoint, "FORMAT", 1)
    checkpointer = train.Checkpointer(directory)
    checkpointer.save(0, tree)
    return checkpointer


def test_a_pytree_that_is_no_state(tmp_path, monkeypatch):
    """A network beside other arrays: filters by what they are, names without what is around."""
    filters = np.arange(81, dtype=np.float32).reshape(3, 3, 3, 3)
    old = {
        "net": {"weight": filters, "bias": np.zeros(3, np.float32)},
        "own": filters,
        "weight": filters,
    }
    checkpointer = saved_as_format_1(tmp_path, old, monkeypatch)
    conv = jax.tree.map(jnp.zeros_like, Conv(3, 3, key=jax.random.key(0)))
    like = {"net": eqd.nn.Centred(conv), "own": jnp.asarray(filters), "weight": filters}
    restored, _, _ = checkpointer.restore(like)
    np.testing.assert_array_equal(restored["net"].net.weight, np.moveaxis(filters, -1, 0))
    np.testing.assert_array_equal(restored["own"], filters)
    np.testing.assert_array_equal(restored["weight"], filters)


def test_moments_of_other_shapes_are_left():
    """Adafactor has one number in place of a factored filter's moments, and none of its axes."""
    optimiser = optax.adafactor(1e-2, min_dim_size_to_factor=2)
    conv = Conv(5, 4, key=jax.random.key(0))

    def make():
        timesteps, key = eqd.Uniform(eqd.cosine_schedule(8)), jax.random.key(0)
        return train.init(conv, optimiser, timesteps=timesteps, layout=train.Leaves(), key=key)

    moves = _upgrade.SINCE[1]({"run": make()})
    assert moves["run.net.weight"] == ("run.net.weight", (3, 0, 1, 2))
    assert moves["run.ema.0.weight"].axes == (3, 0, 1, 2)
    others = {k: move for k, move in moves.items() if "opt_state" in k and k.endswith(".weight")}
    assert len(others) == 3 and all(move.axes is None for move in others.values())
    assert moves["run.net.bias"].axes is None


def test_another_architecture_of_format_1_is_refused(tmp_path, monkeypatch):
    old = {"conv": {"weight": np.ones(4), "bias": np.zeros(3)}}
    checkpointer = saved_as_format_1(tmp_path, old, monkeypatch)
    with pytest.raises(ValueError, match=r"conv.weight is float64\(4,\), expected float\d\d\(3, "):
        checkpointer.restore({"conv": Conv(3, 3, key=jax.random.key(0))})
