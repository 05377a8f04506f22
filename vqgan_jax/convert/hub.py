"""Models by name: fetched once from where they were published, checked and kept; and how ours are published.

A name is `hf://OWNER/NAME[@REVISION][/FILE_OR_FOLDER]`, of a repository of the Hugging Face hub, or a row of
`published.toml`. The library `huggingface_hub` fetches, resumes and keeps what is on the hub, as its own variables say:
HF_TOKEN, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT. The rest, and the runs' folders that are made of both, are in
`storage.cache_folder`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import re
import shutil
import tempfile
import tomllib
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from rich import progress

from vqgan_jax import convert
from vqgan_jax.convert import write
from vqgan_jax.convert.read import open_checkpoint
from vqgan_jax.convert.tensors import ConvertError
from vqgan_jax.data import storage

SCHEME = "hf://"
# Of a folder of a repository, the first that is there; else the only file with one of the endings.
WEIGHTS = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "flax_model.msgpack",
)
ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".msgpack")


@dataclasses.dataclass(frozen=True)
class Published:
    """A checkpoint that somebody published.

    Attributes:
      what: the model, in a line.
      url: of the file, https://... or hf://...; "" where only a browser gets it.
      page: which a browser opens.
      size: of the file in bytes; 0 where it was not published.
      sha256: of the file, in hexadecimal digits; "" where it was not published.
      rfid: of ImageNet's 50,000 validation images at 256 pixels; 0 where it was not published.
      source: of `rfid`.
    """

    what: str
    url: str = ""
    page: str = ""
    size: int = 0
    sha256: str = ""
    rfid: float = 0.0
    source: str = ""


@functools.cache
def published() -> dict[str, Published]:
    """Returns other people's checkpoints by name."""
    text = Path(__file__).with_name("published.toml").read_text()
    return {name: Published(**row) for name, row in tomllib.loads(text).items()}


def fetch(name: str) -> Path:
    """Returns the file or folder of weights that a name means; it is fetched where it is not there yet.

    Args:
      name: `hf://...`, a row of `published`, or a path of this machine, which is returned as it is.

    Raises:
      ConvertError: a name of another form, a checkpoint that only a browser gets, or a file with another hash or size
        than its publisher declares; such a file is deleted.
      OSError: there is no such repository, revision or file, it may not be read, or it is not there and cannot be
        fetched.
    """
    if name.startswith(SCHEME):
        file, weights = _from_hub(name)
        declared = file.resolve().name  # the library names large files by their SHA-256, which the hub declares
        _check(name, file, declared if re.fullmatch("[0-9a-f]{64}", declared) else "")
        return weights
    row = published().get(name)
    if row is None or Path(name).exists():
        return Path(name)
    if not row.url:
        raise ConvertError(f"{name} is published at {row.page}, which a browser opens; take the file from there.")
    file = fetch(row.url) if row.url.startswith(SCHEME) else _from_web(name, row)
    _check(name, file, row.sha256)
    return file


def run_folder(name: str) -> Path:
    """Returns a run's folder of the model that `hf://...` names; it is made once for each version of the model.

    Raises:
      ConvertError: see `fetch`; or the weights are of no format that is known, or need options of `vqgan convert`.
      OSError: see `fetch`.
    """
    _, weights = _from_hub(name)
    words = "-".join(re.findall(r"[\w.]+", name.removeprefix(SCHEME)))
    folder = storage.cache_folder() / "runs" / f"{words}-{hashlib.sha256(str(weights).encode()).hexdigest()[:12]}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            write.write_run(convert.plan(open_checkpoint(fetch(name))), Path(work) / "run")
            try:
                (Path(work) / "run").rename(folder)
            except OSError:
                if not folder.exists():  # another process has made it meanwhile
                    raise
    return folder


def check_repository(name: str) -> None:
    """Raises ValueError if a name is not that of a whole repository, or the library is missing."""
    if not name.startswith(SCHEME) or _parsed(name).path_in_repo:
        raise ValueError(f"a model is published as hf://OWNER/NAME[@BRANCH]; got {name!r}. Name it so.")


