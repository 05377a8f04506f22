"""Where every array lives: one mesh, and one strict table from names to axes.

The axes are "data" (the batch), "fsdp" (the batch and the parameters) and "tensor" (the parameters only).
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))
BOTH = ("fsdp", "tensor")
LARGE = 2**22  # elements, 16 MiB of float32: what is larger must not be whole on every device under FSDP
AVERAGES = r"opt_state/|ema/"  # what only the end of a step reads

# The first pattern that is found in a leaf's path decides. A path ends alike for a parameter, for its running average
# and for its Adam moments, so one line serves all four. Kernels are (height, width, in, out) and cut along one
# dimension only: cut along in and out on a mesh of data=2, fsdp=2, tensor=2 the gradient of a convolution on small maps
# comes out of XLA's partitioner 1% wrong (jax 0.10.2, CPU; tests/train/test_devices.py trains on that mesh).
RULES: tuple[tuple[str, P], ...] = (
    (r"/(bias|scale|loc|mean|var|hits|step|count|real|fake|ns_coeffs)$|^step$", P()),
    (r"/(conv_out|pre_quantizer)/kernel$", P(None, None, BOTH, None)),  # few channels go out
    (r"layers/qkv/kernel$", P(None, "fsdp", None, "tensor", None)),  # layer, width, q k v, heads, width of a head
    (r"layers/proj/kernel$", P(None, "tensor", None, "fsdp")),
    (r"layers/(up|gate)/kernel$", P(None, "fsdp", "tensor")),
    (r"layers/down/kernel$", P(None, "tensor", "fsdp")),
    (r"layers/modulation/kernel$", P(None, "fsdp", None, "tensor")),  # layer, width, shifts scales gates, width
    (r"/blocks/.*/conv_2/kernel$", P(None, None, None, BOTH, None)),  # block, height, width, in, out
    (r"/blocks/.*/kernel$", P(None, None, None, None, BOTH)),
    (r"head/kernel$", P("fsdp", "tensor")),
    (r"/embedding$", P(None, BOTH)),
    (r"/(positions|targets|projection)$", P()),
    (r"/kernel$", P(None, None, None, BOTH)),
    (r"/(codebook|sums|frozen)$", P(BOTH, None)),
)


def make_mesh(data: int, fsdp: int, tensor: int, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all devices of all processes, or over `devices`; one size may be -1, which is all that are left.

    Of several slices, which their devices tell, each has equal shares of "data", and "fsdp" and "tensor" stay inside
    one: only the sums over "data" go through the data centre's network.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or the slices do not divide "data".
    """
    devices = jax.devices() if devices is None else devices
    sizes, count = [data, fsdp, tensor], len(devices)
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = count // max(-math.prod(sizes), 1)
    if math.prod(sizes) != count or min(sizes) < 1:
        raise ValueError(
            f"`config.mesh` must multiply to the number of devices, {count}; got data={data}, fsdp={fsdp}, "
            f"tensor={tensor}. Set one of them to -1."
        )
    split: Any = {"allow_split_physical_axes": True}  # 8 of a torus of 4 x 4 x 4 are no whole side of it
    slices = Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(slices) == 1:
        layout = mesh_utils.create_device_mesh(sizes, devices, **split)
    elif sizes[0] % len(slices) == 0 and len(set(slices.values())) == 1:
        inside = (sizes[0] // len(slices), *sizes[1:])
        layout = mesh_utils.create_hybrid_device_mesh(inside, (len(slices), 1, 1), devices, **split)
    else:
        raise ValueError(
            f"`config.mesh.data` must be a multiple of the {len(slices)} slices, equally large, between which only it "
            f"may go; got data={sizes[0]} and slices of {', '.join(map(str, slices.values()))} devices. Use less fsdp "
            "and tensor."
        )
    # Auto axes: with JAX's default of explicit ones a convolution with a sharded kernel is an error.
    return Mesh(layout, AXES, axis_types=(AxisType.Auto,) * 3)


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises ValueError unless every device along "data" and "fsdp" gets as many rows of each of `accumulate` parts."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    parts, times = devices * accumulate, f" times the {accumulate} of config.accumulate" * (accumulate > 1)
    if batch_size % parts:
        raise ValueError(
            f"`config.batch_size` must be a multiple of the {devices} devices along data and fsdp{times}; got "
            f"{batch_size}. Set it to {-(-batch_size // parts) * parts}, or run on fewer devices."
        )


def local_mesh() -> Mesh:
    """The devices of this process alone, along "data": for work that processes share out among themselves."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices), 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def path_name(path: tuple[Any, ...]) -> str:
    """`params/generator/encoder/conv_in/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def differing_leaf(old: Any, new: Any) -> tuple[str, str, str] | None:
    """The path of the first leaf in which two trees differ, and its shape and dtype in each; None where they agree."""
    leaves = lambda tree: {path_name(p): f"{x.shape} {x.dtype}" for p, x in jax.tree_util.tree_leaves_with_path(tree)}
    first, second = leaves(old), leaves(new)
    names = (name for name in sorted(first.keys() | second.keys()) if first.get(name) != second.get(name))
    return next(((name, first.get(name, "absent"), second.get(name, "absent")) for name in names), None)


def shardings(tree: Any, mesh: Mesh | AbstractMesh, *, zero1: bool = False) -> Any:
    """A `NamedSharding` for each leaf of a tree of arrays or of shapes.

    Args:
      tree: of the paths that RULES knows.
      mesh: of the axes AXES.
      zero1: of "opt_state" and "ema" cuts along "data", too, what the table cuts; see `cut_along_data`.

    Raises:
      ValueError: a leaf that no rule matches, a dimension that its axes do not divide, or a large array that "fsdp" and
        "tensor" leave whole.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        spec = next((spec for pattern, spec in RULES if re.search(pattern, name)), None)
        if spec is None:
            raise ValueError(f"every array must have a sharding rule; `{name}` matches none. Add a line to RULES.")
        for size, axes in zip(leaf.shape, spec, strict=False):
            if size % parts(axes, mesh):
                raise ValueError(
                    f"the mesh must divide every dimension that it shards; `{name}` has shape {leaf.shape} and "
                    f"{size} is cut into {parts(axes, mesh)}. Use less fsdp and tensor and more data in `config.mesh`."
                )
        cut = math.prod(parts(axes, mesh) for axes in spec)
        if leaf.size > LARGE and cut == 1 < parts(BOTH, mesh):
            raise ValueError(
                f"under fsdp or tensor every array of more than {LARGE:,} elements must be cut; `{name}` has shape "
                f"{leaf.shape}, {leaf.size:,} elements, and would be whole on every device. Give it a line in RULES "
                "that cuts it, or make it smaller."
            )
        if zero1 and spec and re.match(AVERAGES, name):
            spec = cut_along_data(leaf.shape, spec, mesh)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, tree)


def parts(axes: Any, mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts an entry of a `PartitionSpec` cuts."""
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))


def cut_along_data(shape: tuple[int, ...], spec: P, mesh: Mesh | AbstractMesh) -> P:
    """A rule with "data" behind its axes: in the dimension that it cuts, else in the largest one that can be divided.

    Where "data" divides no dimension the rule stays as it is.
    """
    entries = [*spec, *[None] * (len(shape) - len(spec))]
    left = [size // parts(axes, mesh) for size, axes in zip(shape, entries, strict=True)]
    fits = [i for i, size in enumerate(left) if size % mesh.shape["data"] == 0]
    if fits:
        i = max(fits, key=lambda i: (entries[i] is not None, left[i]))
        axes = entries[i]
        entries[i] = (*((axes,) if isinstance(axes, str) else axes or ()), "data")
    return P(*entries)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole array on every device."""
    return NamedSharding(mesh, P())


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh, *, spec: P = BATCH) -> dict[str, jax.Array]:
    """The global batch out of every process's share; rows are in the order of the processes."""
    sharding = NamedSharding(mesh, spec)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}
