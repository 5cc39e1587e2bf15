"""What the first and the second start cost, and that memory stays flat with ten times the images.

    python benchmarks/decoding.py                      # drawn faces: 36,000 and 360,000 files
    python benchmarks/decoding.py --counts 1000 10000  # a quick look
    python benchmarks/decoding.py --fer data/fer2013   # the real folders, instead

Each line is a process of its own that reads FER2013's two folders: decoded into a new cache on the
first start, mapped from it on the second. The time is that of reading, without any import. Drawn
sets are hard links to some hundred small JPEGs, so they take no disk; their cache takes 2.3 kB per
image and goes away at the end. Memory is the process's peak over what the bare import of torch
needs. What grows in it is the table of names and hashes, 0.4 kB per image; pixels stay on the disk.
On Windows there is no peak to ask for.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

LINKS = 900  # at most, of one picture: NTFS allows 1,023
HERE = Path(__file__).resolve().parents[1]

CHILD = """
import json, os, sys, time
import torch

def peak():
    try:
        import resource
    except ImportError:
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6

train, test, cache = sys.argv[1:]
bare = peak()
from fer_helpers.data import load_fer2013
begun = time.perf_counter()
splits = load_fer2013(train, test, cache_dir=cache, max_bad_share=0, progress=False)
faces = sum(map(len, (splits.train, splits.selection, splits.tests[0])))
print(json.dumps([faces, time.perf_counter() - begun, peak() - bare, bare]))
"""


def write_set(folder: Path, count: int) -> Path:
    """FER2013's two folders with `count` images in all, an eighth of them each half of the test."""
    from fer_helpers.demo_faces import EXPRESSIONS, draw_face
    from fer_helpers.layouts import FER_FOLDERS

    kinds = sorted(set(EXPRESSIONS) - {"Contempt"})
    drawn = folder / "drawn"
    drawn.mkdir(parents=True)
    sources = max(100, -(-count // LINKS))
    for k in range(sources):
        face = draw_face(kinds[k % len(kinds)], seed=k, size=48, color=False)
        face.save(drawn / f"{k}.jpg", quality=90)
    parts = ["PublicTest", "PrivateTest", *["Training"] * 6]
    for k in range(count):
        part, source = parts[k % 8], k % sources
        place = folder / ("train" if part == "Training" else "test") / FER_FOLDERS[source % 7]
        place.mkdir(parents=True, exist_ok=True)
        os.link(drawn / f"{source}.jpg", place / f"{part}_{k}.jpg")
    return folder


def start(folder: Path, cache: Path) -> list[float]:
    """One start in a process of its own: images, seconds, MB, MB of bare torch."""
    command = [sys.executable, "-c", CHILD, folder / "train", folder / "test", cache]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[36_000, 360_000])
    parser.add_argument("--fer", type=Path, help="folder that holds FER2013's train and test")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores; peak memory over the bare import of torch")
    print(f"{'images':>10}{'start':>8}{'seconds':>10}{'peak MB':>9}{'torch MB':>10}")
    for count in [0] if options.fer else options.counts:
        with tempfile.TemporaryDirectory() as place:
            folder = options.fer or write_set(Path(place, "fer2013"), count)
            for name in ("first", "second"):
                images, seconds, peak, bare = start(folder, Path(place, "cache"))
                row = f"{images:>10,.0f}{name:>8}{seconds:>10.1f}"
                print(f"{row}{peak:>9.0f}{bare:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
