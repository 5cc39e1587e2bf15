"""Downloading with the real Kaggle clients against a server on this machine."""

import http.server
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from fer_helpers import download
from fer_helpers.layouts import FER_CLASSES, DataError

SMALL = download.Source("msambare/fer2013", ("train", "test"), FER_CLASSES, {"train": 7, "test": 7})


def small_archive(extra=()):
    """Seven classes with one file each, in the layout of the real archive."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for split in ("train", "test"):
            for name in FER_CLASSES:
                file.writestr(f"{split}/{name.lower()}/{split}_1.jpg", os.urandom(250_000))
        for name, content in extra:
            file.writestr(name, content)
    return data.getvalue()


class Kaggle(http.server.BaseHTTPRequestHandler):
    """As much of Kaggle as the two clients ask for."""

    archive, cuts, asked = b"", 0, []

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        method = self.path.rsplit("/", 1)[-1]
        type(self).asked.append((method, self.headers.get("Range"), body))
        if not type(self).archive:
            self.reply(403, json.dumps({"code": 403, "message": "no access"}).encode())
        elif method == "DownloadDataset":  # the bytes lie in a storage, as on Kaggle
            self.send_response(302)
            self.send_header("Location", "http://localhost/storage/file.zip")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif method == "file.zip":
            self.send_archive()
        else:
            about = {"currentVersionNumber": 1, "info": {"licenses": []}}
            self.reply(200, json.dumps(about).encode())

    do_GET = do_POST = do_HEAD = answer

    def reply(self, status, content):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def send_archive(self):
        content, start = type(self).archive, 0
        if span := self.headers.get("Range"):
            start = int(span.removeprefix("bytes=").split("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        part = content[start:]
        self.send_header("Content-Type", "application/zip")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"one"')
        self.send_header("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
        self.end_headers()
        if type(self).cuts:
            type(self).cuts -= 1
            part = part[: len(part) // 2]
            self.close_connection = True
        self.wfile.write(part)

    def log_message(self, *_):
        pass


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """A server that the clients take for Kaggle, and an environment that leads to it."""
    handler = type("Handler", (Kaggle,), {"archive": small_archive(), "cuts": 0, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in list(os.environ):
        if name.upper().startswith("KAGGLE") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "hub"))
    yield handler
    server.shutdown()
    server.server_close()


RUN = """
import sys
from fer_helpers import download
if "no-cli" in sys.argv:
    download.shutil.which = lambda *_, **__: None
