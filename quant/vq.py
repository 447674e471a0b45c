"""Weights as vector codes: `dim` consecutive inputs of an output are one entry of a codebook (or a sum of several).

    row of output n     w[n, g dim : (g+1) dim] ~ s[n] sum_r book[r, code[r, n, g]]       s[n] = RMS of w[n]
    bits per weight     log2(codes) / dim * residual

    before                          after
    MatMul(x, W)                    rows = Reshape(Gather(Cast(W.book), Cast(W.codes)), [out, in])
                                    MatMul(x, Transpose(Mul(rows, Cast(W.scale.rows))))
    MatMul(W, x), Transpose(W)      the same without the Transpose
    Gather(W, i)                    Mul(Reshape(Gather(Cast(W.book), Cast(Gather(W.codes, i)))), Gather(scale, i))
    with residual=R                 W.book.0, W.codes.0 …, the R gathered terms added before the Reshape

W.codes uint8 [out, in / dim] (uint16 above 256 codes), W.book float16 [codes, dim], W.scale.rows [out, 1]. Small
matrices share a codebook, which has the name of the first. It is found by k-means++. With calibration data every input
counts by its second moment, and codes make good what those before them left (see `edgemem.quant.compensation`);
`tune=STEPS` trains the codebooks from there (see `edgemem.quant.tuning`). With `mirror=1` entry e + codes / 2 of a
codebook is the negation of entry e, to the last bit: compiled products by tables make and look up one half. Stored as
in `w8`: what the codes do not fit, or would not make smaller than int8; tables that lookups read and matrices that make
logits, the most sensitive of all, where they are a small part of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemem.errors import UsageError
from edgemem.program import Array
from edgemem.quant import compensation, graph, w8
from edgemem.quant.graph import Builder, Weight, as_float32, narrow_scales, replace
from edgemem.quant.kmeans import assigned, kmeans, with_mirrored
from edgemem.quant.scheme import Job, Scheme

INT32 = ir.DataType.INT32
MOST_CODES = 1 << 16
POOL_ELEMENTS = 1 << 16
ENDS_SHARE = 0.05  # of the elements of all matrices: int8 in place of 2 bits then takes a hundredth of float32
SMALLEST_MOMENT = 1e-2  # of the mean: an input that calibration never saw still counts a little


@dataclass(frozen=True)
class Coded:
    """A matrix [outputs, inputs] as codes: `codes` [R, outputs, groups], `books` [R, K, dim] float16, `scale`
    [outputs]."""

    codes: Array
    books: Array
    scale: Array

    @property
    def own_bytes(self) -> int:
        """Without the codebooks, which several matrices share."""
        return self.codes.nbytes + self.scale.nbytes

    def decoded(self) -> Array:
        """float32 [outputs, inputs]"""
        terms = [book[codes] for book, codes in zip(self.books.astype(np.float32), self.codes, strict=True)]
        total = np.sum(terms, axis=0, dtype=np.float32).reshape(len(self.scale), -1)
        return np.asarray(total * self.scale.astype(np.float32)[:, None])


def check(settings: Mapping[str, int | str]) -> None:
    """Refuse sizes that cannot be.

    Raises:
        UsageError: `dim`, `codes` or `residual` outside what codes can be, or no two halves to mirror.
    """
    dim, codes, residual, mirror = (int(settings[key]) for key in ("dim", "codes", "residual", "mirror"))
    if dim < 1 or not 2 <= codes <= MOST_CODES or not 1 <= residual <= 8:
        raise UsageError(
            f"scheme vq: dim of at least 1, codes of 2 to {MOST_CODES} and residual of 1 to 8 were wanted, "
            f"dim={dim}, codes={codes}, residual={residual} came; for example vq:dim=4,codes=256"
        )
    if mirror > 1 or (mirror and codes % 2):
        raise UsageError(
            f"scheme vq: mirror of 0, or of 1 with an even number of codes, was wanted, mirror={mirror}, "
            f"codes={codes} came; for example vq:dim=4,codes=256,mirror=1"
        )


def apply(job: Job) -> None:
    """Rewrite every matrix that codes make smaller than int8."""
    dim, codes, residual, seed = (int(job.settings[key]) for key in ("dim", "codes", "residual", "seed"))
    mirrored = bool(job.settings["mirror"])
    fitting: list[Weight] = []
    others: list[Weight] = []
    kept = ends(job)
    for weight in job.weights():
        fits = weight.array.ndim == 2 and weight.rows.shape[1] % dim == 0 and weight.name not in kept
        (fitting if fits else others).append(weight)
    coded_pools: list[tuple[list[Weight], list[Coded]]] = []
    together = pools(fitting)
    for index, pool in enumerate(together):
        job.tick("coding", index / len(together))
        moments = [job.second_moments(weight) for weight in pool]
        grams = [job.gram(weight) for weight in pool]
        coded = encoded([weight.rows for weight in pool], dim, codes, residual, moments, seed, grams, mirrored)
        if coded[0].books.nbytes + sum(c.own_bytes for c in coded) >= sum(w.array.size for w in pool):
            others.extend(pool)
        else:
            coded_pools.append((pool, coded))
    if int(job.settings["tune"]) and coded_pools:
        from edgemem.quant.tuning import tuned

        coded_pools = tuned(job, coded_pools, int(job.settings["tune"]), seed)
    for pool, coded in coded_pools:
        for weight, code in zip(pool, coded, strict=True):
            before, after = weight.array, weight.stored(code.decoded())
            rewrite(job.model, weight, code, pool[0].name)
            books = code.books.nbytes if weight is pool[0] else 0
            choice = f"codes of {dim} inputs, {residual}×{codes} entries of {pool[0].name}"
            job.record(weight.name, before, after, choice, code.own_bytes + books)
    for weight in others:
        w8.quantize(job, weight)


def ends(job: Job) -> set[str]:
    """Tables and logits matrices, by name; none of them where they hold more than a small share of all elements."""
    weights = job.weights()
    logits = {port.name for port in job.contract.outputs if port.role == "logits"}
    makers = graph.products_before(value for value in job.model.graph.outputs if value.name in logits)
    found = [w for w in weights if w.gathers or any(node in makers for node, _ in w.others)]
    share = sum(w.array.size for w in found) / max(1, sum(w.array.size for w in weights))
    return {w.name for w in found} if share <= ENDS_SHARE else set()


def pools(weights: list[Weight]) -> list[list[Weight]]:
    """Matrices that share a codebook: neighbours by name, until they have 65536 elements together."""
    found: list[list[Weight]] = []
    for weight in weights:
        if not found or weight.array.size >= POOL_ELEMENTS or sum(w.array.size for w in found[-1]) >= POOL_ELEMENTS:
            found.append([])
        found[-1].append(weight)
    return found


def encoded(
    matrices: list[Array],
    dim: int,
    codes: int,
    residual: int = 1,
    moments: list[Array | None] | None = None,
    seed: int = 0,
    grams: list[Array | None] | None = None,
    mirrored: bool = False,
) -> list[Coded]:
    """Matrices [outputs, inputs] as codes of common codebooks; each further codebook fits what those before it left.

    `mirrored` ties the second half of each codebook to the first.

    `moments` has the second moment of every input of each matrix [inputs], or None where it is not known.
    """
    sizes = [np.sqrt(np.mean(rows.astype(np.float64) ** 2, axis=1)) for rows in matrices]
    scales = [narrow_scales(np.where(size > 0, size, 1.0)) for size in sizes]
    pairs = list(zip(matrices, scales, strict=True))
    left = np.concatenate([(rows / scale[:, None].astype(np.float64)).reshape(-1, dim) for rows, scale in pairs])
    weights = None
    if moments is not None and any(m is not None for m in moments):
        counts = [importance(m, rows, scale) for m, (rows, scale) in zip(moments, pairs, strict=True)]
        weights = np.concatenate([w.reshape(-1, dim) for w in counts])
    all_codes, books = [], []
    for stage in range(residual):
        book = kmeans(left, codes, weights, seed + stage, mirrored=mirrored)
        book = filled(book, codes, mirrored).astype(np.float16)
        labels, _ = assigned(left, book, weights)
        left = left - book[labels].astype(np.float64)
        all_codes.append(labels.astype(np.uint8 if codes <= 256 else np.uint16))
        books.append(book)
    ends = np.cumsum([rows.size // dim for rows in matrices])[:-1]
    parts = np.split(np.stack(all_codes), ends, axis=1)
    found = [
        Coded(part.reshape(residual, len(scale), -1), np.stack(books), scale)
        for part, scale in zip(parts, scales, strict=True)
    ]
    known = grams or [None] * len(matrices)
    return [c if g is None else compensated(c, rows, g) for c, rows, g in zip(found, matrices, known, strict=True)]


def filled(book: Array, codes: int, mirrored: bool) -> Array:
    """A codebook with its last entry repeated up to `codes` entries, in each half of a mirrored one."""
    if mirrored:
        return with_mirrored(filled(book[: len(book) // 2], codes // 2, False))
    return np.pad(book, ((0, codes - len(book)), (0, 0)), mode="edge")


def compensated(coded: Coded, rows: Array, gram: Array) -> Coded:
    """The same codebooks and scales, codes chosen so that the matrix's outputs change least over `gram`."""
    books = coded.books.astype(np.float64)
    scale = coded.scale.astype(np.float64)[:, None]

    def choose(points: Array, metric: Array) -> tuple[Array, Array]:
        labels, total = [], np.zeros(points.shape)
        for book in books:
            chosen, _ = assigned((points - total) @ metric, book @ metric)
            labels.append(chosen)
            total = total + book[chosen]
        return np.stack(labels, axis=-1), total

    labels = compensation.rounded(rows / scale, gram, books.shape[-1], choose)
    return replace_fields(coded, codes=np.moveaxis(labels, -1, 0).astype(coded.codes.dtype))


