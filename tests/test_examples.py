"""The main job, from its flags to its report."""

import json
import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

pytest.importorskip("tyro")

import numpy as np
import train_cifar

import eqdiff as eqd


SMALL = eqd.train.Changes(steps=5, batch_size=4, channels=16, sample_steps=4)


def run(folder, process, *, change=SMALL, **options):
    train_cifar.main(
        process=process,
        dataset="digits",
        num_timesteps=20 if process == "cosine" else None,
        change=change,
        run_dir=folder,
        eval_images=3,
        eval_samples=40,
        **options,
    )
    return json.loads((folder / "report.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("process", ["cosine", "ve"])
def test_a_run_ends_in_a_report_and_may_be_continued(tmp_path, process, capsys):
    report = run(tmp_path, process)
    assert report["step"] == 5 and report["seconds"]["images"] == 20
    for name in ("bound", "flow"):
        assert np.isfinite(report[name]["value"]) and report[name]["num"] == 3
    assert report["quality"]["num"] == 40 and 0 <= report["quality"]["accuracy"] <= 1
    for name in ("report.md", "samples.png", "loss.png", "model.safetensors"):
        assert (tmp_path / name).stat().st_size > 0
    assert [p.name for p in sorted((tmp_path / "samples").iterdir())][-1] == "step_00000005.png"
    capsys.readouterr()
    # Finished: the same command writes the same report again, and a longer run goes on.
    (tmp_path / "model.safetensors").unlink()
    again = run(tmp_path, process)
    assert again["bound"] == report["bound"] and again["quality"] == report["quality"]
    assert (tmp_path / "model.safetensors").exists()
    longer = eqd.train.Changes(steps=7, batch_size=4, channels=16, sample_steps=4)
    assert run(tmp_path, process, change=longer)["step"] == 7
    assert f"Resuming {tmp_path} at step 5 of 7" in capsys.readouterr().out
    lower = eqd.train.Changes(
        steps=8, batch_size=4, channels=16, sample_steps=4, learning_rate=1e-5
    )
    with pytest.raises(ValueError, match=r"learning_rate is 1e-05 here and 0.001 there"):
        run(tmp_path, process, change=lower)
    assert run(tmp_path, process, change=lower, adjust=True)["step"] == 8
    bounds = [m for m in eqd.train.read_metrics(tmp_path / "metrics.jsonl") if "bound" in m]
    assert bounds and all(np.isfinite(m["bound"]) for m in bounds)


def test_data_that_were_asked_for_are_never_replaced(tmp_path):
    (tmp_path / "cifar-10-batches-bin").mkdir()
    (tmp_path / "cifar-10-batches-bin" / "data_batch_1.bin").write_bytes(bytes(3073))
    with pytest.raises(FileNotFoundError, match="missing"):
        train_cifar.load_data("cifar10", tmp_path, None, None)
    assert train_cifar.load_data("digits", None, None, None).name == "digits"
    for given in (
        ("folder", None, None, None),
        ("digits", None, 8, None),
        ("digits", tmp_path, None, None),
        ("cifar10", None, None, 1),
    ):
        with pytest.raises(ValueError, match="--data-dir"):
            train_cifar.load_data(*given)


def test_it_is_short_enough_to_copy():
    assert len(Path(train_cifar.__file__).read_text().splitlines()) <= 200