small = {"train": 7, "test": 7}
source = download.SOURCES["fer2013"]
download.SOURCES["fer2013"] = download.Source(source.handle, source.splits, source.classes, small)
sys.exit(download.main([sys.argv[1], "--only", "fer2013"]))
"""


def run(folder, *words):
    """In a process of its own: the clients read their environment when they are imported."""
    here = str(Path(__file__).resolve().parents[1])
    return subprocess.run(
        [sys.executable, "-c", RUN, str(folder), *words],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": here},
    )  # fmt: skip


def files_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def credentials(monkeypatch):
    monkeypatch.setenv("KAGGLE_USERNAME", "tester")
    monkeypatch.setenv("KAGGLE_KEY", "fake")


@pytest.mark.slow
def test_the_cli_downloads_checks_and_unpacks(kaggle, credentials, tmp_path):
    pytest.importorskip("kagglehub", reason="the [kaggle] extra is not installed")
    done = run(tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert "is complete: train 7, test 7" in done.stdout
    assert len(files_in(tmp_path / "data/fer2013")) == 14
    assert [method for method, *_ in kaggle.asked].count("DownloadDataset") == 1
    assert not files_in(tmp_path / "data/.downloads") or all(
        not name.endswith(".zip") for name in files_in(tmp_path / "data/.downloads")
    )
    again = run(tmp_path / "data")  # complete already: nothing is asked for
    assert again.returncode == 0 and "there already: train 7, test 7" in again.stdout
    assert [method for method, *_ in kaggle.asked].count("DownloadDataset") == 1


@pytest.mark.slow
def test_a_download_that_breaks_off_goes_on(kaggle, credentials, tmp_path):
    pytest.importorskip("kagglehub", reason="the [kaggle] extra is not installed")
    kaggle.cuts = 1
    done = run(tmp_path / "data")
    assert done.returncode == 0, done.stderr
    spans = [span for _, span, _ in kaggle.asked if span]
    assert spans and int(spans[-1].removeprefix("bytes=").rstrip("-")) > 1_000_000
    assert len(files_in(tmp_path / "data/fer2013")) == 14


@pytest.mark.slow
def test_without_the_cli_kagglehub_does_it(kaggle, tmp_path):
    pytest.importorskip("kagglehub", reason="the [kaggle] extra is not installed")
    done = run(tmp_path / "data", "no-cli")
    assert done.returncode == 0, done.stderr
    assert "is complete: train 7, test 7" in done.stdout
    assert len(files_in(tmp_path / "data/fer2013")) == 14
    assert (tmp_path / "hub").is_dir()


@pytest.mark.slow
def test_without_access_it_says_what_to_do(kaggle, tmp_path):
    pytest.importorskip("kagglehub", reason="the [kaggle] extra is not installed")
    kaggle.archive = b""
    done = run(tmp_path / "data")
    assert done.returncode == 1
    assert "cannot be downloaded" in done.stderr and "Traceback" not in done.stderr
    assert "kaggle.com/datasets/msambare/fer2013" in done.stderr
    assert files_in(tmp_path / "data") == []


@pytest.mark.slow
def test_wrong_counts_leave_nothing_behind(kaggle, credentials, tmp_path):
    pytest.importorskip("kagglehub", reason="the [kaggle] extra is not installed")
    kaggle.archive = small_archive([("train/sad/more.jpg", b"x")])
    done = run(tmp_path / "data")
    assert done.returncode == 1 and "8 files instead of 7" in done.stderr
    assert "fer2013.zip and run the download again, or take it by hand" in done.stderr
    assert not (tmp_path / "data/fer2013").exists()


# ---------------------------------------------------------------- archives


@pytest.mark.parametrize(
    "name", ["../outside.txt", "/etc/outside", "a/../../outside", "C:/outside", "..\\outside"]
)
def test_members_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    (tmp_path / "bad.zip").write_bytes(small_archive([(name, b"x")]))
    with pytest.raises(DataError, match=r"bad\.zip holds .*outside.*, which leads out"):
        download.unpack(tmp_path / "bad.zip", tmp_path / "data")
    assert files_in(tmp_path) == ["bad.zip"]


def test_a_damaged_archive_is_refused(tmp_path):
    good = io.BytesIO()
    with zipfile.ZipFile(good, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.txt", bytes(range(256)) * 400)
    bad = bytearray(good.getvalue())
    bad[40:80] = b"\xff" * 40
    (tmp_path / "bad.zip").write_bytes(bad)
    with pytest.raises(DataError, match="delete it and download it again"):
        download.unpack(tmp_path / "bad.zip", tmp_path / "data")


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path, capsys):
    (tmp_path / "data").write_text("a file")
    assert download.main([str(tmp_path / "data"), "--only", "fer2013"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_what_a_killed_download_left_is_removed(tmp_path, monkeypatch):
    (tmp_path / "a.zip").write_bytes(small_archive())
    monkeypatch.setitem(download.SOURCES, "fer2013", SMALL)
    monkeypatch.setattr(download, "_with_cli", lambda *_: (tmp_path / "a.zip", ""))
    kill = "import os; from fer_helpers import download\n"
    kill += "download._with_cli = lambda *_: (download.Path('a.zip'), '')\n"
    kill += "download.verify = lambda *_: os._exit(9)\n"  # unpacked, and not in its place
    kill += "download.download('fer2013', 'data')"
    here = str(Path(__file__).resolve().parents[1])
    for _ in range(2):
        command, settings = [sys.executable, "-c", kill], {**os.environ, "PYTHONPATH": here}
        assert subprocess.run(command, cwd=tmp_path, env=settings).returncode == 9
        assert len(files_in(tmp_path / "data")) == 14
    download.download("fer2013", tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["fer2013"]


def test_a_cut_archive_is_refused(tmp_path):
    (tmp_path / "cut.zip").write_bytes(small_archive()[:5000])
    with pytest.raises(DataError, match=r"cut\.zip cannot be unpacked"):
        download.unpack(tmp_path / "cut.zip", tmp_path / "data")


def test_an_archive_with_a_password_is_refused(tmp_path):
    locked = bytearray(small_archive())
    with zipfile.ZipFile(io.BytesIO(locked)) as file:
        start = file.start_dir  # of the list of members; each says whether it is encrypted
    locked[start + 8] |= 1
    locked[6] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(DataError, match="password required"):
        download.unpack(tmp_path / "locked.zip", tmp_path / "data")


def test_an_archive_larger_than_the_disk_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.zip").write_bytes(small_archive())
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="make room"):
        download.unpack(tmp_path / "a.zip", tmp_path / "data")


def test_counts_and_classes_are_verified(tmp_path):
    (tmp_path / "a.zip").write_bytes(small_archive())
    download.unpack(tmp_path / "a.zip", tmp_path / "data")
    assert download.verify(SMALL, tmp_path / "data") == "train 7, test 7"
    (tmp_path / "data/test/sad/test_1.jpg").unlink()
    with pytest.raises(DataError, match="sad is empty"):
        download.verify(SMALL, tmp_path / "data")
    with pytest.raises(DataError, match="lacks the folder train"):
        download.verify(SMALL, tmp_path / "data" / "test")
