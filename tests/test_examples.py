"""The main job's settings and its run folder: what is refused, resumed and kept.

CI runs the job itself, end to end.
"""

import dataclasses
import itertools
import json
import os
import signal
import sys
import types
from pathlib import Path

import numpy as np
import pytest


sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

pytest.importorskip("tyro")

from _config import Config, differences, flat, Model, Output, resolve, Training
from _job import find_data, make_net, make_timesteps
from _run import load, Run
from train_cifar import Loop

import eqdiff as eqd


def config(run_dir, **training) -> Config:
    return resolve(
        Config(training=Training(**training), output=Output(run_dir=run_dir)), "digits", False
    )


def digits():
    return eqd.data.digits()


def test_presets_fill_what_is_left_out_and_nothing_else(tmp_path):
    gpu = resolve(Config(), "cifar10", True)
    assert (gpu.model.channels, gpu.model.num_res_blocks, gpu.model.dropout) == (128, 3, 0.3)
    assert (gpu.diffusion.num_timesteps, gpu.training.ema) == (4000, 0.9999)
    assert gpu.model.compute_dtype == "bfloat16"
    mine = resolve(Config(model=Model(channels=64, dropout=0.0)), "cifar10", True)
    assert (mine.model.channels, mine.model.dropout) == (64, 0.0)
    assert None not in (
        v for k, v in flat(config(tmp_path)).items() if k not in ("data_dir", "image_size")
    )


@pytest.mark.parametrize(
    "training, flag",
    [
        ({"steps": 0}, "--steps"),
        ({"batch_size": -1}, "--batch-size"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"ema": 1.0}, "--ema"),
    ],
)
def test_bad_values_name_their_flag(tmp_path, training, flag):
    with pytest.raises(ValueError, match=flag):
        config(tmp_path, **training)


def test_a_run_of_other_settings_is_refused_and_untouched(tmp_path):
    first = config(tmp_path / "run")
    assert Run(first).open(first, digits()) is False
    before = (tmp_path / "run" / "config.json").read_text()
    other = config(tmp_path / "run", learning_rate=5e-4)
    with pytest.raises(ValueError, match="--learning-rate is 0.0005"):
        Run(other).open(other, digits())
    assert (tmp_path / "run" / "config.json").read_text() == before


def test_a_run_may_be_made_longer(tmp_path):
    short, longer = config(tmp_path / "run", steps=10), config(tmp_path / "run", steps=20)
    Run(short).open(short, digits())
    Run(longer).open(longer, digits())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 20
    assert differences(flat(short), longer) == []


def test_a_folder_that_holds_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear reader")
    mine = config(tmp_path)
    with pytest.raises(ValueError, match="holds no run"):
        Run(mine).open(mine, digits())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwrite_removes_what_a_run_wrote_and_nothing_else(tmp_path):
    mine = config(tmp_path / "run")
    Run(mine).open(mine, digits())
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "run" / "notes.txt").write_text("keep me")
    anew = dataclasses.replace(mine, output=dataclasses.replace(mine.output, overwrite=True))
    Run(anew).open(anew, digits())
    assert (tmp_path / "run" / "notes.txt").exists()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    mine = config(tmp_path / "file" / "run")
    with pytest.raises((OSError, eqd.train.CheckpointError)):
        Run(mine).open(mine, digits())


def test_sampling_from_no_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load(tmp_path)


def test_a_data_set_that_was_asked_for_is_never_replaced(tmp_path):
    def asked(**data):
        default = Config()
        return dataclasses.replace(default, data=dataclasses.replace(default.data, **data))

    (tmp_path / "cifar-10-batches-bin").mkdir()
    for name in ("data_batch_1.bin", "data_batch_2.bin"):
        (tmp_path / "cifar-10-batches-bin" / name).write_bytes(bytes(3073))
    with pytest.raises(Exception, match="missing"):
        find_data(asked(dataset="cifar10", data_dir=tmp_path), False)
    with pytest.raises(ValueError, match="--data-dir"):
        find_data(asked(dataset="folder"), False)
    with pytest.raises(ValueError, match="--image-size"):
        find_data(asked(dataset="digits", image_size=8), False)
    assert find_data(asked(), False)[0] == "digits"
    assert os.listdir(tmp_path) == ["cifar-10-batches-bin"]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 24, 40), (3, 27, 27)])
def test_the_network_fits_any_image(shape, getkey):
    import equinox as eqx
    import jax
    import numpy as np

    source = eqd.data.ArraySource(np.zeros((2, *shape), np.uint8))
    data = eqd.data.Dataset("mine", source, source)
    mine = resolve(Config(model=Model(class_conditional=False)), "folder", False)
    net = eqx.filter_eval_shape(lambda key: make_net(mine, data, key=key), getkey())
    x = jax.ShapeDtypeStruct(shape, np.float32)
    c_noise = jax.ShapeDtypeStruct((), np.float32)
    out = eqx.filter_eval_shape(lambda n, t, y: n(t, y), net, c_noise, x)
    assert out.shape == (2 * shape[0], *shape[1:])
    assert make_timesteps(mine).init() is None


@pytest.mark.parametrize("moment", ["write_log", "checkpoint"])
def test_whenever_a_signal_comes_the_last_step_is_saved(tmp_path, monkeypatch, capsys, moment):
    """It may come after a step has been looked at and before the loop's condition is."""
    settings = config(tmp_path / "run", steps=9)
    settings = dataclasses.replace(
        settings,
        output=dataclasses.replace(
            settings.output, log_every=1, checkpoint_every=4, sample_every=100
        ),
    )
    loop = Loop(settings, digits(), Run(settings), None, {"images": 0})
    stop, saved = types.SimpleNamespace(requested=False, signal=signal.SIGTERM), []
    last = 3 if moment == "write_log" else 4

    def request(step):
        stop.requested = stop.requested or step == last

    def write_log(step, *_):
        if moment == "write_log":
            request(step)

    def checkpoint(state, batches, step):
        saved.append((state.step, step))
        if moment == "checkpoint":
            request(step)

    monkeypatch.setattr(loop, "write_log", write_log)
    monkeypatch.setattr(loop, "checkpoint", checkpoint)
    batch = (np.zeros((2, 1, 8, 8), np.float32), np.zeros(2, np.int32))

    def step_fn(state, batch):
        return types.SimpleNamespace(step=state.step + 1), None

    assert loop.run(types.SimpleNamespace(step=0), step_fn, itertools.repeat(batch), stop) is None
    assert saved[-1] == (last, last)
    assert f"SIGTERM: saved step {last}" in capsys.readouterr().out
