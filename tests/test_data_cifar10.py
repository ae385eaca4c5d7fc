"""CIFAR-10's binary format, written by hand, and its download from a server on this machine."""

import contextlib
import hashlib
import http.server
import io
import socket
import tarfile
import threading
import time

import numpy as np
import pytest

from eqdiff import data


NAMES = [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]
FOLDER = "cifar-10-batches-bin"


def record(label, fill):
    """Pixel (channel, row, column) is fill + 100 channel + row + 2 column, modulo 256."""
    pixels = [
        (fill + 100 * channel + row + 2 * column) % 256
        for channel in range(3)
        for row in range(32)
        for column in range(32)
    ]
    return bytes([label, *pixels])


def files():
    """Three records in each training file, one in the test file."""
    content = {
        name: b"".join(record((3 * k + j) % 10, 3 * k + j) for j in range(3))
        for k, name in enumerate(NAMES[:5])
    }
    return content | {"test_batch.bin": record(9, 200)}


def write(folder, content):
    folder.mkdir(parents=True)
    for name, value in content.items():
        (folder / name).write_bytes(value)


def test_reads_records_in_order(tmp_path):
    write(tmp_path / FOLDER, files())
    for directory in (tmp_path, tmp_path / FOLDER, str(tmp_path)):
        d = data.cifar10(directory, download=False)
        assert (len(d.train), len(d.test), d.shape, d.levels) == (15, 1, (3, 32, 32), 256)
        assert d.train.labels.tolist() == [i % 10 for i in range(15)]
        image, label = d.train[4]
        channel, row, column = np.ogrid[:3, :32, :32]
        assert np.array_equal(image, (4 + 100 * channel + row + 2 * column) % 256)
        assert label == 4
        assert d.test[0][1] == 9
        assert d.class_names is not None and d.class_names[9] == "truck"
        assert data.find_cifar10(directory) == tmp_path / FOLDER


def test_default_directory_is_the_user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"test_batch.bin"):
        data.find_cifar10()
    write(tmp_path / "eqdiff" / FOLDER, files())
    assert data.find_cifar10() == tmp_path / "eqdiff" / FOLDER
    assert len(data.cifar10(download=False).train) == 15


@pytest.mark.parametrize("download", (False, True))
def test_missing_files_are_listed_and_never_overwritten(tmp_path, download):
    content = files()
    del content["data_batch_2.bin"], content["test_batch.bin"]
    write(tmp_path / FOLDER, content)
    with pytest.raises(FileNotFoundError, match=r"missing data_batch_2.bin, test_batch.bin"):
        data.cifar10(tmp_path, download=download)
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        data.fetch_cifar10(tmp_path, progress=False)
    assert sorted(p.name for p in (tmp_path / FOLDER).iterdir()) == sorted(content)


@pytest.mark.parametrize(
    "value, message",
    (
        (b"", "data_batch_3.bin has 0 bytes, expected a positive multiple of 3073"),
        (record(1, 0)[:-1], "data_batch_3.bin has 3072 bytes"),
        (record(1, 0) + b"x", "data_batch_3.bin has 3074 bytes"),
        (record(1, 0) + record(10, 0), r"data_batch_3.bin \(6146 bytes\) has label 10 in record 1"),
    ),
)
def test_damaged_files_are_named(tmp_path, value, message):
    write(tmp_path / FOLDER, files() | {"data_batch_3.bin": value})
    with pytest.raises(ValueError, match=message):
        data.cifar10(tmp_path, download=False)


def archive(content, extra=()):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, value in [(f"{FOLDER}/{n}", v) for n, v in content.items()] + list(extra):
            if isinstance(value, tarfile.TarInfo):
                tar.addfile(value)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(value)
            tar.addfile(info, io.BytesIO(value))
    return buffer.getvalue()


