"""Decoding once: the cache is found again, built safely and never trusted blindly."""

import errno
import gc
import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_helpers import decoding, front_end, store
from fer_helpers.any_layout import load_faces
from fer_helpers.fer_csv import read_table
from fer_helpers.layouts import DataError, list_class_folders
from fer_helpers.pictures import open_image


def write_faces(root, count=40, size=(12, 12), mode="L", suffix="png"):
    for i in range(count):
        path = root / ("happy" if i % 2 else "sad") / f"{i:03}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(path)
    return root


def open_folder(root, cache, **keywords):
    def relist():
        return list_class_folders(root, "train", "FER_TRAIN_DIR")

    keywords = {"grey": True, "progress": False} | keywords
    return store.open_store(relist(), relist, cache_dir=cache, **keywords)


def entries(cache):
    return sorted(path for path in Path(cache).iterdir())


def test_the_second_start_decodes_nothing(tmp_path, monkeypatch):
    first = open_folder(write_faces(tmp_path / "faces"), tmp_path / "cache")
    for module in (store, decoding):
        monkeypatch.setattr(module, "read_picture", None)
    second = open_folder(tmp_path / "faces", tmp_path / "cache")
    assert isinstance(second.pixels, np.memmap)
    np.testing.assert_array_equal(first.pixels, second.pixels)
    np.testing.assert_array_equal(first.hashes, second.hashes)
    assert first.content_hash == second.content_hash
    assert set(second.native) == {"L 12x12"}
    assert len(entries(tmp_path / "cache")) == 1


@pytest.mark.parametrize("seen", [False, True])
def test_a_bar_where_somebody_watches_and_not_in_a_log(tmp_path, monkeypatch, capsys, seen):
    monkeypatch.setattr(front_end, "front_end", lambda: seen)  # an open notebook is no terminal
    open_folder(write_faces(tmp_path / "faces"), tmp_path / "cache", progress=None)
    assert ("Decoding train" in capsys.readouterr().err) is seen
    (tmp_path / "fer.csv").write_text(f"emotion,pixels,Usage\n3,{'0 ' * 2303}0,Training\n")
    read_table(tmp_path / "fer.csv", tmp_path / "cache")
    assert ("Reading fer.csv" in capsys.readouterr().err) is seen


def test_the_cache_holds_the_very_pixels(tmp_path):
    found = open_folder(write_faces(tmp_path / "faces"), tmp_path / "cache")
    with Image.open(tmp_path / "faces/happy/001.png") as image:
        np.testing.assert_array_equal(found.pixels[0, :, :, 0], np.asarray(image))
    with pytest.raises(ValueError):
        found.pixels[0] = 0


@pytest.mark.parametrize("change", ["touch", "bytes", "name", "more", "less", "setting"])
def test_a_changed_folder_is_noticed(tmp_path, change):
    root = write_faces(tmp_path / "faces")
    before = open_folder(root, tmp_path / "cache")
    target, settings = root / "sad/000.png", {}
    if change == "touch":
        os.utime(target, ns=(1, 1))
    elif change == "bytes":
        shutil.copy(root / "happy/001.png", target)
    elif change == "name":
        target.rename(root / "sad/zzz.png")
    elif change == "more":
        shutil.copy(target, root / "sad/new.png")
    elif change == "less":
        target.unlink()
    else:
        settings = {"size": 6}
    after = open_folder(root, tmp_path / "cache", **settings)
    assert len(entries(tmp_path / "cache")) == 2
    same_content = change in ("touch", "setting")
    assert (before.content_hash == after.content_hash) == same_content


def test_the_content_hash_is_the_same_on_every_machine(tmp_path):
    first = open_folder(write_faces(tmp_path / "a"), tmp_path / "cache")
    time.sleep(0.01)
    shutil.copytree(tmp_path / "a", tmp_path / "somewhere else")
    second = open_folder(tmp_path / "somewhere else", tmp_path / "other", grey=False)
    assert first.content_hash == second.content_hash
    # By hand, from names and bytes alone.
    slow = hashlib.sha256()
    for path in sorted((tmp_path / "a").rglob("*.png")):
        name = f"train/{path.relative_to(tmp_path / 'a').as_posix()}"
        slow.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    assert first.content_hash == slow.hexdigest()


