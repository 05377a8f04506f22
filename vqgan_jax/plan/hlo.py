"""Reads what the compiler writes: the optimised program as text, the paths of its operations, and its errors.

`cost_analysis` enters the body of a loop once, so a scan over 24 layers looks 24 times too cheap; the text tells all.
No other file reads the compiler's text.
"""

import dataclasses
import functools
import math
import re
from collections import defaultdict

import numpy as np

BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0}  # others carry their bits in their name: bf16, s32, f8e4m3
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
STEPS = ("stride", "lhs_dilate", "rhs_dilate")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
INSTRUCTION = re.compile(r"^  (?:ROOT )?%([\w.\-]+) = (.*?[\])}]) ([a-z][\w\-]*)\((.*)$")
SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
CALLED = re.compile(r"\b(?:calls|body|to_apply|true_computation|false_computation)=%([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
NO_ESTIMATE = 2**62  # the compiler writes 2**63 - 1
HEAVY = (  # kinds that take time even where the compiler says nothing of it, as of a select-and-scatter
    "convolution",
    "dot",
    "fft",
    "gather",
    "reduce-window",
    "rng-bit-generator",
    "scatter",
    "select-and-scatter",
    "sort",
)
FREE = (  # what no kernel of a GPU is started for; a loop's or a call's work is in the computation that it calls
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
)
LIBRARY = re.compile(r'custom_call_target="__(cublas|cudnn\$conv|cudnn\$fmha)(\w*)')  # what NVIDIA's libraries multiply
GEMM = re.compile(r'"kind":"__(?:triton\w*gemm|cudnn\$fusion|cublas)')
KERNELS = ("cuDNN convolution", "product by cuBLAS or Triton", "fused attention", "other")
LIBRARIES = {"cudnn$conv": KERNELS[0], "cublas": KERNELS[1], "cudnn$fmha": KERNELS[2]}
SLICES = ("dynamic-slice", "gather", "slice")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
CONSTANT = re.compile(r"^[su]\d+\[\].* constant\((\d+)\)")
LISTED = re.compile(r"replica_groups=\{\{([^=]*?)\}\}")
IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
CONTROL = ("while", "body", "cond", "closed_call", "checkpoint", "rematted_computation", "vmap", "pjit")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: its shapes as text, its kind, and the rest of the line."""

    name: str
    shape: str
    kind: str
    rest: str

    @property
    def op_name(self) -> str:
        """Path of the traced operation it came from; empty where the compiler made it up."""
        match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.rest)
        return match.group(1) if match else ""

    @property
    def cycles(self) -> int:
        """The compiler's estimate of one run; 0 where it has none."""
        match = CYCLES.search(self.rest)
        return int(match.group(1)) if match and int(match.group(1)) < NO_ESTIMATE else 0

    @property
    def operands(self) -> list[str]:
        """Names of its inputs, in the text of a GPU's compiler, which writes no shapes beside them."""
        return re.findall(r"%([\w.\-]+)", self.rest.partition(")")[0])

    @property
    def size(self) -> float:
        """Bytes of all its results."""
        return sum(size * math.prod(sides) for size, sides in shapes(self.shape))

    @property
    def is_kernel(self) -> bool:
        """A GPU starts a kernel for it, and not one that only sends."""
        return not (self.kind in FREE or self.kind in COLLECTIVES or self.kind.endswith(("-start", "-done", "-update")))

    @property
    def kernel(self) -> str:
        """Which of KERNELS it is."""
        if call := LIBRARY.search(self.rest):
            return LIBRARIES[call.group(1)]
        return KERNELS[1] if GEMM.search(self.rest) else KERNELS[3]

    @property
    def unestimated(self) -> bool:
        """It takes a time that the compiler does not know, such as a scatter on a TPU's sparse cores."""
        match = CYCLES.search(self.rest)
        return int(match.group(1)) >= NO_ESTIMATE if match else self.kind in HEAVY


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program: its computations by name, and which of them is the entry."""

    computations: dict[str, list[Instruction]]
    entry: str

    def trips(self, loop: Instruction) -> int:
        """Returns the rounds of a `while`: as the compiler says, or else the bound in its condition.

        Our scans count from zero.
        """
        if match := TRIPS.search(loop.rest):
            return int(match.group(1))
        condition = re.search(r"condition=%([\w.\-]+)", loop.rest)
        lines = list(self.computations.get(condition.group(1), ())) if condition else []
        for line in lines:  # of a comparison that became a fusion, too
            lines += [inner for name in CALLED.findall(line.rest) for inner in self.computations.get(name, ())]
        bounds = [CONSTANT.match(f"{line.shape} {line.kind}({line.rest}") for line in lines]
        return max((int(match.group(1)) for match in bounds if match), default=1)

    @functools.cached_property
    def runs(self) -> list[tuple[str, Instruction, float, bool]]:
        """Every instruction with its computation, how often it runs, and whether inside another's cycles.

        Of a conditional's branches each counts as a whole: which of them runs is not known.
        """
        runs: list[tuple[str, Instruction, float, bool]] = []
        stack = [(self.entry, 1.0, False)]
        while stack:
            name, times, inside = stack.pop()
            for line in self.computations.get(name, ()):
                runs.append((name, line, times, inside))
                if line.kind in COLLECTIVES or line.kind.startswith(("reduce", "scatter", "sort", "select", "map")):
                    continue  # what they call is done once an element
                again = times * (self.trips(line) if line.kind == "while" else 1)
                called = CALLED.findall(line.rest)
                called += [n.strip().lstrip("%") for group in BRANCHES.findall(line.rest) for n in group.split(",")]
                stack += [(inner, again, inside or line.kind == "fusion" or bool(line.cycles)) for inner in called]
        return runs

    def cycles(self) -> list[tuple[Instruction, float, float]]:
        """Returns the instructions that cost, how often each runs, and cycles of all these runs, 0 if unestimated."""
        return [
            (line, times, times * line.cycles)
            for _, line, times, inside in self.runs
            if (line.cycles or line.unestimated) and not inside
        ]

    def once(self) -> float:
        """Returns the cycles with every loop's body entered a single time, which is what `cost_analysis` sees."""
        return float(sum(line.cycles for _, line, _, inside in self.runs if not inside))

    def flops(self) -> float:
        """Returns the FLOPs of the products that the compiler left, those that it added included."""
        return sum(times * self.product(name, line)[0] for name, line, times, _ in self.runs)

    @functools.cached_property
    def tables(self) -> dict[str, dict[str, Instruction]]:
        """The instructions of each computation by their names."""
        return {name: {line.name: line for line in lines} for name, lines in self.computations.items()}

    def product(self, name: str, line: Instruction) -> tuple[float, str]:
        """Returns the FLOPs of one run of an instruction of a computation, and the dtype that it multiplies.

        They are 0 of what is neither a product, a convolution, nor a call of a library that computes one. The dtype of
        float32 that is multiplied without rounding is "f32 exact".
        """
        call = LIBRARY.search(line.rest) if line.kind == "custom-call" else None
        if line.kind not in ("dot", "convolution") and call is None:
            return 0.0, ""
        inputs = [self.tables[name][operand].shape for operand in re.findall(r"%([\w.\-]+)", line.rest)[:2]]
        sides = [shapes(text)[0][1] for text in (*inputs, line.shape)]
        dtype = inputs[0].partition("[")[0] + " exact" * ("operand_precision={highest" in line.rest)
        if call is None:
            return product_flops(line, *sides), dtype
        return library_flops(line, call.group(1), call.group(2), *sides), dtype

    def products(self, name: str, line: Instruction) -> dict[str, float]:
        """Returns the FLOPs of one run by dtype, with those of what it calls."""
        total: dict[str, float] = defaultdict(float)
        flops, dtype = self.product(name, line)
        total[dtype] += flops
        for inner in CALLED.findall(line.rest) if line.kind == "fusion" else ():
            for part in self.computations.get(inner, ()):
                for dtype, flops in self.products(inner, part).items():
                    total[dtype] += flops
        return total

    def traffic(self, name: str, line: Instruction) -> float:
        """Returns the bytes that a GPU's kernel reads and writes: of a slice, or an update in place, this part only."""
        if line.kind != "fusion":
            return line.size + sum(self.tables[name][operand].size for operand in line.operands)
        inner = CALLED.findall(line.rest)[0]
        inputs = [part for part in self.computations[inner] if part.kind == "parameter"]
        return sum(self.read(inner, part) for part in inputs) + self.written(inner, self.computations[inner][-1])

    @functools.cached_property
    def users(self) -> dict[tuple[str, str], list[Instruction]]:
        """What reads an instruction, by its computation and name."""
        users: dict[tuple[str, str], list[Instruction]] = defaultdict(list)
        for name, lines in self.computations.items():
            for line in lines:
                for operand in set(line.operands):
                    users[name, operand].append(line)
        return users

    def read(self, name: str, line: Instruction) -> float:
        """Returns the bytes that the users of a value within a fusion read of it."""
        total = 0.0
        for user in self.users[name, line.name]:
            if user.kind in SLICES and user.operands[0] == line.name:
                total += user.size
            elif user.kind == "bitcast":
                total += self.read(name, user)
            elif user.kind == "fusion":
                (inner,) = CALLED.findall(user.rest)
                total += sum(
                    self.read(inner, part)
                    for part in self.computations[inner]
                    if part.kind == "parameter" and user.operands[int(part.rest.partition(")")[0])] == line.name
                )
            elif not (user.kind == "dynamic-update-slice" and user.operands[0] == line.name):
                return line.size
        return min(total, line.size)

    def written(self, name: str, line: Instruction) -> float:
        """Returns the bytes that a fusion writes of a value which it returns."""
        table = self.tables[name]
        if line.kind in ("bitcast", "tuple"):
            return sum(self.written(name, table[operand]) for operand in line.operands)
        return table[line.operands[1]].size if line.kind == "dynamic-update-slice" else line.size

    def collectives(self, mesh: dict[str, int]) -> dict[str, dict[str, float]]:
        """Returns the bytes that a device sends in a run, as rings send them: kind -> axes, joined by "+" -> bytes.

        A group of n that reduces s bytes sends 2 s (n - 1) / n; one that gathers, scatters or exchanges them half of
        that. A "send" is what a device hands to its host for the network between slices. The most come first.
        """
        totals: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
        for name, line, times, _ in self.runs:
            kind = line.kind.removesuffix("-start")
            if kind == "send":  # to its host, which sums or gathers with other slices' hosts: they share "data" only
                sizes = shapes(line.shape)[:1]
                totals[kind, ("data",)] += times * sum(size * math.prod(sides) for size, sides in sizes)
            if kind not in COLLECTIVES:
                continue
            arrays = [size * math.prod(sides) for size, sides in shapes(line.shape) if sides or kind == "all-reduce"]
            if line.kind.endswith("-start") and kind != "all-reduce":
                arrays = arrays[len(arrays) // 2 :]  # its inputs stand before its outputs
            if kind == "collective-permute":
                totals[kind, permuted_axes(line, mesh)] += times * sum(arrays)
                continue
            group = groups(line.rest, math.prod(mesh.values()))[0]
            if len(group) < 2:
                continue
            size = sum(arrays) * (len(group) if kind == "reduce-scatter" else 1)
            if "reduce-scatter" in name:
                kind = "reduce-scatter"  # the TPU's fusion of an all-reduce with the slice that is kept of it
            share = (len(group) - 1) / len(group) * (2 if kind == "all-reduce" else 1)
            totals[kind, varying(group, mesh)] += times * size * share
        sent: dict[str, dict[str, float]] = {}
        for (kind, axes), total in sorted(totals.items(), key=lambda entry: -entry[1]):
            sent.setdefault(kind, {})["+".join(axes)] = total
        return sent


def read(text: str) -> Program:
    """Returns the program of a compiler's text."""
    computations, entry, lines = {}, "", []
    for line in text.splitlines():
        if match := INSTRUCTION.match(line):
            lines.append(Instruction(*match.groups()))
        elif match := HEADER.match(line):
            lines = computations[match.group(2)] = []
            entry = match.group(2) if match.group(1) else entry
    return Program(computations, entry)


def shapes(text: str) -> list[tuple[float, tuple[int, ...]]]:
    """Returns bytes an element, and sizes, of every array in the text of a shape."""
    arrays = []
    for kind, sizes in SHAPE.findall(text):
        bits = BITS[kind] if kind in BITS else int(re.search(r"\d+", kind).group())  # type: ignore[union-attr]
        arrays.append((bits / 8, tuple(int(size) for size in sizes.split(",") if size)))
    return arrays


def library_flops(
    line: Instruction, library: str, function: str, left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...]
) -> float:
    """FLOPs of one run of cuBLAS or cuDNN, of which a gradient's call describes the convolution that it belongs to.

    Attention is two products, its gradient five; of a causal one half is needed.
    """
    if library == "cudnn$fmha":
        weights = re.search(r'"dimensions": ?\[([^\]]*)\]', line.rest)
        assert weights is not None, line.rest
        both = 4.0 * math.prod(int(size) for size in re.findall(r"\d+", weights.group(1))) * left[-1]
        return both * (2.5 if "Backward" in function else 1.0) * (0.5 if "CAUSAL" in line.rest else 1.0)
    if library == "cublas":
        axes = re.search(r'"lhs_contracting_dimensions": ?\[([^\]]*)\]', line.rest)
        return 2.0 * math.prod(out) * math.prod(left[int(axis)] for axis in re.findall(r"\d+", axes[1] if axes else ""))
    if function == "BackwardInput":
        return product_flops(line, out, right, left)
    return (
        product_flops(line, left, out, right) if function == "BackwardFilter" else product_flops(line, left, right, out)
    )


def product_flops(line: Instruction, left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...]) -> float:
    """FLOPs of one run of a product or a convolution of `left` and `right`, which gives `out`.

    Padding and the zeros between dilated rows are free. A TPU's product of a batch of matrices is a convolution too,
    with a window that meets one row of each only.
    """
    if line.kind == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)
        return 2.0 * math.prod(out) * math.prod(left[int(axis)] for axis in (axes.group(1).split(",") if axes else ()))
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.rest)
    assert labels is not None, line.rest
    sides = zip(labels.groups(), (left, right, out), strict=True)
    left_at, right_at, out_at = (dict(zip(letters, sizes, strict=True)) for letters, sizes in sides)
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", line.rest.partition("window={")[2].partition("}")[0]))
    total = 2.0 * out_at["b"] * out_at["f"] * right_at["i"]
    for axis in (letter for letter in out_at if letter.isdigit()):
        stride, spread, gap = (int(window[k].split("x")[int(axis)]) if k in window else 1 for k in STEPS)
        before = int(window["pad"].split("x")[int(axis)].split("_")[0]) if "pad" in window else 0
        place = np.add.outer(np.arange(out_at[axis]) * stride - before, np.arange(right_at[axis]) * gap)
        total *= np.sum((place >= 0) & (place < left_at[axis] * spread) & (place % spread == 0))
    return total


