"""Encodes and decodes images: writes reconstructions, their indices and a sheet of both."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from jaxtyping import UInt8
from rich.console import Console
from rich.markup import escape
from rich.progress import track

import vqgan_jax as vq
from vqgan_jax import cli, data, pictures
from vqgan_jax.data import folder, images, photos, storage

Image = UInt8[np.ndarray, "H W 3"]
EXAMPLES = """examples:
  vqgan reconstruct --workdir=runs/photos --input=cat.jpg --output=out
  vqgan reconstruct --workdir=runs/photos --input=pictures/ --output=out --size=256
  vqgan reconstruct --workdir=runs/photos --input=a.png b.png photos --output=out

`--input=photos` are the embedded photographs. Each image NAME gives NAME.png, the reconstruction, and NAME.npy, the
indices (int32, h w); sheet.png shows every original above its reconstruction.
"""


def main(argv: Sequence[str]) -> int:
    """`vqgan reconstruct`."""
    parser = cli.parser("reconstruct", __doc__, EXAMPLES)
    parser.add_argument("--workdir", required=True, help="of the run whose tokenizer to use, or hf://OWNER/NAME")
    cli.add_step_flag(parser)
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="FILE_OR_FOLDER", help="images, folders, or `photos`"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--size", type=int, help="resize the short side to so many pixels; default: leave")
    flags = parser.parse_args(argv)

    console = Console()
    tokenizer = vq.load_tokenizer(flags.workdir, step=flags.step)
    sheets, skipped = [], []
    with storage.local_folder(flags.output) as output:
        for name, read in track(inputs(flags.input).items(), description="reconstructing", console=console):
            try:
                image = read()
            except data.ImageError as error:
                skipped.append(str(error))
                continue
            image = fit(image, flags.size, tokenizer.downsample_factor)
            indices = vq.encode(tokenizer, image[None])
            recon = np.asarray(vq.to_uint8(vq.decode(tokenizer, indices)))[0]
            PIL.Image.fromarray(recon).save(output / f"{name}.png")
            np.save(output / f"{name}.npy", np.asarray(indices)[0])
            sheets.append(pictures.grid(np.stack([image, recon]), columns=1))
        if sheets:
            (output / "sheet.png").write_bytes(pictures.png(pictures.wall(sheets)))
    say = functools.partial(console.print, soft_wrap=True)  # a path that is broken in two cannot be copied
    say(f"{len(sheets)} images in {flags.output}, step {tokenizer.step} of {flags.workdir}")
    for message in skipped:
        say(f"[yellow]skipped[/] {escape(message)}", highlight=False)
    return 0 if sheets else 1


def inputs(paths: Sequence[str]) -> dict[str, Callable[[], Image]]:
    """Returns name and reader of each image; names of files are made unique by their folders."""
    readers = {}
    for text in paths:
        path = Path(text)
        if text == "photos" and not path.exists():
            readers |= {name: functools.partial(photos.photograph, name) for name in photos.NAMES}
        elif path.is_dir():
            for file in folder.image_files(path):
                name = "-".join(Path(file).with_suffix("").parts)
                readers[name] = functools.partial(images.decode, path / file)
        elif path.is_file():
            readers[path.stem] = functools.partial(images.decode, path)
        else:
            raise cli.UsageError(f"`--input` must be files, folders or `photos`; {text!r} is not there.")
    if not readers:
        raise cli.UsageError(f"`--input` must hold images; {', '.join(paths)} has none.")
    return readers


def fit(image: Image, size: int | None, factor: int) -> UInt8[np.ndarray, "_h _w 3"]:
    """Returns the image, its short side resized to `size`, then cut right and below to multiples of the factor."""
    if size is not None:
        height, width = image.shape[:2]
        scale = size / min(height, width)
        shape = (max(round(width * scale), factor), max(round(height * scale), factor))
        image = np.asarray(PIL.Image.fromarray(image).resize(shape, PIL.Image.Resampling.BICUBIC))
    height, width = (side // factor * factor for side in image.shape[:2])
    if 0 in (height, width):
        raise ValueError(f"an image must be at least {factor} pixels on each side; got {image.shape[:2]}. Give --size.")
    return image[:height, :width]