def importance(moments: Array | None, rows: Array, scale: Array) -> Array:
    """How much a squared error of every element counts [outputs, inputs]: its input's moment, its output's scale."""
    known = np.ones(rows.shape[1]) if moments is None else moments
    of_input = np.maximum(known / max(float(known.mean()), 1e-30), SMALLEST_MOMENT)
    of_output = scale.astype(np.float64) ** 2
    return np.asarray(of_input[None, :] * (of_output / of_output.mean())[:, None])


def rewrite(model: ir.Model, weight: Weight, coded: Coded, owner: str) -> None:
    """Let products read the decoded matrix, and lookups decode the rows that they take; `owner` names the codebooks."""
    parts = Builder(model, weight.name)
    several = len(coded.books) > 1
    names = [f".{r}" if several else "" for r in range(len(coded.books))]
    codes = [parts.constant(f"codes{name}", c) for name, c in zip(names, coded.codes, strict=True)]
    books = [as_float32(model, f"{owner}.book{n}", b) for n, b in zip(names, coded.books, strict=True)]
    scale = as_float32(model, f"{weight.name}.scale.rows", coded.scale[:, None])
    for node in weight.gathers:
        build, index, rows = Builder(model, node.outputs[0].name or weight.name, node), node.inputs[1], node.outputs[0]
        taken = [build.op("Gather", c, index, suffix="codes", dtype=c.dtype, axis=0) for c in codes]
        factor = build.op("Gather", scale, index, suffix="scale", axis=0)
        value = decoded(build, taken, books, factor, list(rows.shape or ()))
        replace(model, rows, value)
    if weight.others:
        first = next(node for node in model.graph if any(node is reader for reader, _ in weight.others))
        build = Builder(model, weight.name, first)
        value = decoded(build, codes, books, scale, list(weight.rows.shape))
        if not weight.by_row:
            value = build.op("Transpose", value, suffix="decoded", perm=[1, 0])
        value.shape = weight.value.shape
        for node, position in weight.others:
            node.replace_input_with(position, value)


def decoded(build: Builder, codes: list[Any], books: list[ir.Value], scale: ir.Value, shape: list[Any]) -> Any:
    """codes -> rows of this shape."""
    terms = [
        build.op("Gather", book, build.op("Cast", c, suffix="index", dtype=INT32, to=int(INT32)), suffix="term", axis=0)
        for c, book in zip(codes, books, strict=True)
    ]
    total = terms[0]
    for term in terms[1:]:
        total = build.op("Add", total, term, suffix="total")
    rows = build.op("Reshape", total, build.constant("rows.shape", np.array(shape, np.int64)), suffix="unscaled")
    value = build.op("Mul", rows, scale, suffix="rows")
    value.shape = ir.Shape(shape)
    return value


SCHEME = Scheme(
    "vq",
    "vector codes and float16 codebooks: log2(codes) / dim bits per weight",
    apply,
    {"dim": 4, "codes": 256, "residual": 1, "mirror": 0, "tune": 0, "seed": 0},
    uses_data=True,
    check=check,
)
