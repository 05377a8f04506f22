"""Where files live: a folder of this machine, or a bucket, gs://... or s3://...

A bucket has no folders, appends nothing and renames by copying; but an object is there whole or not at all.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

LIBRARIES = {"gs": ("gcs", ("gcsfs", "google.cloud.storage")), "s3": ("s3", ("s3fs",))}  # scheme: extra, its modules

# With TensorFlow installed etils would take its file system, which knows no s3:// and no endpoints.
os.environ.setdefault("EPATH_USE_TF", "false")


def cache_folder() -> Path:
    """Returns the folder of what this machine keeps for all runs: `VQGAN_JAX_CACHE`, by default ~/.cache/vqgan_jax."""
    return Path(os.environ.get("VQGAN_JAX_CACHE") or Path.home() / ".cache" / "vqgan_jax")


def in_bucket(path: epath.PathLike) -> bool:
    """Whether a path is of a bucket."""
    return os.fspath(path).startswith(tuple(f"{scheme}://" for scheme in LIBRARIES))


def place(path: epath.PathLike) -> epath.Path:
    """A path as it is named by people: absolute if it is of this machine, ready for use if it is of a bucket.

    Raises:
      ValueError: a URL of another form than gs://BUCKET/PATH or s3://BUCKET/PATH, or the library for it is missing.
    """
    text = os.fspath(path)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", text)
    if scheme is None:
        return epath.Path(epath.Path(text).expanduser().absolute())
    if scheme[1] not in LIBRARIES or not re.match(r"[a-z0-9]+://[^/]+(/|$)", text):
        raise ValueError(
            f"a path must be a folder, gs://BUCKET/PATH or s3://BUCKET/PATH; got {text!r}. Correct it; of other stores "
            "take the s3:// form with $AWS_ENDPOINT_URL, or mount the bucket."
        )
    ready(scheme[1])
    return epath.Path(text)


@functools.cache
def ready(scheme: str) -> None:
    """Looks for the libraries of a scheme, and lets them keep no listings: others write there, too.

    Raises:
      ValueError: one is missing.
    """
    extra, modules = LIBRARIES[scheme]
    for module in modules:
        if not there(module):
            raise ValueError(
                f"{scheme}:// needs the package {module}, which is not installed; `pip install 'vqgan-jax[{extra}]'`."
            )
    from fsspec import config

    config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)


def there(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def check_writable(path: epath.Path) -> None:
    """Writes and deletes an object where a bucket's files are to be; of a folder, nothing.

    Raises:
      OSError: there is no such bucket, or no permission to write to it.
    """
    if not in_bucket(path):
        return
    bucket, probe = epath.Path("/".join(os.fspath(path).split("/")[:3])), path / ".writable"
    try:
        if not bucket.exists():  # or else a library may make it
            raise FileNotFoundError(f"there is no bucket {bucket}, or it may not be listed")
        probe.write_text("")
        probe.unlink()
    except Exception as error:  # of storage clients, which have no common class, and some no text
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise OSError(
            f"{path} must be in a bucket that can be listed, written to and deleted from; {reason}. Correct the name, "
            "or see to the credentials; docs/pods.md says which are used."
        ) from error


def make_folder(path: epath.Path) -> None:
    """Makes a folder where there are folders; a bucket needs none."""
    if not in_bucket(path):
        path.mkdir(parents=True, exist_ok=True)


def write_whole(path: epath.Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    if in_bucket(path):
        path.write_bytes(data)
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    temporary.write_bytes(data)
    temporary.replace(path)


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a small file whole or not at all."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def move_folder(path: epath.Path, target: epath.Path) -> None:
    """Gives a folder another name; in a bucket its objects are copied there, and deleted when all are."""
    if not in_bucket(path):
        path.rename(target)
        return
    import fsspec

    files, root = fsspec.url_to_fs(os.fspath(path))
    for file in files.find(root):
        files.copy(file, f"{target}/{file.removeprefix(root).lstrip('/')}")
    files.rm(root, recursive=True)


@contextlib.contextmanager
def local_folder(path: epath.PathLike) -> Iterator[Path]:
    """A folder of this machine to write into: the path itself, or one that is copied into its bucket at the end.

    What is written before an error is copied, too.
    """
    target = place(path)
    if not in_bucket(target):
        target.mkdir(parents=True, exist_ok=True)
        yield Path(target)
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(folder)
        finally:
            for file in sorted(Path(folder).rglob("*")):
                if file.is_file():
                    (target / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())


def local_copy(path: epath.Path, version: str) -> epath.Path:
    """A file that can be read from a disk: itself, or a copy of the object, made once for each version of it."""
    if not in_bucket(path):
        return path
    digest = hashlib.sha256(f"{path} {version}".encode()).hexdigest()[:32]
    copy = epath.Path(cache_folder()) / "buckets" / digest / path.name
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_whole(copy, path.read_bytes())
    return copy
