"""FID's network and its resizing against the published code (`features/make_fixtures.py`).

The fixtures were computed in float64; what is left is the rounding of float32, as in the official
code's own float32.
"""

import contextlib
import hashlib
import http.server
import json
import pathlib
import struct
import sys
import threading
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqdiff import data, metrics
from eqdiff.metrics import _inception, _weight_file


FEATURES = pathlib.Path(__file__).parent / "features"
sys.path.insert(0, str(FEATURES))

import seeded


ANSWERS = np.load(FEATURES / "inception.npz")
RESIZES = {
    "tensorflow": metrics.TensorFlowBilinear(),
    "pytorch": metrics.PyTorchBilinear(),
    "pillow": metrics.PillowBicubic(),
}
# As in make_fixtures.py.
SIZES = {"up": ((13, 9), (29, 31)), "down": ((57, 40), (23, 29)), "mixed": ((11, 37), (24, 16))}
FULL = {"small": (1, 3, 32, 32), "large": (2, 3, 340, 260)}


@pytest.fixture(scope="module")
def weights():
    return seeded.weights(json.loads(str(ANSWERS["shapes"])))


@pytest.fixture(scope="module")
def net(weights):
    return metrics.inception_v3(weights)


def assert_close(found, expected, tolerance=3e-6):
    assert found.dtype == jnp.float32 and found.shape == expected.shape
    assert np.abs(np.asarray(found) - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("code", RESIZES)
def test_resizing_is_the_published_code_s(code, name):
    old, new = SIZES[name]
    expected = np.load(FEATURES / "resize.npz")[f"{code}/{name}"]
    found = RESIZES[code](jnp.asarray(seeded.image(3, 3, *old)), new)
    scaled = expected / 127.5 - 1 if code == "pytorch" else (expected - 128) / 128
    assert_close(found, scaled)
    same = RESIZES[code](jnp.asarray(seeded.image(3, 3, *old)), old)
    grey = (same + 1) * 127.5 if code == "pytorch" else same * 128 + 128
    np.testing.assert_allclose(grey, seeded.image(3, 3, *old), atol=1e-4)


def test_the_network_block_by_block(net):
    """On 107×91 pixels, where no two sides of a block are alike."""
    image = seeded.image(0, 3, 107, 91)
    x = (jnp.asarray(np.moveaxis(image, 0, -1), jnp.float32) - 128) / 128

    @eqx.filter_jit
    def outputs(net, x):
        stem, *others = net.early.layers
        found, h = {}, x
        for number, layer in enumerate(stem.layers):
            h = layer(h)
            found[f"stem{number}"] = h
        for layer in others:
            h = layer(h)
        found["spatial"] = h = net.spatial_block(h)
        found["block2"] = net.late.layers[0](h)
        pool = jnp.mean(net.late(h), axis=(0, 1))
        return {k: jnp.moveaxis(v, -1, 0) for k, v in found.items()} | {"pool": pool}

    found = outputs(net, x)
    assert_close(found["stem3"][::8, ::4, ::4], ANSWERS["small/block0"])
    assert_close(found["stem6"][::8, ::2, ::2], ANSWERS["small/block1"])
    assert_close(found["spatial"][:7], ANSWERS["small/spatial"])
    assert_close(found["block2"][::8], ANSWERS["small/block2"])
    assert_close(found["pool"], ANSWERS["small/pool"])


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("code", RESIZES)
def test_features_of_images(net, code, name):
    features = eqx.tree_at(lambda n: n.resize, net, RESIZES[code])
    assert features.name == f"inception-v3 {net.weights} {RESIZES[code].name}"
    pool = eqx.filter_jit(features)(jnp.asarray(seeded.image(*FULL[name])))
    assert_close(pool, ANSWERS[f"full/{code}/{name}"])
    if code == "tensorflow":
        logits = jnp.asarray(ANSWERS[f"full/logits/{name}"])
        assert_close(net.probabilities(pool), np.asarray(jax.nn.softmax(logits)), 5e-5)


@pytest.mark.slow
def test_features_of_many_images(net):
    images = np.stack([seeded.image(seed, 3, 32, 32) for seed in (1, 4)])
    pool = metrics.extract(net, images, batch_size=2)
    assert_close(pool[0], ANSWERS["full/tensorflow/small"])
    assert np.abs(pool[1] - pool[0]).max() > 0.1
    spatial = metrics.extract(net.spatial, images, batch_size=2)
    assert spatial.shape == (2, 2023)
    assert_close(spatial[0], ANSWERS["full/spatial/small"])


def test_images_are_made_8_bit_and_of_three_channels(net):
    image = seeded.image(5, 1, 8, 8)
    seen = net.prepare(jnp.asarray(image))
    assert seen.shape == (299, 299, 3)
    np.testing.assert_array_equal(seen, np.repeat(seen[..., :1], 3, -1))
    floats = jnp.asarray(image, jnp.float32) / 127.5 - 1
    np.testing.assert_array_equal(net.prepare(floats), seen)
    np.testing.assert_array_equal(net.prepare(floats + 0.003), seen)
    with pytest.raises(ValueError, match=r"shape \(4, 8, 8\), expected \(1, height"):
        net.prepare(jnp.zeros((4, 8, 8), jnp.uint8))


def test_another_network_is_refused_by_name(weights):
    lacks = {k: v for k, v in weights.items() if k != "Mixed_6d.branch7x7_2.bn.running_mean"}
    with pytest.raises(ValueError, match=r"lacks Mixed_6d.branch7x7_2.bn.running_mean"):
        metrics.inception_v3(lacks)
    with pytest.raises(ValueError, match="2 arrays that this network lacks, such as .*AuxLogits"):
        metrics.inception_v3(weights | {"AuxLogits.a": np.zeros(1), "AuxLogits.b": np.zeros(1)})
    with pytest.raises(ValueError, match=r"fc.weight of shape \(1000, 2048\)"):
        metrics.inception_v3(weights | {"fc.weight": np.zeros((1000, 2048), np.float32)})


def write_torch(path, arrays):
    """An archive as `torch.save` writes it, of float32 tensors and whole numbers."""

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in values) + b"t"

    pickled = b"\x80\x02}("
    with zipfile.ZipFile(path, "w") as archive:
        for key, (name, a) in enumerate(arrays.items()):
            kind = {"f": "FloatStorage", "i": "LongStorage"}[a.dtype.kind]
            strides = [stride // a.itemsize for stride in a.strides]
            size = b"J" + struct.pack("<i", a.size)
            storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(str(key))
            storage += text("cpu") + size + b"tQ"
            call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"J\0\0\0\0"
            call += numbers(a.shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
            pickled += text(name) + call
            archive.writestr(f"x/data/{key}", a.tobytes())
        archive.writestr("x/data.pkl", pickled + b"u.")


@pytest.mark.slow
def test_the_file_is_found_and_checked(weights, net, tmp_path, monkeypatch):
    hub = tmp_path / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    path = hub / "weights-inception-2015-12-05-6726825d.pth"
    write_torch(path, weights)
    with pytest.raises(ValueError, match=r"SHA-256 \w{64}, expected 6726825d\w{56} \(95628359"):
        metrics.inception_v3(path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=f"no undamaged pt_inception.*{hub}"):
        metrics.inception_v3(download=False)
    file = _inception._FILE._replace(sha256=_weight_file.digest_of(path), size=path.stat().st_size)
    monkeypatch.setattr(_inception, "_FILE", file)
    found = metrics.inception_v3(download=False)
    assert found.name == "inception-v3 2015-12-05 tensorflow-bilinear"
    leaves = [jax.tree.leaves(eqx.filter(n, eqx.is_array)) for n in (found, net)]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_array_equal(a, b)


@contextlib.contextmanager
def serve(content):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/weights.pth"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_download_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    content = b"weights" * 1000
    right = hashlib.sha256(content).hexdigest()
    folder = tmp_path / "eqdiff"
    for sent, expected in (
        (content[:-1] + b"!", "expected " + right),
        (content + b"more", "more than the 7000"),
    ):
        with serve(sent) as url:
            file = _weight_file.Published("weights.pth", url, 7000, right)
            with pytest.raises(data.DownloadError, match=f"{expected}.*Put the file there"):
                _weight_file.fetch(file, progress=False)
        assert list(folder.iterdir()) == []
    assert _weight_file.find(file) is None
    with serve(content) as url:
        path = _weight_file.fetch(file._replace(url=url), progress=False)
    assert [p.name for p in folder.iterdir()] == ["weights.pth"]
    assert _weight_file.find(file) == path and path.read_bytes() == content
    # Damaged later, it counts as not there.
    path.write_bytes(content[::-1])
    assert _weight_file.find(file) is None
