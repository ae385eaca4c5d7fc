"""Where classes are written: folders, names, lists, archives; what is guessed, what is asked."""

import io
import json
import os
import resource
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from eqdiff import data


def png(value, size=(4, 4)):
    stream = io.BytesIO()
    Image.new("L", size, value).save(stream, "PNG")
    return stream.getvalue()


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def pack(path, files, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def labels_of(dataset):
    """The class of each image, which is known by its grey value."""
    return {
        int(source[i][0][0, 0, 0]): source[i][1]
        for source in (dataset.train, dataset.test)
        for i in range(len(source))
    }


def images(*names) -> dict[str, bytes | str]:
    return {name: png(10 * i) for i, name in enumerate(names)}


NVIDIA: dict[str, bytes | str] = {f"{i // 3:05d}/img{i:08d}.png": png(10 * i) for i in range(6)}
NVIDIA_LABELS = [[name, i % 2 + 6] for i, name in enumerate(NVIDIA)]
NVIDIA["dataset.json"] = json.dumps({"labels": NVIDIA_LABELS})
OPENAI = images("cat_00.png", "cat_01.png", "dog_00.png", "dog_01.png")
LISTED = images("a.png", "b/c.png", "d.png")
CASES = {
    "nvidia": (
        NVIDIA,
        "DatasetJSON(name='dataset.json')",
        [6, 7, 6, 7, 6, 7],
        "8 classes (6 3, 7 3)",
    ),
    "no labels": (
        NVIDIA | {"dataset.json": '{"labels": null}'},
        "DatasetJSON(name='dataset.json')",
        [0] * 6,
        "no classes",
    ),
    "openai": (OPENAI, "FileNames()", [0, 0, 1, 1], "2 classes (cat 2, dog 2)"),
    "folders": (
        images("cat/cat_0.png", "emu/x/1.png", "dog/1.png"),
        "ClassFolders()",
        [0, 2, 1],
        "3 classes (cat 1, dog 1, emu 1)",
    ),
    "csv": (
        LISTED | {"labels.csv": "\ufefffile, label\na.png,red\nb/c.png,blue\n\nd.png,red\n"},
        "LabelFile(path='labels.csv', file=None, label=None)",
        [1, 0, 1],
        "2 classes (blue 1, red 2)",
    ),
    "csv without header": (
        LISTED | {"labels.csv": "a.png,2\nb/c.png,0\nd.png,10\n"},
        "LabelFile(path='labels.csv', file=None, label=None)",
        [2, 0, 10],
        "11 classes (0 1, 2 1, 10 1)",
    ),
    "jsonl": (
        {f"images/{n}": v for n, v in LISTED.items()}
        | {
            "metadata.jsonl": "".join(
                json.dumps({"file_name": n, "class": c}) + "\n"
                for n, c in (("a.png", 1), ("c.png", 0), ("d.png", 1))
            )
        },
        "LabelFile(path='metadata.jsonl', file=None, label=None)",
        [1, 0, 1],
        "2 classes (0 1, 1 2)",
    ),
    "flat": (images("img_0.png", "img_1.png", "x.png"), "Unlabelled()", [0] * 3, "no classes"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("zipped", (False, True))
def test_layouts_are_guessed_and_said(tmp_path, name, zipped):
    files, layout, labels, classes = CASES[name]
    root = tmp_path / ("data.zip" if zipped else "data")
    (pack if zipped else write)(root, files)
    d = data.image_folder(root, test_fraction=0.0)
    assert labels_of(d) == {10 * i: label for i, label in enumerate(labels)}
    assert d.description.startswith(f"{root.name}: {layout} (guessed)")
    assert classes in d.description and f"{len(labels)} training" in d.description
    # The same layout, given.
    given = eval(layout, dict(vars(data)))
    again = data.image_folder(root, layout=given, test_fraction=0.0)
    assert labels_of(again) == labels_of(d) and again.class_names == d.class_names
    assert "guessed" not in again.description


def test_train_and_test_trees(tmp_path):
    files = {
        "train/dog/1.png": png(1),
        "train/emu/1.png": png(2),
        "val/cat/1.png": png(3),
        "val/emu/1.png": png(4),
        "test/cat/1.png": png(5),
        "test/dog/1.png": png(6),
        "test/dog/2.png": png(7),
    }
    write(tmp_path / "data", files)
    d = data.image_folder(tmp_path / "data")
    assert d.class_names == ("cat", "dog", "emu")
    assert labels_of(d) == {1: 1, 2: 2, 5: 0, 6: 1, 7: 1}
    assert (len(d.train), len(d.test)) == (2, 3)
    assert "within ClassFolders(); not read: val" in d.description
    val = data.TrainTestFolders("train", "val", data.ClassFolders())
    d = data.image_folder(tmp_path / "data", layout=val)
    assert labels_of(d) == {1: 1, 2: 2, 3: 0, 4: 2}
    with pytest.raises(ValueError, match="test_fraction=0.5.*its own test images"):
        data.image_folder(tmp_path / "data", test_fraction=0.5)
    numbers = {"train/dataset.json": {"labels": [["dog/1.png", 3], ["emu/1.png", 12]]}}
    numbers["test/dataset.json"] = {
        "labels": [["cat/1.png", 3], ["dog/1.png", 12], ["dog/2.png", 1]]
    }
    write(tmp_path / "data", {n: json.dumps(v) for n, v in numbers.items()})
    layout = data.TrainTestFolders(within=data.DatasetJSON())
    d = data.image_folder(tmp_path / "data", layout=layout)
    assert labels_of(d) == {1: 3, 2: 12, 5: 3, 6: 12, 7: 1} and d.num_classes == 13


@pytest.mark.parametrize(
    "files, first, second",
    [
        (images("00000/a.png", "00001/b.png"), "ClassFolders()", "Unlabelled()"),
        (images("1_0.png", "1_1.png", "2_0.png", "2_1.png"), "FileNames()", "Unlabelled()"),
        (
            images("cat/a.png", "dog/b.png")
            | {"dataset.json": '{"labels": [["cat/a.png", 1], ["dog/b.png", 1]]}'},
            "DatasetJSON(name='dataset.json')",
            "ClassFolders()",
        ),
        (
            images("a.png")
            | {"labels.csv": "a.png,1", "dataset.json": '{"labels": [["a.png", 1]]}'},
            "DatasetJSON(name='dataset.json')",
            "LabelFile(path='labels.csv', file=None, label=None)",
        ),
    ],
    ids=["shards", "numbers", "both", "lists"],
)
def test_two_readings_are_an_error_that_names_both(tmp_path, files, first, second):
    write(tmp_path / "data", files)
    with pytest.raises(ValueError, match="two ways") as error:
        data.image_folder(tmp_path / "data")
    for layout in (first, second):
        assert f"layout=eqd.data.{layout}" in str(error.value)
        data.image_folder(
            tmp_path / "data", layout=eval(layout, dict(vars(data))), test_fraction=0.0
        )


BAD_LISTS = {
    "no JSON": ("dataset.json", "{", "dataset.json is not JSON"),
    "deep JSON": ("dataset.json", "[" * 100_000, "dataset.json is not JSON"),
    "another JSON": ("dataset.json", '{"a": 1}', "not laid out as"),
    "vectors": ("dataset.json", '{"labels": [["a.png", [0, 1]]]}', "not laid out as"),
    "missing": ("dataset.json", '{"labels": [["b.png", 1]]}', "a.png has no label in dataset.json"),
    "negative": ("dataset.json", '{"labels": [["a.png", -1]]}', "labels from -1 to -1"),
    "huge": ("dataset.json", '{"labels": [["a.png", 99999999]]}', "to 99999999, expected"),
    "columns": ("labels.csv", "x,y\na.png,1\n", "columns x, y: say which"),
    "cells": ("labels.csv", "file,label\na.png\n", "row 2, has 1 cells, expected 2: file, label"),
    "twice": ("labels.csv", "a.png,1\na.png,2\n", "two labels for a.png: 1 and 2"),
    "no object": ("labels.jsonl", "3\n", "line 1, is not an object"),
    "not a label": ("labels.jsonl", '{"file": "a.png", "label": null}', "the label 'None'"),
    "not UTF-8": ("labels.csv", b"a.png,\xff", "not UTF-8"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_bad_lists_are_named(tmp_path, name):
    file, content, message = BAD_LISTS[name]
    write(tmp_path / "data", images("a.png") | {file: content})
    with pytest.raises(ValueError, match=message):
        data.image_folder(tmp_path / "data")


def test_a_layout_that_is_not_there_is_refused(tmp_path):
    write(tmp_path / "data", images("a.png", "b/c.png"))
    for layout, message in (
        (data.ClassFolders(), "a.png lies in no sub-folder"),
        (data.FileNames(), "a.png has no class before a '_'"),
        (data.TrainTestFolders(), "no images in .*train"),
        (data.LabelFile("l.csv"), "there is no .*l.csv"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            data.image_folder(tmp_path / "data", layout=layout)


def test_archives(tmp_path):
    files = {f"pets/{name}": content for name, content in OPENAI.items()}
    files |= {"__MACOSX/._cat_00.png": b"x", "pets/.hidden.png": b"x", "pets/empty/": b""}
    path = tmp_path / "pets.zip"
    pack(path, files)
    d = data.image_folder(path, test_fraction=0.0)
    assert labels_of(d) == {0: 0, 10: 0, 20: 1, 30: 1}
    batches = data.loader(d.train, 4, seed=0, epochs=2, num_threads=3)
    assert [sorted(y.tolist()) for _, y in batches] == [[0, 0, 1, 1]] * 2
    batches.close()
    # A flipped bit in the pixels of the first image: zip's own checksum notices.
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 1
    path.write_bytes(content)
    with pytest.raises(data.DamagedFileError, match=r"pets.zip/pets/cat_00.png"):
        data.image_folder(path, image_size=4, channels=1, test_fraction=0.0).train[0]
    path.write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match=r"cannot read the archive .*pets.zip"):
        data.image_folder(path)


def test_bombs_in_archives_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("eqdiff.data._files._MOST_BYTES", 2**20)
    bomb = bytes(2**20 + 1)
    pack(tmp_path / "a.zip", {"a.png": bomb, "b.png": png(0)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(data.DamagedFileError, match=r"a.png.*unpacks to 1048577 bytes"):
        data.image_folder(tmp_path / "a.zip")
    pack(tmp_path / "b.zip", {"a.png": png(0), "dataset.json": bomb}, compression=8)
    with pytest.raises(ValueError, match=r"cannot read .*dataset.json \(it unpacks"):
        data.image_folder(tmp_path / "b.zip")


def test_only_regular_files_are_opened(tmp_path):
    write(tmp_path, images("a.png"))
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(data.DamagedFileError, match=r"b.png \(it is not a regular file but a pipe"):
        data.image_folder(tmp_path)
    os.rename(tmp_path / "b.png", tmp_path / "c.zip")
    with pytest.raises(ValueError, match=r"c.zip \(it is not a regular file"):
        data.image_folder(tmp_path / "c.zip")


def test_sizes_are_bounded(tmp_path):
    write(tmp_path, {"a.png": png(7, (300, 200))})
    with pytest.raises(data.DamagedFileError, match=r"200x300.*max_pixels=59999; .*=60000"):
        data.image_folder(tmp_path, max_pixels=59_999)
    d = data.image_folder(tmp_path, max_pixels=60_000, image_size=8)
    assert np.all(d.train[0][0] == 7)
    # A header that promises 81 megapixels is refused before anything is decoded.
    wide = bytearray(png(7))
    header = wide.index(b"IHDR")
    wide[header + 4 : header + 12] = (9_000).to_bytes(4, "big") * 2
    wide[header + 17 : header + 21] = zlib.crc32(wide[header : header + 17]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(wide)
    with pytest.raises(data.DamagedFileError, match=r"a.png.*81 megapixels.*max_pixels=81000000"):
        data.image_folder(tmp_path)


def test_long_images_take_no_memory(tmp_path):
    write(tmp_path, {"a.png": png(9, (60_000, 1)), "b.png": png(9, (1, 60_000))})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    d = data.image_folder(tmp_path, image_size=256, test_fraction=0.0)
    assert np.all(d.train.take(np.arange(2))[0] == 9)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000  # In KiB: 11 GiB were asked for when all of it was scaled.


@pytest.mark.parametrize(
    "size, target", (((50, 2000), (64, 64)), ((3, 700), (5, 4)), ((900, 31), 60))
)
def test_cropping_before_scaling_gives_the_same_pixels(monkeypatch, size, target):
    from eqdiff.data import _decode

    high, wide = (target, target) if isinstance(target, int) else target
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    truth = np.asarray(_decode.resize(image, high, wide)).astype(int)
    monkeypatch.setattr(_decode, "_LARGE", 0)
    cropped = np.asarray(_decode.resize(image, high, wide)).astype(int)
    assert cropped.shape == truth.shape and np.abs(cropped - truth).max() <= 1
    assert (cropped != truth).mean() < 0.01