def groups(rest: str, devices: int) -> np.ndarray:
    """Returns the devices of each group of a collective, one a row, by their numbers in the mesh."""
    numbers = lambda text: tuple(int(number) for number in text.split(","))

    def arranged(sizes: str, order: str | None) -> np.ndarray:
        array = np.arange(math.prod(numbers(sizes))).reshape(numbers(sizes))
        return array.transpose(numbers(order)) if order else array

    if match := LISTED.search(rest):
        return np.array([numbers(group) for group in match.group(1).split("},{")])
    if match := IOTA.search(rest):
        return arranged(match.group(2), match.group(3)).reshape(numbers(match.group(1)))
    if match := NAMED.search(rest):
        axes, sizes, order, along = match.groups()
        names, lengths = zip(*re.findall(r"'(\w+)'=(\d+)", axes), strict=True)
        ids = arranged(sizes or str(devices), order).reshape([int(length) for length in lengths])
        moved = [names.index(name) for name in re.findall(r"'(\w+)'", along)]
        others = [axis for axis in range(len(names)) if axis not in moved]
        return ids.transpose(others + moved).reshape(-1, math.prod(ids.shape[axis] for axis in moved))
    return np.arange(devices)[None]  # no groups are one of all


def varying(group: np.ndarray, mesh: dict[str, int]) -> tuple[str, ...]:
    """Axes along which the places of a group's devices differ."""
    places = np.unravel_index(group, tuple(mesh.values()))
    return tuple(axis for axis, place in zip(mesh, places, strict=True) if len(set(place.tolist())) > 1)