def test_other_sizes_are_brought_to_the_most_common_one(tmp_path):
    root = write_faces(tmp_path / "faces", 40)
    for i in range(5):
        Image.new("L", (30, 20), i * 50).save(root / "sad" / f"other{i}.png")
    found = open_folder(root, tmp_path / "cache")
    assert found.pixels.shape == (45, 12, 12, 1)
    assert any("2 picture sizes" in note and "12x12" in note for note in found.notes)
    assert (found.native == "L 30x20").sum() == 5


def test_a_wrong_guess_of_the_common_size_is_corrected(tmp_path):
    root = write_faces(tmp_path / "faces", 400)
    listing = list_class_folders(root, "train", "X")
    for path in listing.sample():  # the sample sees this size only
        Image.new("L", (30, 30), 3).save(path)
    assert open_folder(root, tmp_path / "cache").pixels.shape[1:3] == (12, 12)


def test_reducing_is_anti_aliased_and_never_enlarges(tmp_path):
    root = write_faces(tmp_path / "faces", 4)
    stripes = np.tile(np.array([0, 255], np.uint8), (12, 6))
    Image.fromarray(stripes).save(root / "sad/000.png")
    small = open_folder(root, tmp_path / "cache", size=3)
    assert small.pixels.shape[1:3] == (3, 3)
    assert abs(small.pixels[2].astype(int) - 127).max() < 40  # nearest would give 0 or 255
    assert any("reduced to 3x3" in note for note in small.notes)
    assert open_folder(root, tmp_path / "cache", size=48).pixels.shape[1:3] == (12, 12)


def test_pixels_are_hashed_before_they_are_reduced(tmp_path):
    root = write_faces(tmp_path / "faces", 4, size=(12, 10))
    whole, small = (open_folder(root, tmp_path / "cache", size=size) for size in (None, 6))
    assert small.pixels.shape[1:3] == (6, 6)
    np.testing.assert_array_equal(whole.hashes, small.hashes)
    by_hand = hashlib.blake2b(np.array([10, 12], "<i4").tobytes(), digest_size=16)
    with Image.open(root / "happy/001.png") as image:
        by_hand.update(np.asarray(image).tobytes())
    assert whole.hashes[0] == by_hand.hexdigest().encode()


def test_odd_files_are_read_as_prediction_reads_them(tmp_path):
    root = write_faces(tmp_path / "faces", 2)
    Image.fromarray((np.arange(144, dtype=np.uint16) * 400).reshape(12, 12)).save(
        root / "sad/16.png"
    )
    clear = Image.new("LA", (12, 12), (90, 128))
    clear.save(root / "sad/alpha.png")
    turned = Image.fromarray(np.arange(144, dtype=np.uint8).reshape(12, 12))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(root / "sad/turned.png", exif=exif)
    found = open_folder(root, tmp_path / "cache")
    names = list_class_folders(root, "train", "X").names
    for name in ("16", "alpha", "turned"):
        expected = open_image(root / f"sad/{name}.png").convert("L")
        pixels = found.pixels[names.index(f"train/sad/{name}.png"), :, :, 0]
        np.testing.assert_array_equal(pixels, np.asarray(expected))