@contextlib.contextmanager
def serve(payload, *, length=None):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(length or len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/cifar.tar.gz"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def md5(payload):
    return hashlib.md5(payload).hexdigest()


@pytest.mark.parametrize("sub", ("", "deep/er", FOLDER))
def test_fetch_and_read(tmp_path, sub, capfd):
    payload = archive(files(), [(f"{FOLDER}/batches.meta.txt", b"airplane\n")])
    directory = tmp_path / sub
    with serve(payload) as url:
        folder = data.fetch_cifar10(directory, url=url, md5=md5(payload))
    assert folder == (directory if sub == FOLDER else directory / FOLDER)
    assert sorted(p.name for p in folder.iterdir()) == sorted([*NAMES, "batches.meta.txt"])
    # Nothing but the folder: no archive, no temporary folder.
    assert [p.name for p in folder.parent.iterdir()] == [FOLDER]
    assert len(data.cifar10(directory, download=False).train) == 15
    assert "CIFAR-10" in capfd.readouterr().err


def test_fetch_into_an_empty_folder(tmp_path):
    (tmp_path / FOLDER).mkdir()
    payload = archive(files())
    with serve(payload) as url:
        data.fetch_cifar10(tmp_path, url=url, md5=md5(payload), progress=False)
    assert len(data.cifar10(tmp_path, download=False).test) == 1


def bad_archives():
    whole = archive(files())
    some = {n: v for n, v in files().items() if n != "data_batch_4.bin"}
    link = tarfile.TarInfo(f"{FOLDER}/data_batch_4.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    return {
        "wrong MD5": (whole, "0" * 32, None, f"MD5 {md5(whole)}, expected {'0' * 32}"),
        "cut off": (whole[:-50], md5(whole), len(whole), "try again"),
        "not an archive": (b"<html>", md5(b"<html>"), None, "could not download"),
        "damaged archive": (whole[:900], md5(whole[:900]), None, "could not download|lacks"),
        "incomplete": (archive(some), md5(archive(some)), None, "lacks .*data_batch_4.bin"),
        "link": (*(lambda a: (a, md5(a)))(archive(some, [("", link)])), None, "lacks"),
    }


@pytest.mark.parametrize("case", bad_archives().keys())
@pytest.mark.parametrize("exists", (True, False))
def test_failed_downloads_leave_nothing(tmp_path, case, exists):
    payload, checksum, length, message = bad_archives()[case]
    directory = tmp_path if exists else tmp_path / "new" / "newer"
    with serve(payload, length=length) as url:
        with pytest.raises(data.DownloadError, match=message) as error:
            data.fetch_cifar10(directory, url=url, md5=checksum, progress=False)
    assert isinstance(error.value, ConnectionError) and url in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_refused_connection(tmp_path):
    with serve(b"") as url:
        pass  # The port is free again, and nobody listens.
    with pytest.raises(data.DownloadError, match=r"could not download CIFAR-10 from .*refused"):
        data.fetch_cifar10(tmp_path / "new", url=url, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_members_that_climb_out_are_not_written(tmp_path):
    evil = [("../evil", b"1"), (f"{FOLDER}/../../evil", b"2"), (f"{tmp_path}/evil", b"3")]
    payload = archive(files(), [*evil, (f"{FOLDER}/evil", b"4")])
    with serve(payload) as url:
        data.fetch_cifar10(tmp_path / "a" / "b", url=url, md5=md5(payload), progress=False)
    assert not [p for p in tmp_path.rglob("*") if p.name == "evil"]
    assert len(data.cifar10(tmp_path / "a" / "b", download=False).train) == 15


def test_cifar10_downloads_into_the_cache_alone(tmp_path, monkeypatch):
    asked = []

    def fetch():
        asked.append(True)
        write(tmp_path / "cache" / "eqdiff" / FOLDER, files())
        return tmp_path / "cache" / "eqdiff" / FOLDER

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("eqdiff.data._cifar10.fetch_cifar10", fetch)
    with pytest.raises(FileNotFoundError, match=r"fetch_cifar10\(directory\)"):
        data.cifar10(download=False)
    # A folder that was named for reading is never written into.
    with pytest.raises(FileNotFoundError, match=r"or none to download it into the user's cache"):
        data.cifar10(tmp_path)
    assert list(tmp_path.iterdir()) == [] and asked == []
    assert len(data.cifar10().train) == 15
    assert len(data.cifar10().train) == 15
    assert asked == [True]


@contextlib.contextmanager
def answer(*parts, pause=0.0):
    """A server that sends bytes as they are, part by part, and then nothing more."""
    stop = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def run():
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            for part in parts:
                connection.sendall(part)
                if stop.wait(pause):
                    return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/cifar.tar.gz"
    finally:
        stop.set()
        thread.join()
        listener.close()


OK = b"HTTP/1.1 200 OK\r\n"
HOSTILE = {
    "drip": ([OK + b"Content-Length: 999\r\n\r\n"] + [b"x"] * 999, 0.05, "not done after 0.4 s"),
    "drip in the headers": ([OK, *([b"X"] * 999)], 0.05, "not done after 0.4 s"),
    "announced size": ([OK + b"Content-Length: 268435457\r\n\r\n"], 0, "announces 268435457 bytes"),
    "no number": ([OK + b"Content-Length: 1e9\r\n\r\n"], 0, "Content-Length '1e9', expected a num"),
    "bad redirect": (
        [b"HTTP/1.1 302 Found\r\nLocation: http://[x\r\n\r\n"],
        0,
        "could not download",
    ),
    "other scheme": (
        [b"HTTP/1.1 302 Found\r\nLocation: file:///etc/hostname\r\n\r\n"],
        0,
        "could not download",
    ),
    "no HTTP": ([b"\x00\xff\r\n\r\n"], 0, "could not download"),
    "endless headers": ([OK + b"A: b\r\n" * 200], 0, "more than 100 headers"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_servers_end_in_a_sentence(tmp_path, case):
    parts, pause, message = HOSTILE[case]
    began = time.monotonic()
    with answer(*parts, pause=pause) as url:
        with pytest.raises(data.DownloadError, match=message):
            data.fetch_cifar10(tmp_path / "new", url=url, total_timeout=0.4, progress=False)
    assert time.monotonic() - began < 3 and list(tmp_path.iterdir()) == []


def test_sizes_and_rates_are_bounded(tmp_path, monkeypatch):
    def refused(message, **options):
        with pytest.raises(data.DownloadError, match=message):
            data.fetch_cifar10(tmp_path, progress=False, **options)
        assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr("eqdiff._download._WINDOW", 0.1)
    with answer(OK + b"\r\n", *([b"x" * 10] * 99), pause=0.02) as url:
        refused("least rate of 5000 bytes/s", url=url, min_rate=5000.0)
    monkeypatch.setattr("eqdiff.data._cifar10._MOST_BYTES", 100_000)
    # Without a length, so that only counting tells.
    with answer(OK + b"\r\n", bytes(100_001)) as url:
        refused("sent more than the 100000 bytes", url=url)
    # 2 MB that unpack to as much as one likes: not read beyond the limit.
    bomb = archive(files(), [("bomb", bytes(2**22))])
    assert len(bomb) < 100_000
    with serve(bomb) as url:
        refused("unpacks to more than the 100000 bytes", url=url, md5=md5(bomb))
    monkeypatch.setattr("eqdiff.data._cifar10._MOST_BYTES", 2**28)
    large = archive(files() | {NAMES[2]: bytes(10_000 * 3073 + 1)})
    with serve(large) as url:
        refused("data_batch_3.bin has 30730001 bytes, more than", url=url, md5=md5(large))
