"""Images a second and core that our input pipeline makes of JPEG files, and the cores that feed a chip.

    python benchmarks/loader_cpu.py [--images_per_second 200] [--count 400] [--rounds 3]

Crops of 256 pixels out of images whose short side becomes 256, flipped by chance, by one worker thread. The files are
crops of the embedded photographs, 500 x 375 like ImageNet's, written at the start; with $VQGAN_JAX_DATA the photos of
`tfds/imagenet_sample` below it are used instead.

A core's rate is of the CPU time of the whole process, so that other processes' turns do not count; those that share a
core's caches do, hence an idle machine is still better.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from turns import print_load

from vqgan_jax.data import photos
from vqgan_jax.data.loader import training_batches
from vqgan_jax.data.sources import Source, open_source
from vqgan_jax.data.views import Augmentation, Geometry, apply_geometry

SIZE, BATCH = 256, 20
HEIGHT, WIDTH, QUALITY = 375, 500, 95


def write_photos(folder: Path, count: int) -> None:
    """JPEGs of random parts of the photographs, of at least as many pixels where there are so many."""
    rng = np.random.default_rng(0)
    whole = [photos.photograph(name) for name in photos.NAMES]
    for i in range(count):
        image = whole[i % len(whole)]
        most = min(image.shape[0] / HEIGHT, image.shape[1] / WIDTH)
        scale = rng.uniform(min(1.0, most), most)
        upper, left = rng.uniform(0, image.shape[0] - scale * HEIGHT), rng.uniform(0, image.shape[1] - scale * WIDTH)
        box = (left, upper, left + scale * WIDTH, upper + scale * HEIGHT)
        part = apply_geometry(image, Geometry(box, (HEIGHT, WIDTH), flip=False))
        Image.fromarray(part).save(folder / f"{i:05d}.jpg", quality=QUALITY)


def open_photos(folder: Path, count: int) -> Source:
    """What is measured."""
    if data := os.environ.get("VQGAN_JAX_DATA"):
        return open_source("tfds:imagenet_sample", split="train", data_dir=os.path.join(data, "tfds"), image_size=SIZE)
    write_photos(folder, count)
    size = sum(file.stat().st_size for file in folder.iterdir()) / count
    Console().print(f"{count} JPEGs of {WIDTH} x {HEIGHT}, {size / 1024:.0f} KiB each")
    return open_source(f"folder:{folder}", split="all", image_size=SIZE)


def rates(run: Callable[[], object], images: int, rounds: int) -> tuple[list[float], list[float]]:
    """Images a second of the clock, and of CPU time, in each round after one that fills caches and buffers."""
    wall, cpu = [], []
    run()
    for _ in range(rounds):
        starts = time.perf_counter(), time.process_time()
        run()
        wall.append(images / (time.perf_counter() - starts[0]))
        cpu.append(images / (time.process_time() - starts[1]))
    return wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images_per_second", type=float, default=200.0, help="that one chip takes")
    parser.add_argument("--count", type=int, default=400, help="files to write, and images a round")
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    print_load()
    with tempfile.TemporaryDirectory() as folder:
        source = open_photos(Path(folder), flags.count)
        pixels = statistics.mean(source[i]["image"][..., 0].size for i in range(0, len(source), 7))
        crops = Augmentation(image_size=SIZE, resize=(SIZE, SIZE), crop="random", flip=True, small="upscale")
        batches = training_batches(source, augmentation=crops, batch_size=BATCH, seed=0, num_threads=1)
        steps = max(1, flags.count // BATCH)
        runs = {
            "decoded": lambda: [source[i % len(source)]["image"] for i in range(steps * BATCH)],
            "whole pipeline": lambda: [next(batches) for _ in range(steps)],
        }
        table = Table(
            title=f"{source.name.split(':')[0]}: median \\[min, max] of {flags.rounds} rounds of {steps * BATCH} images"
        )
        for heading in ("what", "images/s", "images/s and core", f"cores for {flags.images_per_second:g} images/s"):
            table.add_column(heading, justify="left" if heading == "what" else "right")
        for name, run in runs.items():
            wall, cpu = rates(run, steps * BATCH, flags.rounds)
            spread = f"{statistics.median(cpu):.0f} [{min(cpu):.0f}, {max(cpu):.0f}]"
            cores = f"{flags.images_per_second / statistics.median(cpu):.1f}"
            table.add_row(name, f"{statistics.median(wall):.0f}", spread, cores)
    Console().print(f"mean of {pixels / 1e3:.0f} thousand pixels an image")
    Console().print(table)


if __name__ == "__main__":
    main()
