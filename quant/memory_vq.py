"""The memory itself as vector codes: slots and caches take one byte for `dim` elements, weights stay as they are.

Zemlyanskiy et al., "MEMORY-VQ: Compression for Tractable Internet-Scale Memory", 2023. At dim=8, codes=256 a state
takes one bit per element, 16 times less than bfloat16.

    state [batch, slots, width], groups = width / dim, book float16 [groups, codes, dim]

    before      after
    NAME_in     Reshape(Gather(book as [groups codes, dim], Cast(NAME_in) + group codes), [batch, slots, width])
    NAME_out    Cast(Transpose(ArgMax(MatMul(x as [groups, n, dim], book as [groups, dim, codes]) - |book|^2 / 2)))
                NAME_in, NAME_out: uint8 [batch, slots, groups]

Codebooks are fitted to memories of a rolled-out model, then again to those that it has while it lives on decoded
memories; `tune=STEPS` trains them from there, by what they do to the outputs (see `edgemem.quant.memory_tuning`). Where
a state starts from 0, entry 0 is 0: an empty cache is exact, and what is read back is written again as the same codes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgemem.contract import StateFacts
from edgemem.errors import UsageError
from edgemem.program import Array
from edgemem.quant import state as states
from edgemem.quant.calibration import runnable, starts, steps
from edgemem.quant.graph import Builder, as_float32, constant
from edgemem.quant.kmeans import assigned, kmeans
from edgemem.quant.scheme import Job, Scheme

UINT8, INT32, INT64 = ir.DataType.UINT8, ir.DataType.INT32, ir.DataType.INT64
STEPS = 512
POINTS = 4096  # that each group's codebook is fitted to
REFITS = 2


def check(settings: Mapping[str, int | str]) -> None:
    """Refuse sizes that cannot be.

    Raises:
        UsageError: `dim` below 1, or `codes` outside 2 to 256.
    """
    dim, codes = int(settings["dim"]), int(settings["codes"])
    if dim < 1 or not 2 <= codes <= 256:
        raise UsageError(
            f"scheme memory-vq: dim of at least 1 and codes of 2 to 256 were wanted, {dim} and {codes} came"
        )


def apply(job: Job) -> None:
    """Rewrite slots and caches; where a model has none, its vectors.

    Raises:
        UsageError: no state has a last axis that `dim` divides.
    """
    dim, codes, seed = (int(job.settings[key]) for key in ("dim", "codes", "seed"))
    chosen = memories(job, dim)
    if not chosen:
        raise UsageError(
            f"scheme memory-vq: {job.contract.model.name} has no state whose last axis is a multiple of dim={dim}; "
            "choose another dim"
        )
    if not has_places(chosen):
        job.warnings.append(
            f"{job.contract.model.name} keeps no slots and no caches: memory-vq rounds its vectors "
            f"({', '.join(s.name for s in chosen)}) in every step, and the error runs on in them; "
            "judge the result by --task, or take another scheme with --state auto"
        )
    books: dict[str, Array] = {}
    for _ in range(1 + REFITS):
        seen = rolled(job, chosen, books)
        books = {s.name: fitted(seen[s.name], s, dim, codes, seed) for s in chosen}
    if int(job.settings["tune"]):
        from edgemem.quant.memory_tuning import tuned

        books = tuned(job, books, int(job.settings["tune"]), seed)
    job.contract = job.contract.model_copy(
        update={
            "states": tuple(
                rewritten(job, state, books[state.name]) if state.name in books else state
                for state in job.contract.states
            )
        }
    )


def memories(job: Job, dim: int) -> list[StateFacts]:
    """The states to store as codes."""
    fitting = [
        s
        for s in job.contract.states
        if states.may_be_narrow(s) and s.shape[-1] % dim == 0 and not job.excluded(s.name)
    ]
    return [s for s in fitting if has_places([s])] or fitting


def has_places(chosen: list[StateFacts]) -> bool:
    """Whether states [batch, places, width] are slots or caches, of which a step writes a few, and not one vector."""
    return any(len(s.shape) > 2 for s in chosen)


def rolled(job: Job, chosen: list[StateFacts], books: Mapping[str, Array]) -> dict[str, Array]:
    """What the states hold before they are rounded, [n, width] by name, over a run that reads them decoded."""
    assert job.calibration is not None
    session = runnable(job.model, [])
    results = [output.name for output in session.get_outputs()]
    found: dict[str, list[Array]] = {s.name: [] for s in chosen}
    state = starts(job.model, job.contract)
    for position, inputs in steps(job.contract, job.calibration.data, STEPS, runs=()):
        if position == 0:
            state = starts(job.model, job.contract)
        values = dict(zip(results, session.run(results, {**inputs, **state}), strict=True))
        state = {s.input: values[s.output] for s in job.contract.states}
        job.tick("rolling the memory", len(found[chosen[0].name]) / STEPS)
        for s in chosen:
            found[s.name].append(values[s.output].reshape(-1, s.shape[-1]))
            if s.name in books:
                state[s.input] = decoded(values[s.output], books[s.name])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def fitted(values: Array, state: StateFacts, dim: int, codes: int, seed: int) -> Array:
    """Codebooks [groups, codes, dim] float16 of vectors [n, width]."""
    rng = np.random.default_rng(seed)
    kept = values if len(values) <= POINTS else values[np.sort(rng.choice(len(values), POINTS, replace=False))]
    groups = kept.reshape(len(kept), -1, dim).swapaxes(0, 1)
    fixed = 1 if state.start == 0.0 else 0
    books = []
    for index, points in enumerate(groups):
        book = np.concatenate([np.zeros((fixed, dim)), kmeans(points, codes - fixed, seed=seed + index, rounds=8)])
        books.append(np.pad(book, ((0, codes - len(book)), (0, 0)), mode="edge"))
    return np.stack(books).astype(np.float16)


def encoded(value: Array, book: Array) -> Array:
    """[..., width] -> codes uint8 [..., groups]"""
    groups, _, dim = book.shape
    parts = value.reshape(-1, groups, dim)
    labels = [assigned(parts[:, g], book[g])[0] for g in range(groups)]
    return np.stack(labels, axis=-1).reshape(*value.shape[:-1], groups).astype(np.uint8)


def decoded(value: Array, book: Array) -> Array:
    """The nearest value [..., width] that codes can hold."""
    codes = encoded(value, book)
    return book.astype(np.float32)[np.arange(len(book)), codes].reshape(value.shape)


# --- the graph ---------------------------------------------------------------------------------------------------


def rewritten(job: Job, state: StateFacts, book: Array) -> StateFacts:
    """Codes at both ends of a state."""
    model, (groups, codes, dim) = job.model, book.shape
    table = as_float32(model, f"{state.name}.book", book)
    start = states.narrow_start(model, state, lambda x: encoded(x, book))
    if start == 0.0 and encoded(np.zeros(state.shape[1:], np.float32), book).any():
        start = f"{state.name}_start"
        constant(model, start, encoded(np.zeros(state.shape[1:], np.float32), book))
    ends = states.detached(model, state, UINT8)
    read = reader(Builder(model, state.name, states.first(model)), state, ends.read, table, (groups, codes, dim))
    made = writer(Builder(model, state.name), state, ends.made, table, (groups, codes, dim))
    states.connect(model, state, ends, read, made)
    shape = (*state.shape[:-1], groups)
    ends.read.shape = made.shape = ir.Shape(shape)
    return state.model_copy(
        update={
            "shape": shape,
            "dtype": "uint8",
            "start": start,
            "range": (0.0, float(codes - 1)),
            "quant": {**state.quant, "policy": "vq", "book": f"{state.name}.book"},
        }
    )


def reader(
    build: Builder, state: StateFacts, codes: ir.Value, table: ir.Value, sizes: tuple[int, int, int]
) -> ir.Value:
    """codes -> float32, at the front of the graph, after the Cast of the codebook."""
    groups, count, dim = sizes
    cast = table.producer()
    assert cast is not None
    build.before = next(node for node in build.model.graph if node is not cast and not is_front(node))
    flat = build.op("Reshape", table, build.constant("flat.shape", np.array([groups * count, dim])), suffix="flat")
    index = build.op("Cast", codes, suffix="index", dtype=INT32, to=int(INT32))
    offset = build.constant("offsets", (np.arange(groups) * count).astype(np.int32))
    entries = build.op(
        "Gather", flat, build.op("Add", index, offset, suffix="places", dtype=INT32), suffix="entries", axis=0
    )
    value: ir.Value = build.op("Reshape", entries, build.constant("shape", np.array(state.shape)), suffix="read")
    return value


def is_front(node: ir.Node) -> bool:
    """Whether a node is the Cast of a constant."""
    source = node.inputs[0] if node.inputs else None
    return node.op_type == "Cast" and source is not None and source.const_value is not None


def writer(build: Builder, state: StateFacts, x: ir.Value, table: ir.Value, sizes: tuple[int, int, int]) -> ir.Value:
    """float32 -> codes, at the end of the graph."""
    groups, _, dim = sizes
    parts = build.op("Reshape", x, build.constant("parts.shape", np.array([-1, groups, dim])), suffix="parts")
    by_group = build.op("Transpose", parts, suffix="groups", perm=[1, 0, 2])
    products = build.op(
        "MatMul", by_group, build.op("Transpose", table, suffix="columns", perm=[0, 2, 1]), suffix="products"
    )
    axis = build.constant("axis", np.array([-1]))
    squares = build.op("ReduceSum", build.op("Mul", table, table, suffix="squares"), axis, suffix="norms", keepdims=1)
    half = build.op("Mul", squares, build.constant("half", np.array(0.5, np.float32)), suffix="halves")
    cost = build.op("Sub", products, build.op("Transpose", half, suffix="row", perm=[0, 2, 1]), suffix="closeness")
    best = build.op("ArgMax", cost, suffix="best", dtype=INT64, axis=-1, keepdims=0)
    turned = build.op("Transpose", best, suffix="turned", dtype=INT64, perm=[1, 0])
    shape = build.constant("codes.shape", np.array([*state.shape[:-1], groups]))
    whole = build.op("Reshape", turned, shape, suffix="codes", dtype=INT64)
    value: ir.Value = build.op("Cast", whole, suffix="stored", dtype=UINT8, to=int(UINT8))
    return value


SCHEME = Scheme(
    "memory-vq",
    "slots and caches as vector codes, one byte for dim elements",
    apply,
    {"dim": 8, "codes": 256, "tune": 0, "seed": 0},
    needs_data=True,
    uses_data=True,
    check=check,
    weights=False,
)
