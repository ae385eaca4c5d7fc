"""Samples in npz and PNG files: the pixels of the samples in memory, whatever happens between."""

import json
import zipfile

import equinox as eqx
import jax
import jaxtyping
import numpy as np
import PIL.Image
import pytest

import eqdiff as eqd


KEY = jax.random.key(7)
LABELS = np.arange(7) % 3
DENOISER = eqd.GaussianDenoiser(eqd.cosine_schedule(50), 0.0, 0.5)
DRAW = (eqd.DDIM(3, eta=1.0), DENOISER, 7, (3, 4, 5))
OPTIONS = {"key": KEY, "batch_size": 2}


def draw_to(writer, **options):
    assert eqd.generate_to(writer, *DRAW, **OPTIONS | options) is None


@pytest.fixture(scope="module")
def samples():
    return eqd.generate(*DRAW, **OPTIONS)


@pytest.fixture
def stop(monkeypatch):
    """`stop.append(4)`: an interruption as chunk 4 begins; and which chunks were begun."""
    stops, begun, original = [], [], eqd._chunks.program

    def program(*args):
        if not isinstance(args[2], jax.core.Tracer):
            start = int(np.asarray(args[2])[0])
            if start in stops:
                stops.remove(start)
                raise KeyboardInterrupt
            begun.append(start)
        return original(*args)

    monkeypatch.setattr(eqd._chunks, "program", program)
    return stops, begun


def tree(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("levels", [256, 17])
def test_an_npz_file_has_the_nearest_pixels(levels, samples, tmp_path):
    eqd.data.write_npz(tmp_path / "a.npz", samples, LABELS, levels=levels)
    with np.load(tmp_path / "a.npz") as file:
        assert file.files == ["arr_0", "arr_1"]
        pixels, labels = file["arr_0"], file["arr_1"]
    assert pixels.dtype == np.uint8 and labels.dtype == np.int64
    np.testing.assert_array_equal(labels, LABELS)
    steps = 255 / (levels - 1)
    expected = np.rint((np.clip(samples, -1, 1) + 1) * (levels - 1) / 2) * steps
    np.testing.assert_allclose(pixels, expected.transpose(0, 2, 3, 1), atol=0.501)
    # guided-diffusion's evaluator reads the array piece by piece, and knows version 1.0 alone.
    with zipfile.ZipFile(tmp_path / "a.npz") as file, file.open("arr_0.npy") as array:
        assert np.lib.format.read_magic(array) == (1, 0)
        assert np.lib.format.read_array_header_1_0(array)[0] == (7, 4, 5, 3)


def test_png_files_have_the_nearest_pixels(samples, tmp_path):
    eqd.data.write_pngs(tmp_path / "a", samples, LABELS)
    names = json.loads((tmp_path / "a" / "dataset.json").read_text())["labels"]
    assert names == [[f"000000/{i:06d}.png", i % 3] for i in range(7)]
    for (name, _), sample in zip(names, samples, strict=True):
        image = np.asarray(PIL.Image.open(tmp_path / "a" / name))
        np.testing.assert_array_equal(image, eqd.data.to_uint8(sample).transpose(1, 2, 0))
    grey = eqd.data.to_uint8(samples[:, :1])
    eqd.data.write_pngs(tmp_path / "grey", grey)
    assert json.loads((tmp_path / "grey" / "dataset.json").read_text()) == {"labels": None}
    image = np.asarray(PIL.Image.open(tmp_path / "grey" / "000000" / "000006.png"))
    np.testing.assert_array_equal(image, grey[6, 0])
    with pytest.raises(ValueError, match="grey is not empty"):
        eqd.data.write_pngs(tmp_path / "grey", grey)


def test_a_thousand_files_make_a_folder(tmp_path):
    eqd.data.write_pngs(tmp_path, np.zeros((1002, 1, 1, 1)))
    counts = {path.name: len(list(path.iterdir())) for path in tmp_path.iterdir() if path.is_dir()}
    assert counts == {"000000": 1000, "001000": 2}
    assert (tmp_path / "001000" / "001001.png").exists()


@pytest.mark.parametrize("stops", [(), (0,), (4,), (6, 6), (2, 4, 6)])
def test_an_interrupted_npz_file_is_the_same_in_the_end(stops, stop, samples, tmp_path):
    stopping, begun = stop
    stopping.extend(stops)
    path = tmp_path / "a.npz"
    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            draw_to(eqd.data.NPZWriter(path, labels=LABELS))
        assert not path.exists()
    draw_to(eqd.data.NPZWriter(path, labels=LABELS))
    assert len(begun) <= 4 + len(stops)
    # The same arrays as of samples in memory, and no second file.
    eqd.data.write_npz(tmp_path / "b.npz", samples, LABELS)
    with np.load(path) as a, np.load(tmp_path / "b.npz") as b:
        assert a.files == b.files and all(np.array_equal(a[name], b[name]) for name in b.files)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    # Once more, nothing is left to do; another call would overwrite it.
    begun.clear()
    content = path.read_bytes()
    draw_to(eqd.data.NPZWriter(path, labels=LABELS))
    assert begun == [] and path.read_bytes() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    for writer, options in (
        (eqd.data.NPZWriter(path, labels=LABELS), {"key": jax.random.key(8)}),
        (eqd.data.NPZWriter(path, labels=LABELS[::-1]), {}),
        (eqd.data.NPZWriter(path, labels=LABELS, levels=17), {}),
        (eqd.data.NPZWriter(path), {}),
        (eqd.data.NPZWriter(tmp_path / "b.npz"), {}),
    ):
        with pytest.raises(ValueError, match=r"[ab]\.npz exists, and another call has written it"):
            draw_to(writer, **options)


def test_a_png_folder_is_completed_and_mended(stop, samples, tmp_path):
    stopping, begun = stop
    folder, reference = tmp_path / "a", tmp_path / "b"
    stopping.append(6)
    with pytest.raises(KeyboardInterrupt):
        draw_to(eqd.data.PNGWriter(folder, labels=LABELS))
    assert not (folder / "dataset.json").exists()
    begun.clear()
    draw_to(eqd.data.PNGWriter(folder, labels=LABELS))
    # The chunk that was under way is lost with what stopped it.
    assert begun == [4, 6]
    eqd.data.write_pngs(reference, samples, LABELS)
    expected = tree(reference)
    # Our own reader of folders finds the images and their classes.
    source = eqd.data.image_folder(folder, test_fraction=0.0).train
    images, labels = source.take(np.arange(7))
    np.testing.assert_array_equal(images, eqd.data.to_uint8(samples))
    np.testing.assert_array_equal(labels, LABELS)
    found = tree(folder)
    assert expected == {name: file for name, file in found.items() if ".chunks" not in name}
    # A damaged, a cut, and a deleted picture.
    for i, mend in ((0, lambda b: b[:-9] + b"x" + b[-8:]), (1, lambda b: b[:9]), (5, None)):
        path = folder / "000000" / f"{i:06d}.png"
        path.write_bytes(mend(path.read_bytes())) if mend else path.unlink()
    begun.clear()
    draw_to(eqd.data.PNGWriter(folder, labels=LABELS))
    assert begun == [0, 4] and tree(folder) == found
    with pytest.raises(ValueError, match="results of another call: labels is"):
        draw_to(eqd.data.PNGWriter(folder))
    with pytest.raises(ValueError, match="is not empty"):
        draw_to(eqd.data.PNGWriter(reference))


class _Diverging(eqd.AbstractSampler):
    """Sample values from 0 to infinity."""

    num_calls = 0

    def trajectory(self, denoiser, x1, args=None, *, key=None):
        raise NotImplementedError

    def __call__(self, denoiser, x1, args=None, *, key=None):
        return x1 / args


@pytest.mark.parametrize("kind", ["NPZWriter", "PNGWriter"])
def test_what_no_picture_shows_is_refused(kind, tmp_path, monkeypatch):
    def writer(name="a.npz", **options):
        return getattr(eqd.data, kind)(tmp_path / name, **options)

    call = (_Diverging(), DENOISER, 7)
    args = np.array([1, 1, 1, 0, 1, 1, 1.0])
    with pytest.raises(ValueError, match="1 samples have values that are not finite, .*: 3"):
        eqd.generate_to(writer(), *call, (3, 4, 5), args=args, **OPTIONS)
    # Before any computation.
    for shape in ((5, 4, 4), (4, 4)):
        with pytest.raises(ValueError, match=r"expected \(n, channels, height, width\)"):
            eqd.generate_to(writer("b.npz"), *call, shape, args=args, **OPTIONS)
    with pytest.raises(ValueError, match="6 labels for 7 images"):
        draw_to(writer("b.npz", labels=LABELS[:6]))
    with pytest.raises(ValueError, match="levels=1"):
        draw_to(writer("b.npz", levels=1))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="one whole number for each"):
        writer("b.npz", labels=LABELS / 2)
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        eqd.data.NPZWriter(tmp_path / "b.zip")
    assert not (tmp_path / "b.npz").exists()


