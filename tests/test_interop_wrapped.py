"""State dicts inside training states, and names inside wrappers': what is read is said."""

import warnings

import equinox as eqx
import numpy as np
import pytest
from helpers import load_golden, load_golden_config

from eqdiff import interop
from eqdiff.interop._wrapped import state_inside, without_prefix


STATE = {"input_blocks.0.0.weight": np.ones((2, 2)), "out.2.bias": np.zeros(3)}
AVERAGE = {name: array + 1 for name, array in STATE.items()}
START = ("input_blocks.0.0.weight",)


@pytest.mark.parametrize("name", ["state_dict", "model", "model_state_dict", "ema", "ema_model"])
def test_one_state_dict_is_read_in_silence(name):
    contents = {name: STATE, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}
    assert state_inside(contents, "x") is STATE
    assert state_inside(STATE, "x") is STATE


def test_the_average_is_read_and_said():
    with pytest.warns(UserWarning, match=r"x: the moving average 'ema' is read, not .*\['model'\]"):
        assert state_inside({"model": STATE, "ema": AVERAGE}, "x") is AVERAGE
    with pytest.warns(UserWarning, match=r"'model' is read; \['ema'\] is not an average with"):
        assert state_inside({"model": STATE, "ema": {"decay": 0.9}}, "x") is STATE


def test_several_of_a_kind_are_refused():
    with pytest.raises(ValueError, match=r"under each of \['state_dict', 'model'\].*weights\['sta"):
        state_inside({"state_dict": STATE, "model": AVERAGE}, "x")
    both = {f"{part}.{n}": a for part in ("unet", "classifier") for n, a in STATE.items()}
    with pytest.raises(ValueError, match=r"several networks, .*\['classifier\.', 'unet\.'\]"):
        without_prefix(both, START, "x")
    mixed = STATE | {"_orig_mod.out.2.bias": np.zeros(3)}
    with pytest.raises(ValueError, match="with and without '_orig_mod.'"):
        without_prefix(mixed, START, "x")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model.net."])
def test_prefixes_are_taken_off(prefix):
    wrapped = {f"{prefix}{name}": array for name, array in STATE.items()}
    assert dict(without_prefix(wrapped, START, "x")) == STATE


def test_what_is_left_out_is_said():
    lightning = {f"model.{name}": array for name, array in STATE.items()}
    lightning |= {"betas": np.ones(4), "loss.logvar": np.zeros(1)}
    with pytest.warns(
        UserWarning, match=r"model\.\* are read, 2 others are not \(betas, loss\.log"
    ):
        assert dict(without_prefix(lightning, START, "x")) == STATE
    averaged = {f"model.{n}": a for n, a in STATE.items()}
    averaged |= {f"ema_model.{n}": a for n, a in AVERAGE.items()}
    with pytest.warns(UserWarning, match=r"ema_model\.\* are read, 2 others are not"):
        assert dict(without_prefix(averaged, START, "x")) == AVERAGE


def _state(name):
    golden = load_golden(name)
    return {k[6:]: np.asarray(v) for k, v in golden.items() if k.startswith("state/")}


def test_loaders_read_what_is_wrapped():
    state, flags = _state("public_idiff_unet_c"), {"num_heads": 4}
    plain = interop.load_improved_diffusion(state, flags)
    compiled = {"state_dict": {f"model._orig_mod.{k}": v for k, v in state.items()}}
    assert eqx.tree_equal(interop.load_improved_diffusion(compiled, flags), plain)
    name = "public_score_ncsnpp_ddpmpp"
    state, config = _state(name), load_golden_config(name)
    net = interop.score_sde_network(state, config)
    for contents in (
        {"model": {f"_orig_mod.module.{k}": v for k, v in state.items()}},
        {"state_dict": {f"score_model.{k}": v for k, v in state.items()}},
    ):
        assert eqx.tree_equal(interop.score_sde_network(contents, config), net)
    other = {k: 0 * v for k, v in state.items()}
    with pytest.warns(UserWarning, match="the moving average 'ema' is read"):
        named = interop.score_sde_network({"model": other, "ema": state}, config)
    assert eqx.tree_equal(named, net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interop.score_sde_network(state, config)
