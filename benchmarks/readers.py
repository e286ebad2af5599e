"""Images a second of each reader: read, decoded, cropped and scaled, in one process.

    python benchmarks/readers.py --images 2000 --size 64

The images are crops of scikit-learn's two photographs, written to a temporary folder in each of the
forms that `legodiff train --data` takes; the system has them in memory. Best of three passes.
"""

import argparse
import io
import json
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from legodiff.data import open_data


def pictures(count: int, size: int, seed: int = 0) -> list[Image.Image]:
    """Crops of two photographs, scaled to size x size."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    crops = []
    for number in range(count):
        photo = photos[number % 2]
        side = int(rng.integers(size, 256))
        left, top = (int(rng.integers(0, edge - side)) for edge in photo.size)
        crop = photo.crop((left, top, left + side, top + side))
        crops.append(crop.resize((size, size), Image.Resampling.BICUBIC))
    return crops


def encoded(image: Image.Image, kind: str) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return buffer.getvalue()


def write(folder: Path, crops: list[Image.Image]) -> dict[str, str]:
    """Every form of the images: name -> path."""
    png = [encoded(crop, "PNG") for crop in crops]
    for name in ("png", "jpg"):
        (folder / name).mkdir()
    for number, (data, crop) in enumerate(zip(png, crops, strict=True)):
        (folder / "png" / f"{number:06}.png").write_bytes(data)
        (folder / "jpg" / f"{number:06}.jpg").write_bytes(encoded(crop, "JPEG"))
    with zipfile.ZipFile(folder / "edm.zip", "w") as archive:
        for number, data in enumerate(png):
            archive.writestr(f"{number:06}.png", data)
        archive.writestr("dataset.json", json.dumps({"labels": None}))
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for number, data in enumerate(png):
            member = tarfile.TarInfo(f"{number:06}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    paths = {"folder, PNG": "png", "folder, JPEG": "jpg", "zip": "edm.zip", "tar": "shard.tar"}
    paths |= {"parquet": "rows.parquet"} if _parquet(folder / "rows.parquet", png) else {}
    return {name: str(folder / path) for name, path in paths.items()}


def _parquet(path: Path, png: list[bytes]) -> bool:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return False
    rows = [{"bytes": data, "path": None} for data in png]
    parquet.write_table(pyarrow.table({"image": rows}), path)
    return True


def measure(path: str, size: int) -> float:
    """Images a second, the best of three passes in a shuffled order."""
    data = open_data(path, size)
    order = np.random.default_rng(0).permutation(len(data))
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        for index in order:
            data.read(int(index))
        best = max(best, len(data) / (time.perf_counter() - began))
    return best


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    crops = pictures(arguments.images, arguments.size)
    with tempfile.TemporaryDirectory() as folder:
        print("| reader | images/s |\n|---|---|")
        for name, path in write(Path(folder), crops).items():
            print(f"| {name} | {measure(path, arguments.size):,.0f} |", flush=True)


if __name__ == "__main__":
    main()
