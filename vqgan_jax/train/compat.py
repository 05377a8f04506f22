"""What depends on JAX beyond its documented promises: names that may move, and libtpu's messages without a TPU.

No other file takes a name from `jax.core`, `jax.extend`, `jax.interpreters`, `jaxlib` or behind an underscore.
"""

import importlib
import os
from pathlib import Path
from typing import Any

from jax.experimental import serialize_executable, topologies  # to compile for absent TPUs and to keep the program
from jax.extend.core import ClosedJaxpr, Jaxpr  # to find the functions within an operation of a traced function
from jax.interpreters.partial_eval import dce_jaxpr  # model FLOPs do not count what no output needs

__all__ = ["ClosedJaxpr", "Jaxpr", "dce_jaxpr", "orbax_places", "quiet_libtpu", "serialize_executable", "topologies"]


def quiet_libtpu() -> None:
    """Keeps libtpu from writing five lines of errors where it is installed and no TPU is.

    JAX tries every platform that is installed, a TPU first. Without one libtpu complains that it knows no host; JAX
    then takes a GPU or the CPU. This function describes one host to libtpu, by environment variables of libtpu's own,
    and chooses no platform: what JAX tries, and `JAX_PLATFORMS`, stay as they are. It does nothing where JAX found a
    chip on the PCI bus (where it finds none, importing it sets TPU_SKIP_MDS_QUERY), where there is a TPU's device file,
    or where `JAX_FORCE_TPU_INIT` announces a TPU that JAX cannot see.
    """
    device_files = (*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*"))
    if os.environ.get("TPU_SKIP_MDS_QUERY") != "1" or "JAX_FORCE_TPU_INIT" in os.environ or device_files:
        return
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_HOST_BOUNDS", "1,1,1")


def orbax_places() -> Any:
    """Orbax's module whose `build_kvstore_tspec` describes to TensorStore where arrays are; it takes no s3://."""
    return importlib.import_module("orbax.checkpoint._src.serialization.tensorstore_utils")