def test_failed_samples_are_named_and_the_others_written(tmp_path, stop):
    class Failing(eqd.AbstractSampler):
        num_calls = 0

        def trajectory(self, denoiser, x1, args=None, *, key=None):
            raise NotImplementedError

        def __call__(self, denoiser, x1, args=None, *, key=None):
            return eqx.error_if(x1, args == 3, "three")

    _, begun = stop
    for expected in ([0, 2, 2, 3, 4, 6], [2, 2, 3]):
        begun.clear()
        with pytest.raises(eqd.FailedExamples, match="1 of 7.*not been written.* 3. The first: th"):
            eqd.generate_to(
                eqd.data.PNGWriter(tmp_path), Failing(), *DRAW[1:], args=np.arange(7), **OPTIONS
            )
        assert sorted(begun) == expected
    names = sorted(path.name for path in (tmp_path / "000000").iterdir())
    assert names == [f"{i:06d}.png" for i in (0, 1, 4, 5, 6)]


class _Rows(eqd.AbstractWriter):
    """A user's own: rows of a file that another program maps into memory."""

    def __init__(self, path):
        self.path, self.digests = path, {}

    def create(self, call):
        self.rows = np.lib.format.open_memmap(
            self.path, "w+", np.float32, (call["num"], *call["shape"])
        )

    def open(self, call):
        raise AssertionError("for other processes")

    def present(self):
        return set(self.digests)

    def has(self, start, digest):
        return self.digests.get(start) == digest

    def write(self, start, digest, samples):
        self.rows[start : start + len(samples)] = samples
        self.digests[start] = digest

    def finish(self, chunks):
        assert chunks == self.digests
        self.rows.flush()


def test_a_writer_of_ones_own(samples, tmp_path, stop):
    writer = _Rows(tmp_path / "a.npy")
    draw_to(writer)
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), samples, rtol=1e-6)
    _, begun = stop
    begun.clear()
    draw_to(writer)
    assert begun == []
