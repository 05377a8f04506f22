"""Encodes and decodes images: writes reconstructions, their indices and a sheet of both."""

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from jaxtyping import Float32, UInt8
from rich.console import Console
from rich.markup import escape
from rich.progress import track

import vqgan_jax as vq
from vqgan_jax import cli, data, pictures
from vqgan_jax.data import folder, images, photos, storage, views

Image = UInt8[np.ndarray, "_H _W 3"] | Float32[np.ndarray, "_H _W _c"]
EXAMPLES = """examples:
  vqgan reconstruct --workdir=runs/photos --input=cat.jpg --output=out
  vqgan reconstruct --workdir=runs/photos --input=pictures/ --output=out --size=256 --count=16
  vqgan reconstruct --workdir=runs/photos --input=a.png b.png photos --output=out

`--input=photos` are the embedded photographs. Each image NAME gives NAME.png, the reconstruction, and NAME.npy, the
indices (int32, h w); sheet.png shows every original above its reconstruction. Of a tokenizer with data.value_range
the reconstruction is NAME.tif instead: float32, of all channels, in the values of the files.
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
    parser.add_argument("--count", type=int, help="take the first so many images; default: all")
    flags = parser.parse_args(argv)
    if flags.count is not None and flags.count < 1:
        raise cli.UsageError(f"`--count` must be at least 1; got {flags.count}.")

    console = Console()
    tokenizer = vq.load_tokenizer(flags.workdir, step=flags.step)
    value_range = tokenizer.config.data.value_range
    files, sheets, skipped = inputs(flags.input, value_range), [], []
    files = dict(itertools.islice(files.items(), flags.count))
    with storage.local_folder(flags.output) as output:
        for name, read in track(files.items(), description="reconstructing", console=console):
            try:
                image = read()
            except data.ImageError as error:
                skipped.append(str(error))
                continue
            image = fit(image, flags.size, tokenizer.downsample_factor)
            indices = vq.encode(tokenizer, image[None])
            recon = vq.decode(tokenizer, indices)
            recon = np.asarray(recon if value_range else vq.to_uint8(recon))[0]
            save(output / name, recon, value_range)
            np.save(output / f"{name}.npy", np.asarray(indices)[0])
            sheets.append(pictures.grid(pictures.shown(np.stack([image, recon])), columns=1))
        if sheets:
            (output / "sheet.png").write_bytes(pictures.png(pictures.wall(sheets)))
    say = functools.partial(console.print, soft_wrap=True)  # a path that is broken in two cannot be copied
    say(f"{len(sheets)} of {len(files)} images in {flags.output}, step {tokenizer.step} of {flags.workdir}")
    for message in skipped:
        say(f"[yellow]skipped[/] {escape(message)}", highlight=False)
    return 0 if sheets else 1


def save(path: Path, recon: Image, value_range: tuple[float, ...]) -> None:
    """Writes a reconstruction: as a PNG, or values from [-1, 1] in their range as a TIFF."""
    if not value_range:
        PIL.Image.fromarray(recon).save(f"{path}.png")
        return
    from tifffile import imwrite  # half a second to import, which only those who use it should pay

    low, high = value_range
    values = (low + (recon.clip(-1.0, 1.0) + 1.0) / 2.0 * (high - low)).astype(np.float32)
    imwrite(f"{path}.tif", values, photometric="minisblack", planarconfig="contig" if recon.shape[-1] > 1 else None)


def inputs(paths: Sequence[str], value_range: tuple[float, ...] = ()) -> dict[str, Callable[[], Image]]:
    """Returns name and reader of each image; names of files are made unique by their folders."""
    readers: dict[str, Callable[[], Image]] = {}
    decode = functools.partial(images.decode_values, value_range=value_range) if value_range else images.decode
    extensions = folder.VALUE_EXTENSIONS if value_range else folder.EXTENSIONS
    for text in paths:
        path = Path(text)
        if text == "photos" and not path.exists() and not value_range:
            readers |= {name: functools.partial(photos.photograph, name) for name in photos.NAMES}
        elif path.is_dir():
            for file in folder.image_files(path, extensions):
                name = "-".join(Path(file).with_suffix("").parts)
                readers[name] = functools.partial(decode, path / file)
        elif path.is_file():
            readers[path.stem] = functools.partial(decode, path)
        else:
            raise cli.UsageError(f"`--input` must be files, folders or `photos`; {text!r} is not there.")
    if not readers:
        raise cli.UsageError(f"`--input` must hold images; {', '.join(paths)} has none.")
    return readers


def fit(image: Image, size: int | None, factor: int) -> Image:
    """Returns the image, its short side resized to `size`, then cut right and below to multiples of the factor."""
    if size is not None:
        height, width = image.shape[:2]
        scale = size / min(height, width)
        shape = (max(round(height * scale), factor), max(round(width * scale), factor))
        image = views.apply_geometry(image, views.Geometry((0, 0, width, height), shape, flip=False))
    height, width = (side // factor * factor for side in image.shape[:2])
    if 0 in (height, width):
        raise ValueError(f"an image must be at least {factor} pixels on each side; got {image.shape[:2]}. Give --size.")
    return image[:height, :width]