def publish(folder: Path, name: str, *, message: str, private: bool = False) -> str:
    """Publishes the files of a folder in a repository of the hub, all at once, and returns the commit's address.

    Args:
      folder: all files in it, also of its folders.
      name: `hf://OWNER/NAME[@BRANCH]`; the repository is made where there is none.
      message: of the commit.
      private: whether a new repository is.

    Raises:
      ValueError: a name of another form, or the library is missing.
      OSError: no permission, or the hub cannot be reached; then nothing is published.
    """
    check_repository(name)
    hub, uri = _library(), _parsed(name)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    add = [hub.CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    with _plain_errors(name, "nothing was published; the same command begins again"):
        api = hub.HfApi()
        api.create_repo(uri.id, private=private or None, exist_ok=True)
        # Not `upload_folder`: that makes several commits of what takes long, and leaves some when it is interrupted.
        return api.create_commit(uri.id, add, commit_message=message, revision=uri.revision).commit_url


def _library() -> Any:
    """Returns the library; ValueError if it is not installed."""
    if not storage.there("huggingface_hub"):
        raise ValueError(
            "hf:// needs the package huggingface_hub, which is not installed; `pip install 'vqgan-jax[hub]'`."
        )
    import huggingface_hub

    return huggingface_hub


def _parsed(name: str) -> Any:
    """Returns the parts of a name; ValueError if it is of another form or of no model."""
    uri = _library().parse_hf_uri(name)
    if uri.type != "model":
        raise ValueError(f"a name must be of a model, hf://OWNER/NAME[@REVISION][/FILE]; got {name!r}. Correct it.")
    return uri


def _from_hub(name: str) -> tuple[Path, Path]:
    """Returns the file that a name means, in the library's cache, and where to open it: there, or its folder.

    The folder it is where a `config.json` lies beside a file that the name does not name.
    """
    hub, uri = _library(), _parsed(name)
    beside = f"{uri.path_in_repo}/config.json".lstrip("/")
    with _plain_errors(name, "what came is kept; the same command goes on"):
        patterns = [beside, uri.path_in_repo or "README.md"]
        folder = Path(hub.snapshot_download(uri.id, revision=uri.revision, allow_patterns=patterns))
        files = [file.path for file in hub.get_cached_repo_tree(uri.id, revision=folder.name)]
        weights = _weights(name, uri.path_in_repo, files)
        file = Path(hub.hf_hub_download(uri.id, weights, revision=folder.name))
    return file, file.parent if weights != uri.path_in_repo and beside in files else file


def _weights(name: str, path: str, files: Sequence[str]) -> str:
    """Returns the file of a repository that holds the weights; ConvertError if that is not clear."""
    if path in files:
        return path
    inside = {PurePosixPath(file).name: file for file in files if PurePosixPath(file).parent == PurePosixPath(path)}
    for usual in WEIGHTS:
        if usual in inside:
            return inside[usual]
    some = [file for each, file in inside.items() if each.endswith(ENDINGS)]
    if len(some) != 1:
        others = ", ".join(file for file in files if file.endswith(ENDINGS)) or "none"
        raise ConvertError(
            f"{name} must mean one file of weights; the repository has {others[:300]}. Name one of them."
        )
    return some[0]


def _from_web(name: str, row: Published) -> Path:
    """Returns a file of `published`; it is there whole or not at all."""
    file = storage.cache_folder() / f"{name}.ckpt"
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as work:
        part = Path(work) / file.name
        try:
            with urllib.request.urlopen(row.url, timeout=60) as response, part.open("wb") as target:
                size = row.size or int(response.headers.get("Content-Length", 0))
                with progress.wrap_file(response, size, description=name) as source:
                    shutil.copyfileobj(source, target, 2**20)
        except OSError as error:
            raise OSError(f"{name} could not be fetched from {row.url}: {error}. Try again, or a browser.") from error
        if size and part.stat().st_size != size:
            raise ConvertError(f"{name} must have {size:,} bytes; {part.stat().st_size:,} came. Fetch it again.")
        part.replace(file)
    return file


def _check(name: str, file: Path, declared: str) -> None:
    """Deletes a file and raises ConvertError if it has another hash than was declared; "" declares nothing."""
    if not declared:
        return
    with file.open("rb") as stream:
        came = hashlib.file_digest(stream, "sha256").hexdigest()
    if came != declared:
        file.resolve().unlink()
        file.unlink(missing_ok=True)
        raise ConvertError(
            f"{name}: {file.name} must have SHA-256 {declared}; what came has {came}, and was deleted. Fetch it again, "
            "or do not trust it."
        )


@contextlib.contextmanager
def _plain_errors(name: str, then: str) -> Iterator[None]:
    """Turns what the libraries raise into an OSError of one line that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except ConvertError:
        raise
    except errors.GatedRepoError as error:
        raise OSError(f"{name} is gated: accept its conditions on its page, and `hf auth login`.") from error
    except errors.RepositoryNotFoundError as error:
        raise OSError(
            f"{name} must be a repository that you may use; the hub knows none, or it is private. Correct the name, or "
            "give a token by `hf auth login` or HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise OSError(f"{name} must name a branch, tag or commit that is there; the hub has no such one.") from error
    except Exception as error:  # of the library and of what it is built on, which have no common class
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = " ".join(f"{type(cause).__name__}: {cause}".split())
        raise OSError(f"{name} could not be reached: {text[:300]}; {then}.") from error
