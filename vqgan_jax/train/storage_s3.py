"""Teaches Orbax to write arrays to s3://, which it knows as a place of small files only: it takes gs:// or a disk."""

import functools
import os
from typing import Any

from vqgan_jax import compat

S3, GS = "s3://", "gs://"


@functools.cache
def teach_orbax() -> None:
    """Once a process: TensorStore's description of a place in s3:// is that of gs:// with another driver."""
    orbax = compat.orbax_places()
    build = orbax.build_kvstore_tspec

    @functools.wraps(build)
    def build_kvstore_tspec(directory: str, name: str | None = None, **options: Any) -> dict[str, Any]:
        if not directory.startswith(S3):
            return build(directory, name, **options)
        return in_s3(build(GS + directory.removeprefix(S3), name, **options))

    orbax.build_kvstore_tspec = build_kvstore_tspec


def in_s3(spec: Any) -> Any:
    """A description with each driver of gs:// in it replaced."""
    if not isinstance(spec, dict):
        return spec
    if spec.get("driver") in ("gcs", "gcs_grpc"):
        return {"driver": "s3", "bucket": spec["bucket"], "path": spec["path"], **connection()}
    return {key: in_s3(value) for key, value in spec.items()}


def connection() -> dict[str, Any]:
    """What TensorStore does not read from AWS's own variables by itself."""
    found: dict[str, Any] = {}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        found |= {"endpoint": endpoint, "aws_region": region}
    if "AWS_ACCESS_KEY_ID" in os.environ:
        found["aws_credentials"] = {"type": "environment"}
    return found
