"""examples/encode.py on a run of an untrained network, whose flow is linear and known."""

import json
import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

pytest.importorskip("tyro")

import encode
import jax
import numpy as np

import eqdiff as eqd


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The smallest folder that looks like a run."""
    folder = tmp_path_factory.mktemp("run")
    shape, style = eqd.nn.UNetShape(1, 2, 8, 1, (1,), ()), eqd.nn.styles.iddpm(norm_groups=8)
    net = eqd.nn.UNet(shape, style, eqd.nn.embeddings.iddpm(), key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, eqd.cosine_schedule(50), variance=eqd.LearnedRange())
    eqd.save_model(folder / "model.safetensors", denoiser)
    settings = {"dataset": "digits", "data_dir": None, "image_size": None, "image_channels": None}
    settings |= {"shape": [1, 8, 8], "levels": 17, "num_classes": None, "process": "cosine"}
    (folder / "config.json").write_text(json.dumps({"settings": settings}))
    return folder


@pytest.mark.slow
def test_it_draws_both_pictures_and_the_table(run, capsys, tmp_path):
    options = {"pairs": 1, "columns": 2, "tolerance": 1e-3, "temperatures": (1.0,)}
    with jax.numpy_dtype_promotion("standard"):
        encode.main(run, **options, table=(1e-2, 1e-5), out=tmp_path)
    for name in ("encode_interpolation.png", "encode_temperature.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines() if "|" in line]
    coarse, fine = (float(row[1]) for row in rows[2:])
    # An untrained U-Net predicts no noise: the flow scales x by α, and comes back as well as it is
    # solved.
    assert fine < 0.1 * coarse and fine < 0.05


def test_pairs_of_a_conditional_model_share_their_class():
    found = eqd.data.digits().held_out(240)
    images, labels = encode.paired(*found, 12)
    assert images.shape == (24, 1, 8, 8)
    assert np.array_equal(labels[::2], labels[1::2]) and len(np.unique(labels)) == 10
    images, labels = encode.paired(found[0], None, 12)
    assert images.shape == (24, 1, 8, 8) and labels is None


def test_impossible_pictures_are_refused(run):
    with pytest.raises(ValueError, match="--columns 1"):
        encode.main(run, columns=1)
