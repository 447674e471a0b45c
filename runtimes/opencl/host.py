"""The host program in C: the tables of one model, and the engine that all models share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources

import numpy as np

from edgemem.contract import Contract, InputFacts, OutputFacts
from edgemem.runtimes.opencl.step import SPACES, Launch, Place, Step

ENGINE = ("edgemem_opencl.h", "edgemem_opencl.c")
SPACE = {space: f"EDGEMEM_{space.upper()}" for space in SPACES}


def host_files(name: str, contract: Contract, step: Step, starts: Mapping[str, int], file_bytes: int) -> dict[str, str]:
    """Text by file name: the engine, the model's tables, and a program that streams standard input to output."""
    folder = resources.files("edgemem.runtimes.opencl") / "c"
    files = {file: (folder / file).read_text() for file in ENGINE}
    files[f"{name}.h"] = header(name, contract)
    files[f"{name}.c"] = tables(name, contract, step, starts, file_bytes)
    files["main.c"] = (folder / "main.c").read_text().replace("NAME", name)
    return files


def header(name: str, contract: Contract) -> str:
    named: list[tuple[str, int, InputFacts | OutputFacts]] = [
        *(("input", index, port) for index, port in enumerate(contract.inputs)),
        *(("output", index, port) for index, port in enumerate(contract.outputs)),
    ]
    ports = "\n".join(
        f"     {kind} {index}  {port.name}  {port.dtype} [{', '.join(map(str, port.shape))}]"
        for kind, index, port in named
    )
    return f"""\
/* {contract.model.name} on an OpenCL device; a step takes {contract.chunk.size} {contract.chunk.unit}(s).

{ports}
*/
#include "edgemem_opencl.h"

extern const edgemem_model {name};
"""


def tables(name: str, contract: Contract, step: Step, starts: Mapping[str, int], file_bytes: int) -> str:
    """`NAME.c`: the step as constant tables."""
    arguments: list[str] = []
    launches: list[str] = []
    for launch in step.launches:
        launches.append(launch_text(launch, len(arguments)))
        arguments += [place_text(place) for place in launch.places]
    copies = [f"{{{place_text(source)}, {place_text(target)}}}" for source, target in step.copies]
    inputs = [port_text(port.name, step.inputs[port.name], checked=port) for port in contract.inputs]
    outputs = [port_text(port.name, step.outputs[port.name]) for port in contract.outputs]
    states = [port_text(s.name, step.states[s.name], start=starts[s.name]) for s in contract.states]
    sizes = ", ".join(str(step.sizes[space]) for space in SPACES)
    lists = {"arguments": arguments, "launches": launches, "inputs": inputs, "outputs": outputs, "states": states}
    kinds = {"arguments": "edgemem_place", "launches": "edgemem_launch"}
    texts = [table(kinds.get(key, "edgemem_port"), key, rows) for key, rows in lists.items()]
    pairs = copies or [f"{{{nowhere()}, {nowhere()}}}"]  # C has no empty arrays
    texts.insert(2, f"static const edgemem_place copies[][2] = {{\n    {join(pairs)}\n}};\n")
    return f"""\
#include "{name}.h"

{"".join(texts)}
const edgemem_model {name} = {{
    "{name}", {{{sizes}}}, {file_bytes}, {int(step.turns)}, arguments, launches, copies, inputs, outputs, states,
    {len(launches)}, {len(copies)}, {len(inputs)}, {len(outputs)}, {len(states)}
}};
"""


def join(rows: Sequence[str]) -> str:
    return ",\n    ".join(rows)


def table(kind: str, name: str, rows: Sequence[str]) -> str:
    empty = nowhere() if kind == "edgemem_place" else "{0, {0, {0, 0}, 0}, 0, 0, 0, 0}"
    return f"static const {kind} {name}[] = {{\n    {join(rows or [empty])}\n}};\n"


def nowhere() -> str:
    return "{0, {0, 0}, 0}"


def place_text(place: Place) -> str:
    return f"{{{SPACE[place.space]}, {{{place.offsets[0]}, {place.offsets[1]}}}, {place.nbytes}}}"


def launch_text(launch: Launch, first: int) -> str:
    blocks, threads = (", ".join(map(str, sizes)) for sizes in (launch.blocks, launch.threads))
    return f'{{"{launch.kernel}", {first}, {len(launch.places)}, {{{blocks}}}, {{{threads}}}}}'


def port_text(name: str, place: Place, checked: InputFacts | None = None, start: int = 0) -> str:
    least, most, width = 0, 0, 0
    if checked is not None and checked.range is not None:
        least, most = checked.range
        kind = np.dtype(checked.dtype)
        width = -kind.itemsize if kind.kind in "bu" else kind.itemsize
    return f'{{"{name}", {place_text(place)}, {width}, INT64_C({least}), INT64_C({most}), {start}}}'
