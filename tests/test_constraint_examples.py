"""The example behind the picture of the page on controllable generation."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import eqdiff as eqd


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))


@pytest.mark.slow
@pytest.mark.parametrize("process", [eqd.cosine_schedule(30), eqd.EDMSDE()], ids=["chain", "edm"])
def test_the_example_writes_its_picture(process, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tyro")
    pytest.importorskip("sklearn")
    import controllable

    # Pixels of one Gaussian in place of a network: quick to compile.
    denoiser = eqd.GaussianDenoiser(process, 0.0, 0.6)
    settings = {"dataset": "digits", "data_dir": None, "image_size": None, "image_channels": None}
    settings |= {"shape": [1, 8, 8], "num_classes": None}
    monkeypatch.setattr(controllable, "load", lambda run: (denoiser, settings))
    options = {"num": 3, "num_steps": 4, "repeats": 2}
    with jax.numpy_dtype_promotion("standard"):
        controllable.main(tmp_path, **options)
    assert (tmp_path / "controllable.png").read_bytes().startswith(b"\x89PNG")
    assert "root mean square error" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="--overwrite"):
        controllable.main(tmp_path, **options)


def test_the_examples_operators_are_what_they_say():
    controllable = pytest.importorskip("controllable")
    x = np.arange(16.0).reshape(1, 4, 4)
    np.testing.assert_array_equal(controllable.shrink(x), [[[2.5, 4.5], [10.5, 12.5]]])
    np.testing.assert_array_equal(controllable.shrink(controllable.enlarge(x)), x)
    half = controllable.left_half((1, 1, 4))
    np.testing.assert_array_equal(half, [[True, True, False, False]])