def permuted_axes(line: Instruction, mesh: dict[str, int]) -> tuple[str, ...]:
    """Axes along which a `collective-permute` moves anything."""
    pairs = re.findall(r"\{(\d+),(\d+)\}", line.rest.partition("source_target_pairs=")[2].partition("}}")[0] + "}")
    moved = {axis for pair in pairs for axis in varying(np.array(pair, int), mesh)}
    return tuple(axis for axis in mesh if axis in moved)


def out_of_memory(message: str) -> float | None:
    """Returns the bytes that a compiler's message says are needed; None of a message about something else."""
    match = re.search(r"RESOURCE_EXHAUSTED.*?(?:Used |\()([\d.]+)([KMGT])", message, re.DOTALL)
    return float(match.group(1)) * UNITS[match.group(2)] if match else None


def place(op_name: str, kind: str) -> tuple[str, str]:
    """Returns module and direction, and kind of operation, of a traced operation's path.

    `jit(train_step)/transpose(jvp(VQGAN))/decoder/up/conv/conv_general_dilated` is "VQGAN/decoder/up backward" and
    "conv_general_dilated".
    """
    *path, last = op_name.split(";")[0].split("/")
    again, names = "rematted_computation" in path, []
    direction = "again" if again else "backward" if any("transpose(" in part for part in path) else "forward"
    for part in path:
        name = part.split("(")[-1].rstrip(")")
        if not name or name in CONTROL or part.startswith("jit(") or "->" in name:
            continue
        if names and name.startswith(f"{names[-1]}."):
            names.pop()
        names.append(name)
    return f"{'/'.join(names[:3]) or 'outside of modules'} {direction}", last if path else kind
