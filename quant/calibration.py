"""Calibration: what the tensors of a graph hold while the model runs over real sequences, its state carried along.

    data = read("speech/", contract)                          or .npy, .npz, .wav, text; or the packaged excerpt
    seen = observed(model, contract, data, ["val_6", ...])    {name: Observed}

A fresh state is not what a stream lives in, so sequences run on from step to step. At first a reset schedule decides
how long: runs of 16, 64, 256, 1024 … steps in turn, cut at the end of every sequence. Its steps are grouped by their
position in the run (1, 2-3, 4-7 …), and every group gives equally many samples. Then comes one run over 4096 frames or
more that is never reset, in which slow states fill up, and of which one step in several is looked at.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from zipfile import BadZipFile

import numpy as np

from edgemem import modelfile
from edgemem.errors import InputError, UsageError
from edgemem.program import Array
from edgemem.quant import graph
from edgemem.runner import AUDIO
from edgemem.tasks import Tick, quiet
from edgemem.text import first_line, human_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgemem.contract import Contract, InputFacts

Frames = Mapping[str, Array]  # [time, *features] by input name
RUNS = (16, 64, 256, 1024, 4096)  # steps between resets
STEPS = 1024
LONG_FRAMES = 4096
GROUPS = 12  # of positions: 1, 2-3, 4-7, …
VALUES_PER_STEP = 128  # kept of each tensor and step, for percentiles
ROWS_PER_STEP = 8  # that second moments take
PENDING = 256  # steps whose rows are multiplied at once
SOURCES = "sources"  # the text of modules of edgemem, as they once were: another text would give other files
SOURCES_FILE = "sources_calibration.txt"
MOST_BYTES = 4 << 30  # of arrays that are unpacked
SPEECH = "speech_calibration.npz"
WORDS, WORDS_FEATURES = "words_calibration.npz", 240
SPOTTERS = ("kws-lmuformer", "kws-tiny", "kws-spiking-lmuformer", "kws-gru", "kws-transformer")
EXCERPTS = {
    **dict.fromkeys(SPOTTERS, SPEECH),
    "asr-folding": WORDS,
    "silero-vad": SPEECH,  # adopted; its sound is of the clips' own rate
    **dict.fromkeys(("lm-rwkv4", "lm-memformer", "lm-transformer-xl", "lm-transformer"), SOURCES),
}
PROBE_EPISODES, PROBE_SEED = 16, 7  # a seed that training may draw from


@dataclass(frozen=True)
class Data:
    """Sequences that a model can take, and the SHA-256 of all of them."""

    sequences: tuple[Frames, ...]
    digest: str
    source: str


@dataclass
class Observed:
    """What one tensor held. Ranges are over all steps; squares and samples over the chosen ones.

    `channel_max` (largest magnitude) is per element of the last axis, `channel_product` (sum of products) per two of
    them, where `grams` asks for it.
    """

    SENTINEL: ClassVar[float] = 1e4  # from here on a number stands for infinity, as in masks and starts of maxima

    grams: bool = False
    low: float = np.inf
    high: float = -np.inf
    masked: bool = False
    channel_max: Array = field(default_factory=lambda: np.zeros(1))
    channel_product: Array = field(default_factory=lambda: np.zeros((1, 1)))
    rows: int = 0
    samples: list[Array] = field(default_factory=list)
    pending: list[Array] = field(default_factory=list)

    def add(self, value: Array, chosen: bool) -> None:
        """Take the value of one step."""
        rows = np.asarray(value, np.float64).reshape(-1, value.shape[-1] if value.ndim else 1)
        if not np.abs(rows).max(initial=0.0) < self.SENTINEL:
            self.masked |= bool((rows <= -self.SENTINEL).any())
            rows = rows[(np.abs(rows) < self.SENTINEL).all(axis=-1)]
            if not len(rows):
                return
        self.low, self.high = min(self.low, float(rows.min())), max(self.high, float(rows.max()))
        self.channel_max = np.maximum(self.channel_max, np.abs(rows).max(axis=0))
        if self.grams:
            self.pending.append(rows[:: max(1, len(rows) // ROWS_PER_STEP)][:ROWS_PER_STEP])
            if len(self.pending) >= PENDING:
                self.multiply()
        if chosen:
            flat = rows.reshape(-1)
            self.samples.append(flat[:: max(1, len(flat) // VALUES_PER_STEP)][:VALUES_PER_STEP].astype(np.float32))

    def multiply(self) -> None:
        """Add the products of the rows that wait."""
        if self.pending:
            rows = np.concatenate(self.pending)
            self.channel_product, self.rows = self.channel_product + rows.T @ rows, self.rows + len(rows)
            self.pending.clear()

    @property
    def values(self) -> Array:
        """All samples, [n]."""
        return np.concatenate(self.samples) if self.samples else np.zeros(0, np.float32)

    @property
    def gram(self) -> Array:
        """Mean product of every two elements of the last axis."""
        self.multiply()
        return np.asarray(self.channel_product / max(self.rows, 1))


# --- data --------------------------------------------------------------------------------------------------------


def packaged(contract: Contract) -> Data | None:
    """The excerpt that ships for this model, if one does."""
    name = EXCERPTS.get(contract.model.name)
    if name == WORDS and contract.inputs[0].shape[-1] != WORDS_FEATURES:  # another front end than the shipped model's
        name = SPEECH
    if name == SOURCES:
        return own_sources(contract)
    if contract.model.name.startswith("probe-"):
        return episodes(contract)
    path = Path(str(resources.files("edgemem.tasks") / "data" / name)) if name else None
    return read(path, contract) if path is not None and path.is_file() else None


def episodes(contract: Contract) -> Data | None:
    """Episodes of the probe that a model was trained for; images, of which only test ones ship, upside down."""
    from edgemem.tasks.probes import PROBES

    wanted = PROBES.get(str(contract.model.config.get("probe")))
    if wanted is None:
        return None
    level, port = next(iter(wanted.levels.values())), contract.inputs[0]
    x = level.make(PROBE_EPISODES, PROBE_SEED).x
    x = x[:, ::-1] if wanted.name.startswith("digits") else x
    sequences = tuple({port.name: np.ascontiguousarray(episode, port.dtype)} for episode in x)
    return Data(sequences, digest(sequences), f"episodes of {wanted.name}")


def own_sources(contract: Contract) -> Data:
    """Python source text for byte models."""
    content = resources.files("edgemem.tasks").joinpath("data", SOURCES_FILE).read_bytes()
    port = contract.inputs[0]
    sequences = ({port.name: np.frombuffer(content, np.uint8).astype(port.dtype)},)
    return Data(sequences, digest(sequences), SOURCES)


def read(path: str | Path, contract: Contract) -> Data:
    """Calibration data for a model: .npy or .npz arrays, a sound or a folder of sounds, or text.

    An array is [time, *features] or [sequences, time, *features] of what the input takes; .npz names them by input,
    or holds sounds `clips` [n, samples] for a model with an audio front end.

    Raises:
        InputError: nothing there, of the wrong shape or type, NaN, or constant.
    """
    path = Path(path)
    ports = [port for port in contract.inputs if port.role != "valid"]
    if not path.exists():
        raise InputError(f"calibration data {path} does not exist; give a .npy or .npz file, a folder of WAV, or text")
    if path.is_dir() or path.suffix.lower() in AUDIO:
        found = [{ports[0].name: features(sound, contract)} for sound in sounds(path)]
    elif path.suffix.lower() in (".npy", ".npz"):
        found = list(arrays(path, ports, contract))
    else:
        found = [{ports[0].name: text(path, ports[0], contract)}]
    if len(ports) > 1 and not all(len(sequence) == len(ports) for sequence in found):
        raise InputError(
            f"{contract.model.name} has the inputs {[p.name for p in ports]}; give calibration data as .npz by input"
        )
    sequences = tuple({port.name: checked(sequence[port.name], port, path) for port in ports} for sequence in found)
    longest = max((len(next(iter(sequence.values()))) for sequence in sequences), default=0)
    if longest < contract.chunk.frames:
        raise InputError(
            f"calibration data {path} has {longest} frames in its longest sequence, one step of {contract.model.name} "
            f"takes {contract.chunk.frames}; give longer sequences"
        )
    for port in ports:
        whole = np.concatenate([sequence[port.name].reshape(-1) for sequence in sequences])
        if whole.min() == whole.max():
            raise InputError(f"calibration data {path}: every value of {port.name} is {whole[0]}; give real sequences")
    return Data(sequences, digest(sequences), path.name)


def digest(sequences: Sequence[Frames]) -> str:
    """SHA-256 of names, shapes and values."""
    total = hashlib.sha256()
    for sequence in sequences:
        for name, array in sorted(sequence.items()):
            total.update(f"{name} {array.dtype} {array.shape};".encode() + np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def sounds(path: Path) -> Iterator[Array]:
    """Every sound of a folder, by name, or the one that `path` is.

    Raises:
        InputError: the folder has none, or a file is no sound.
    """
    from edgemem.audio import read_audio

    files = sorted(p for p in path.iterdir() if p.suffix.lower() in AUDIO) if path.is_dir() else [path]
    if not files:
        raise InputError(f"calibration data {path}: WAV, FLAC or OGG files were wanted, the folder has none")
    return (read_audio(file) for file in files)


def features(sound: Array, contract: Contract) -> Array:
    """What a model with an audio front end sees of a sound: [time, *features].

    Raises:
        InputError: the model has no front end.
    """
    port = contract.inputs[0]
    if port.frontend is None:
        raise InputError(f"{contract.model.name} takes no sound; give its {port.name} as .npy [time, *features]")
    from edgemem.samplerows import front_end

    return front_end(port.frontend).stream().push(sound.astype(np.float32))


def text(path: Path, port: InputFacts, contract: Contract) -> Array:
    """The bytes of a text as tokens.

    Raises:
        InputError: the model takes no tokens.
    """
    if port.role != "tokens":
        raise InputError(
            f"{path}: {contract.model.name} takes {port.dtype}{list(port.shape[2:])} per frame, not text; "
            "give .npy, .npz or sounds"
        )
    return np.frombuffer(path.read_bytes(), np.uint8).astype(port.dtype)


def arrays(path: Path, ports: Sequence[InputFacts], contract: Contract) -> Iterator[dict[str, Array]]:
    """The sequences of a .npy or .npz file.

    Raises:
        InputError: the file cannot be read, or lacks an input of the model.
    """
    named = opened(path, ports[0].name)
    if "clips" in named and ports[0].frontend is not None:
        scale = 1 / 32768 if named["clips"].dtype.kind == "i" else 1.0
        for clip in np.atleast_2d(named["clips"]):
            yield {ports[0].name: features(clip * np.float32(scale), contract)}
        return
    texts = [name for name, array in named.items() if array.dtype.kind not in "fiub"]
    if texts:
        kind = "text" if named[texts[0]].dtype.kind in "US" else f"numpy's {named[texts[0]].dtype.name}"
        raise InputError(
            f"calibration data {path}: {texts[0] if len(named) > 1 else ports[0].name} must hold numbers, {kind} came"
        )
    missing = [port.name for port in ports if port.name not in named]
    if missing:
        raise InputError(f"calibration data {path}: an array {missing[0]!r} was wanted, {sorted(named)} came")
    stacks = {port.name: as_stack(named[port.name], port, path) for port in ports}
    for index in range(min(len(stack) for stack in stacks.values())):
        yield {name: stack[index] for name, stack in stacks.items()}


def opened(path: Path, name: str) -> dict[str, Array]:
    """The arrays of a .npz file, or that of a .npy file by `name`; no more is read than the file has.

    Raises:
        InputError: the file cannot be read, or unpacks to more than `MOST_BYTES`.
    """
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {name: loaded}
        with loaded:
            size = sum(member.file_size for member in loaded.zip.infolist())
            if size > MOST_BYTES:
                most = human_bytes(MOST_BYTES)
                raise InputError(f"calibration data {path} unpacks to {human_bytes(size)}; give at most {most}")
            return dict(loaded)
    except (OSError, ValueError, EOFError, MemoryError, BadZipFile) as error:
        reason = first_line(error) or type(error).__name__
        raise InputError(f"calibration data {path} is not a readable .npy or .npz file ({reason})") from error


def as_stack(array: Array, port: InputFacts, path: Path) -> Array:
    """[sequences, time, *features]

    Raises:
        InputError: neither that nor one sequence of it.
    """
    features = len(port.shape[2:])
    if array.ndim - features not in (1, 2) or array.shape[array.ndim - features :] != port.shape[2:]:
        raise wrong_shape(array, port, path)
    return array[None] if array.ndim == features + 1 else array


def wrong_shape(array: Array, port: InputFacts, path: Path) -> InputError:
    """What an array of an input must be, and what came."""
    frame = "".join(f", {size}" for size in port.shape[2:])
    return InputError(
        f"calibration data {path}: {port.name} must be [time{frame}] or [sequences, time{frame}], "
        f"{list(array.shape)} came"
    )


def checked(array: Array, port: InputFacts, path: Path) -> Array:
    """One sequence [time, *features] in the input's dtype.

    Raises:
        InputError: of another shape or kind, out of range, NaN or infinite.
    """
    if array.shape[1:] != port.shape[2:]:
        raise wrong_shape(array, port, path)
    if (array.dtype.kind == "f") != port.dtype.startswith("float"):
        raise InputError(f"calibration data {path}: {port.name} must be of {port.dtype}, {array.dtype} came")
    if not np.isfinite(array).all():
        raise InputError(f"calibration data {path}: {port.name} holds NaN or infinity; clean it")
    if port.range is not None and array.size and (array.min() < port.range[0] or array.max() > port.range[1]):
        raise InputError(
            f"calibration data {path}: {port.name} must lie in {list(port.range)}, {array.min()} to {array.max()} came"
        )
    return array.astype(port.dtype)


# --- rolling -----------------------------------------------------------------------------------------------------


def steps(
    contract: Contract, data: Data, count: int = STEPS, runs: Sequence[int] = RUNS
) -> Iterator[tuple[int, dict[str, Array]]]:
    """Inputs of one step after another with their position in the run; position 0 wants a reset.

    `count // 2` steps follow the reset schedule; as many, or more, are one run without an end, over the data again and
    again. Without `runs`, `count` steps are all of that kind.
    """
    scheduled, long = parts(contract, count, runs)
    lengths, pieces = itertools.cycle(runs or (count,)), chunks(contract, data)
    position, length = 0, 0
    for made in range(scheduled + long):
        begins, inputs = next(pieces)
        if made < scheduled and (begins or position == length):
            position, length = 0, next(lengths)
        elif made == scheduled:
            position = 0
        yield position, inputs
        position += 1


def parts(contract: Contract, count: int, runs: Sequence[int]) -> tuple[int, int]:
    """Steps that follow the reset schedule, and steps of the long run."""
    if not runs:
        return 0, count
    return count // 2, max(count - count // 2, LONG_FRAMES // contract.chunk.frames)


def chunks(contract: Contract, data: Data) -> Iterator[tuple[bool, dict[str, Array]]]:
    """The inputs of one step after another, and whether a sequence begins there; the data over and over."""
    frames = contract.chunk.frames
    for sequence in itertools.cycle(data.sequences):
        for index in range(len(next(iter(sequence.values()))) // frames):
            yield index == 0, chunk_of(contract, sequence, index)


def chunk_of(contract: Contract, sequence: Frames, index: int) -> dict[str, Array]:
    """The inputs of one step, the same in every stream of a batch."""
    frames, chunk = contract.chunk.frames, {}
    for port in contract.inputs:
        if port.role == "valid":
            chunk[port.name] = np.full(port.shape, frames, port.dtype)
        else:
            part = sequence[port.name][index * frames : (index + 1) * frames]
            chunk[port.name] = np.ascontiguousarray(np.broadcast_to(part, port.shape))
    return chunk


def observed(
    model: ir.Model,
    contract: Contract,
    data: Data,
    names: Sequence[str],
    count: int = STEPS,
    runs: Sequence[int] = RUNS,
    grams: bool = False,
    tick: Tick = quiet,
) -> dict[str, Observed]:
    """What float tensors of a graph hold while it runs over `data`, its state carried from step to step.

    With `grams`, every step counts, and the second moments of all features are kept.
    """
    made = {value.name for node in model.graph for value in node.outputs}
    wanted = [name for name in dict.fromkeys(names) if name in made]
    outer = {value.name for value in model.graph.outputs}
    session = runnable(model, [name for name in wanted if name not in outer])
    results = [output.name for output in session.get_outputs()]
    seen = {name: Observed(grams) for name in dict.fromkeys(names)}
    taken = [0] * GROUPS
    state = starts(model, contract)
    scheduled, long = parts(contract, count, runs)
    stride = max(1, long // max(1, count // 2)) if runs else 1
    for step, (position, inputs) in enumerate(steps(contract, data, count, runs)):
        if position == 0:
            state = starts(model, contract)
        feeds = {**inputs, **state}
        values = {**feeds, **dict(zip(results, session.run(results, feeds), strict=True))}
        group = min(int(np.log2(position + 1)), GROUPS - 1)
        taken[group] += 1
        looked_at = step < scheduled or (step - scheduled) % stride == 0
        chosen = looked_at and (step >= scheduled or taken[group] <= max(1, count // GROUPS))
        for name, tensor in seen.items():
            if looked_at or tensor.grams:
                tensor.add(values[name], chosen)
        state = {facts.input: values[facts.output] for facts in contract.states}
        tick((step + 1) / (scheduled + long))
    return seen


def starts(model: ir.Model, contract: Contract) -> dict[str, Array]:
    """The start of every state by the name of its graph input."""
    values = modelfile.starts(contract, lambda name: graph.numpy_of(model.graph.initializers[name]))
    return {state.input: values[state.name] for state in contract.states}


def runnable(model: ir.Model, extra: Sequence[str]) -> Any:
    """A session of a graph that also gives the tensors `extra`."""
    import onnx
    import onnx_ir

    from edgemem.onnxsession import session

    proto = onnx_ir.to_proto(model)
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in extra)
    return session(proto.SerializeToString())


def wanted_data(contract: Contract, given: str | Path | None, scheme: str, needed: bool) -> Data | None:
    """The data to calibrate with: what is given, else the packaged excerpt, else none.

    Raises:
        UsageError: the scheme needs data and there is none.
    """
    data = read(given, contract) if given is not None else packaged(contract)
    if data is None and needed:
        raise UsageError(
            f"scheme {scheme} needs calibration data, and none ships for {contract.model.name}; "
            "give some by --calibrate: .npy or .npz, a folder of WAV, or text"
        )
    return data


class Calibration:
    """The data of one run, and what the inputs of matrix products held in the graph that a scheme starts from."""

    def __init__(self, model: ir.Model, contract: Contract, data: Data, count: int = STEPS, tick: Tick = quiet) -> None:
        self.contract, self.data, self.count, self.tick = contract, data, count, tick
        products = [node.inputs[0] for node in model.graph if node.op_type == "MatMul"]
        names = [str(value.name) for value in products if value is not None and value.const_value is None]
        self.products = observed(model, contract, data, names, count, grams=True, tick=tick)

    @property
    def digest(self) -> str:
        return self.data.digest

    def observe(self, model: ir.Model, names: Sequence[str]) -> dict[str, Observed]:
        """What tensors of a graph hold on the same steps."""
        return observed(model, self.contract, self.data, names, self.count, tick=self.tick)

    def gram(self, names: Sequence[str]) -> Array | None:
        """The second moment [features, features] of the inputs of products that read one matrix, all of `names`."""
        found = [self.products[name].gram for name in names if name in self.products]
        return np.mean(found, axis=0) if found else None