def test_a_drawing_is_not_handed_to_ghostscript(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.jpg", "EPS")
    assert "cannot identify" in decoding.read_picture(str(tmp_path / "a.jpg"), True, None).problem


def test_a_decompression_bomb_is_a_bad_file(tmp_path, monkeypatch):
    root = write_faces(tmp_path / "faces", 6)
    Image.new("L", (40, 40)).save(root / "sad/bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    found = open_folder(root, tmp_path / "cache")
    assert len(found.bad) == 1 and "exceeds limit" in next(iter(found.bad.values()))


def test_a_failure_of_the_machine_is_no_answer_about_a_file(tmp_path, monkeypatch):
    root = write_faces(tmp_path / "faces", 6)
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "_upright", lambda image: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(DataError, match=r"memory ran out while 6 pictures of .* close other"):
            open_folder(root, tmp_path / "cache")
    assert not entries(tmp_path / "cache")
    assert not open_folder(root, tmp_path / "cache").bad


# ---------------------------------------------------------------- bad caches


@pytest.mark.parametrize("harm", ["cut", "empty", "lost", "foreign"])
def test_a_damaged_entry_is_built_again(tmp_path, harm):
    root = write_faces(tmp_path / "faces")
    good = open_folder(root, tmp_path / "cache")
    expected = good.pixels.copy()
    entry = entries(tmp_path / "cache")[0]
    del good
    if harm == "cut":
        with open(entry / "pixels.npy", "r+b") as file:
            file.truncate(1000)
    elif harm == "empty":
        (entry / "table.npz").write_bytes(b"")
    elif harm == "lost":
        (entry / "about.json").unlink()
    else:
        np.save(entry / "pixels.npy", np.zeros((3, 12, 12, 1), np.uint8))
    again = open_folder(root, tmp_path / "cache")
    np.testing.assert_array_equal(again.pixels, expected)
    assert any("damaged" in note for note in again.notes)
    assert not any("damaged" in note for note in open_folder(root, tmp_path / "cache").notes)


def test_a_file_that_may_be_read_again_is_read_again(tmp_path, monkeypatch):
    root = write_faces(tmp_path / "faces")

    def refuse(path, *rest, **options):
        if str(path).endswith("001.png"):
            raise PermissionError(13, "Permission denied", path)
        return open(path, *rest, **options)

    with monkeypatch.context() as patch:
        for module in (store, decoding):
            patch.setattr(module, "open", refuse, raising=False)
        for _ in range(2):
            found = open_folder(root, tmp_path / "cache")
            assert found.bad == {0: "cannot be opened (Permission denied)"} and not found.notes
    found = open_folder(root, tmp_path / "cache")  # the file itself did not change
    assert not found.bad and any("outdated" in note for note in found.notes)
    assert not open_folder(root, tmp_path / "cache").notes


def test_an_entry_that_is_held_for_a_moment_is_kept(tmp_path, monkeypatch):
    real, refused = os.replace, []

    def scanned(source, target):
        if not refused:
            refused.append(source)
            raise PermissionError(13, "held by another program")
        return real(source, target)

    monkeypatch.setattr(store.os, "replace", scanned)
    found = open_folder(write_faces(tmp_path / "faces"), tmp_path / "cache")
    assert refused and isinstance(found.pixels, np.memmap) and not found.notes


def test_a_cache_from_another_version_is_not_used(tmp_path, monkeypatch):
    root = write_faces(tmp_path / "faces")
    open_folder(root, tmp_path / "cache")
    monkeypatch.setattr(store, "FORMAT", store.FORMAT + 1)
    open_folder(root, tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 2
    monkeypatch.setattr(store.PIL, "__version__", "1.1.7")
    open_folder(root, tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 3


def test_a_disk_that_is_too_small_is_not_filled(tmp_path, monkeypatch):
    root = write_faces(tmp_path / "faces")
    usage = type("Usage", (), {"free": 1000})  # the pictures take 40 x 12 x 12 bytes
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage)
    found = open_folder(root, tmp_path / "cache")
    assert not isinstance(found.pixels, np.memmap) and len(found.pixels) == 40
    assert any("No space left" in note and "memory" in note for note in found.notes)
    assert not entries(tmp_path / "cache")


def test_a_full_disk_falls_back_to_memory(tmp_path, monkeypatch):
    root = write_faces(tmp_path / "faces")
    expected = open_folder(root, tmp_path / "good")
    real_open = open

    def full(path, mode="r", *args, **keywords):
        if str(path).endswith("pixels.npy") and "w" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_open(path, mode, *args, **keywords)

    monkeypatch.setattr(store, "open", full, raising=False)
    found = open_folder(root, tmp_path / "full")
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert found.content_hash == expected.content_hash
    assert any("No space left" in note and "memory" in note for note in found.notes)
    assert not entries(tmp_path / "full")  # no half-written entry stays


def test_a_cache_folder_that_is_a_file_falls_back_to_memory(tmp_path):
    root = write_faces(tmp_path / "faces")
    (tmp_path / "cache").write_text("")
    found = open_folder(root, tmp_path / "cache")
    assert not isinstance(found.pixels, np.memmap) and len(found.pixels) == 40
    assert any("cannot be written" in note for note in found.notes)


def test_entries_that_nobody_opened_for_long_are_cleared_away(tmp_path):
    cache, root = tmp_path / "cache", write_faces(tmp_path / "faces")
    open_folder(root, cache)
    (used,) = entries(cache)
    unused, half = cache / ("0" * 32), cache / ("1" * 32 + ".x7")
    foreign, named = cache / ("2" * 32), cache / "my-pictures"
    for folder in (unused, half, foreign, named):
        folder.mkdir()
        (folder / ("notes.txt" if folder == foreign else "pixels.npy")).touch()
    for folder in entries(cache):
        os.utime(folder, (1e9, 1e9))
    os.utime(half / "pixels.npy", (time.time() - 2 * 3600,) * 2)
    writing = cache / ("3" * 32 + ".y8")  # by another run, begun long ago
    writing.mkdir()
    (writing / "pixels.npy").touch()
    os.utime(writing / "pixels.npy", (time.time() - 1800,) * 2)
    os.utime(writing, (1e9, 1e9))
    open_folder(root, cache)  # opened, nothing written: nothing cleared
    assert entries(cache) == sorted([used, unused, half, writing, foreign, named])
    open_folder(root, cache, size=6)
    assert {used, foreign, named, writing} < set(entries(cache))
    assert not unused.exists() and not half.exists()


@pytest.mark.parametrize("days, kept", [(59, True), (61, False)])
def test_an_entry_is_kept_for_60_days(tmp_path, days, kept):
    unopened = tmp_path / "cache" / ("0" * 32)
    unopened.mkdir(parents=True)
    (unopened / "pixels.npy").touch()
    os.utime(unopened, (time.time() - days * 86_400,) * 2)
    open_folder(write_faces(tmp_path / "faces", 4), tmp_path / "cache")
    assert unopened.exists() is kept


@pytest.mark.slow
def test_two_processes_build_the_same_entry(tmp_path):
    root = write_faces(tmp_path / "faces", 200)
    code = (
        "import sys; sys.path.insert(0, sys.argv[3])\n"
        "from tests.test_store import open_folder\n"
        "from pathlib import Path\n"
        "found = open_folder(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print(found.content_hash, int(found.pixels.sum()))\n"
    )
    here = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", code, str(root), str(tmp_path / "cache"), here]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate(timeout=120)[0] for process in running}
    assert all(process.returncode == 0 for process in running) and len(said) == 1
    assert len(entries(tmp_path / "cache")) == 1


def test_another_builder_being_faster_is_no_problem(tmp_path, monkeypatch):
    root = write_faces(tmp_path / "faces")
    real_write = store._Builder.write

    def slow_write(self, folder):
        real_write(self, folder)
        monkeypatch.setattr(store._Builder, "write", real_write)
        open_folder(root, tmp_path / "cache")

    monkeypatch.setattr(store._Builder, "write", slow_write)
    found = open_folder(root, tmp_path / "cache")
    assert isinstance(found.pixels, np.memmap) and len(entries(tmp_path / "cache")) == 1


def test_a_folder_that_changes_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    root = write_faces(tmp_path / "faces")
    real_read = decoding.read_picture

    def meddle(path, *rest):
        if path.endswith("020.png"):
            Image.new("L", (12, 12)).save(root / "sad/late.png")
        return real_read(path, *rest)

    monkeypatch.setattr(decoding, "read_picture", meddle)
    with pytest.raises(DataError, match="changed while it was being read"):
        open_folder(root, tmp_path / "cache")
    assert not entries(tmp_path / "cache")


def test_a_file_that_vanishes_is_an_error(tmp_path, monkeypatch):
    root = write_faces(tmp_path / "faces")
    real_read = decoding.read_picture

    def meddle(path, *rest):
        Path(path).unlink(missing_ok=True) if path.endswith("020.png") else None
        return real_read(path, *rest)

    monkeypatch.setattr(decoding, "read_picture", meddle)
    with pytest.raises(DataError, match="changed while"):
        open_folder(root, tmp_path / "cache")


def test_a_disk_that_vanishes_is_an_error(tmp_path, monkeypatch):
    write_faces(tmp_path / "faces/train")
    real_read = decoding.read_picture

    def meddle(path, *rest):
        if path.endswith("020.png"):
            (tmp_path / "faces").rename(tmp_path / "gone")
        return real_read(path, *rest)

    monkeypatch.setattr(decoding, "read_picture", meddle)
    with pytest.raises(DataError, match="changed while"):
        load_faces(tmp_path / "faces", cache_dir=tmp_path / "cache", progress=False)


@pytest.mark.slow
def test_memory_stays_flat_with_ten_times_the_pictures(tmp_path):
    """Ten times the files may cost their names, not their pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    peaks = []
    for count in (400, 4000):
        for i in range(count):
            path = tmp_path / str(count) / ("sad" if i % 2 else "happy") / f"{i}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            source = tmp_path / f"{count}-{i // 900}.bmp"  # NTFS links a file 1,023 times
            if not source.exists():
                Image.fromarray(noise).save(source)
            os.link(source, path)
        tracemalloc.start()
        found = open_folder(tmp_path / str(count), tmp_path / "cache")
        peaks.append(tracemalloc.get_traced_memory()[1] / 1e6)
        tracemalloc.stop()
        assert found.pixels.nbytes == count * 40_000  # 16 MB, then 160 MB
    assert peaks[1] < peaks[0] + 30


def _open_in_child(root, cache, queue):
    decoding.FILES_WORTH_A_POOL = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        queue.put(open_folder(root, cache).content_hash)


@pytest.mark.slow
@pytest.mark.parametrize("daemon", [False, True])
def test_a_spawned_process_can_read_and_ends(tmp_path, daemon):
    root = write_faces(tmp_path / "faces")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(
        target=_open_in_child, args=(root, tmp_path / "cache", queue), daemon=daemon
    )
    process.start()
    assert queue.get(timeout=60) == open_folder(root, tmp_path / "cache").content_hash
    process.join(30)  # a pool of its own would keep it for a minute
    assert process.exitcode == 0


def test_reading_needs_no_torch(tmp_path):
    root = write_faces(tmp_path / "faces", 4)
    code = (
        "import sys\nfrom pathlib import Path\nimport fer_helpers.data\n"
        "from fer_helpers import store, layouts\n"
        f"r = lambda: layouts.list_class_folders(Path({str(root)!r}), 'train', 'X')\n"
        f"store.open_store(r(), r, cache_dir={str(tmp_path / 'cache')!r}, progress=False)\n"
        "assert 'torch' not in sys.modules"
    )
    here = str(Path(__file__).resolve().parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": here})


def test_many_files_are_decoded_by_processes_that_need_no_guard(tmp_path):
    root = write_faces(tmp_path / "faces", 12)
    (root / "happy" / "003.png").write_bytes(b"no picture")
    script = tmp_path / "script.py"  # without `if __name__ == "__main__"`, as notebooks are
    script.write_text(
        "from pathlib import Path\nfrom fer_helpers import decoding, store, layouts\n"
        "decoding.FILES_WORTH_A_POOL, store.CHUNK_BYTES = 1, 300\n"
        "print('begun')\n"
        f"r = lambda: layouts.list_class_folders(Path({str(root)!r}), 'train', 'X')\n"
        f"s = store.open_store(r(), r, grey=True, cache_dir={str(tmp_path / 'cache')!r})\n"
        "print(s.content_hash, int(s.pixels.sum()), *sorted(s.bad))\n",
        encoding="utf-8",
    )
    here = str(Path(__file__).resolve().parents[1])
    done = subprocess.run([sys.executable, script], check=True, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": here})  # fmt: skip
    alone = open_folder(root, tmp_path / "other")
    said = f"{alone.content_hash} {int(alone.pixels.sum())} {next(iter(alone.bad))}"
    assert done.stdout.split("\n") == ["begun", said, ""]


def by_two_processes(monkeypatch):
    """Decode like many files on two processors, however few there are."""
    monkeypatch.setattr(decoding, "FILES_WORTH_A_POOL", 1)
    monkeypatch.setattr(decoding.joblib, "cpu_count", lambda: 2)  # with one, pytest would decode


def test_a_decoding_process_that_is_killed_is_one_sentence(tmp_path, monkeypatch):
    root = write_faces(tmp_path / "faces", 60)
    by_two_processes(monkeypatch)
    monkeypatch.setattr(decoding, "_read_all", _killed)
    with pytest.raises(DataError, match=r"train: a process .* was ended from outside"):
        open_folder(root, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.undo()
    assert len(open_folder(root, tmp_path / "cache").pixels) == 60


def _killed(*_):
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def test_a_disk_that_fills_up_stops_the_processes_without_a_remark(tmp_path, monkeypatch):
    root = write_faces(tmp_path / "faces", 60)
    by_two_processes(monkeypatch)
    monkeypatch.setattr(store, "CHUNK_BYTES", 300)
    read = store._Builder.write

    def fill_up(builder, folder):
        def put(start, chunk):
            raise OSError(errno.ENOSPC, "No space left on device")

        decode = builder._decode
        builder._decode = lambda target, _: decode(target, put)
        try:
            read(builder, folder)
        finally:
            builder._decode = decode

    monkeypatch.setattr(store._Builder, "write", fill_up)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = open_folder(root, tmp_path / "cache")
        gc.collect()
    assert said == [] and len(found.pixels) == 60 and "No space left" in found.notes[0]
