"""A compiled folder on an OpenCL device: weights once, a state block for every stream, arguments bound beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.errors import DeviceError, ModelFileError
from edgemem.program import Array, Program, StateBlock, spans
from edgemem.runtimes.opencl.device import check_room, check_version, described
from edgemem.runtimes.opencl.step import Launch, Place, Step
from edgemem.text import first_line, human_bytes

if TYPE_CHECKING:
    from edgemem.contract import Contract


class OpenclState(StateBlock):
    """State and arena of one stream on the device, its queue, and every kernel with its arguments, by turn."""

    def __init__(self, program: OpenclProgram) -> None:
        import pyopencl as cl

        self._cl, self._program, self._contract = cl, program, program.contract
        step, context = program.step_plan, program.context
        self.queue = cl.CommandQueue(context)
        flags = cl.mem_flags.READ_WRITE
        self.buffers = {
            "weights": program.weights,
            "arena": cl.Buffer(context, flags, step.sizes["arena"]),
            "state": cl.Buffer(context, flags, step.sizes["state"]),
        }
        self.regions: dict[tuple[str, int, int], Any] = {}
        self.outputs = {port.name: np.zeros(port.shape, port.dtype) for port in self._contract.outputs}
        self.turn = 0
        self.events: list[Any] = []  # of the launches of the last step
        self.calls = tuple(
            [self._bound(launch, turn) for launch in step.launches] for turn in ((0, 1) if step.turns else (0,))
        )
        self.reset()

    def _bound(self, launch: Launch, turn: int) -> tuple[Any, tuple[int, ...], tuple[int, ...]]:
        """A kernel of this stream's own, and its threads in all and in a block."""
        kernel = self._cl.Kernel(self._program.built, launch.kernel)
        kernel.set_args(*(self.region(place, turn) for place in launch.places))
        threads = tuple(blocks * each for blocks, each in zip(launch.blocks, launch.threads, strict=True))
        return kernel, threads, launch.threads

    def region(self, place: Place, turn: int) -> Any:
        """The buffer of a place."""
        key = (place.space, place.offsets[turn], place.nbytes)
        if key not in self.regions:
            self.regions[key] = self.buffers[place.space].get_sub_region(place.offsets[turn], max(1, place.nbytes))
        return self.regions[key]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Launch one step and wait for its outputs."""
        cl, queue, step, turn = self._cl, self.queue, self._program.step_plan, self.turn
        for name, place in step.inputs.items():
            array = np.ascontiguousarray(inputs[name])
            cl.enqueue_copy(queue, self.buffers["arena"], array, dst_offset=place.offsets[0], is_blocking=True)
        self.events = [
            cl.enqueue_nd_range_kernel(queue, kernel, threads, block) for kernel, threads, block in self.calls[turn]
        ]
        for name, array in self.outputs.items():
            place = step.outputs[name]
            source = self.buffers[place.space]
            cl.enqueue_copy(queue, array, source, src_offset=place.offsets[turn], is_blocking=False)
        for source_place, target in step.copies:
            self._copy(source_place, target, turn)
        queue.finish()
        self.turn = turn ^ 1 if step.turns else 0
        return self.outputs

    def _copy(self, source: Place, target: Place, turn: int) -> None:
        self._cl.enqueue_copy(
            self.queue,
            self.buffers[target.space],
            self.buffers[source.space],
            byte_count=source.nbytes,
            src_offset=source.offsets[turn],
            dst_offset=target.offsets[turn],
        )

    def get(self) -> dict[str, Array]:
        values = {state.name: np.empty(state.shape, state.dtype) for state in self._contract.states}
        for name, array in values.items():
            offset = self._program.step_plan.states[name].offsets[self.turn]
            self._cl.enqueue_copy(self.queue, array, self.buffers["state"], src_offset=offset, is_blocking=True)
        return values

    def set(self, values: Mapping[str, Array]) -> None:
        for name, place in self._program.step_plan.states.items():
            array = np.ascontiguousarray(values[name])
            self._cl.enqueue_copy(
                self.queue, self.buffers["state"], array, dst_offset=place.offsets[self.turn], is_blocking=True
            )

    def rows(self, rows: Sequence[int]) -> dict[str, Array]:
        values = {s.name: np.empty((len(rows), *s.shape[1:]), s.dtype) for s in self._contract.states}
        for name, array in values.items():
            for index, row in enumerate(rows):
                offset, _ = self._span(name, row, 1)
                source, one = self.buffers["state"], array[index : index + 1]
                self._cl.enqueue_copy(self.queue, one, source, src_offset=offset, is_blocking=False)
        self.queue.finish()
        return values

    def set_rows(self, rows: Sequence[int], values: Mapping[str, Array]) -> None:
        for state in self._contract.states:
            array = np.ascontiguousarray(np.broadcast_to(values[state.name], (len(rows), *state.shape[1:])))
            for index, row in enumerate(rows):
                offset, _ = self._span(state.name, row, 1)
                target, one = self.buffers["state"], array[index : index + 1]
                self._cl.enqueue_copy(self.queue, target, one, dst_offset=offset, is_blocking=True)

    def keep(self, rows: Sequence[int]) -> Callable[[], None]:
        """On the device: copies that the queue orders before and after the step."""
        if "spare" not in self.buffers:
            self.buffers["spare"] = self._program.spare()
        before = self._spans(rows)
        self._move("state", before, "spare", before)
        return lambda: self._move("spare", before, "state", self._spans(rows))

    def _span(self, name: str, first: int, count: int) -> tuple[int, int]:
        """Offset and bytes of some rows of a state, where it lies now."""
        place, batch = self._program.step_plan.states[name], self._contract.batch
        stride = place.nbytes // batch
        return place.offsets[self.turn] + first * stride, count * stride

    def _spans(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        return [self._span(state.name, *span) for state in self._contract.states for span in spans(rows)]

    def _move(self, source: str, before: list[tuple[int, int]], target: str, after: list[tuple[int, int]]) -> None:
        """Copy stretches of one buffer to those of another."""
        for (offset, size), (goal, _) in zip(before, after, strict=True):
            self._cl.enqueue_copy(
                self.queue,
                self.buffers[target],
                self.buffers[source],
                byte_count=size,
                src_offset=offset,
                dst_offset=goal,
            )

    def reset(self) -> None:
        zeros = np.zeros(self._program.step_plan.sizes["state"], np.uint8)
        self._cl.enqueue_copy(self.queue, self.buffers["state"], zeros, is_blocking=True)
        self.turn = 0
        self.set(self._program.start)


class OpenclProgram(Program):
    """Kernels built for one device, and weights on it, shared by streams."""

    runtime = "opencl"

    def __init__(
        self, contract: Contract, step: Step, text: str, weights: bytes, start: Mapping[str, Array], device: Any
    ) -> None:
        import pyopencl as cl

        self.contract, self.step_plan, self.start, self.device = contract, step, dict(start), device
        self.weight_bytes = step.sizes["weights"]
        check_version(device)
        check_room(device, sum(step.sizes.values()), max(step.sizes.values()), contract.model.name)
        try:
            self.context = cl.Context([device])
            self.built = cl.Program(self.context, text).build()
            copied = cl.mem_flags.READ_ONLY | cl.mem_flags.COPY_HOST_PTR
            self.weights = cl.Buffer(self.context, copied, hostbuf=np.frombuffer(weights, np.uint8))
        except cl.Error as error:
            raise DeviceError(
                f"{described(device)} refuses the program: {first_line(error)}; update its driver"
            ) from error
        known = {kernel.function_name for kernel in self.built.all_kernels()}
        missing = sorted({launch.kernel for launch in step.launches} - known)
        if missing:
            raise ModelFileError(f"the kernels have no {missing[0]}, which the step launches; compile the model again")

    def new_state(self) -> OpenclState:
        import pyopencl as cl

        try:
            return OpenclState(self)
        except cl.Error as error:
            sizes = self.step_plan.sizes
            raise DeviceError(
                f"{described(self.device)} has no room for another stream: {first_line(error)}; it takes "
                f"{human_bytes(sizes['arena'] + sizes['state'])}, the device has "
                f"{human_bytes(int(self.device.global_mem_size))} for all. Let other streams go"
            ) from error

    def spare(self) -> Any:
        """A buffer for the streams of a state that pause."""
        import pyopencl as cl

        size = self.step_plan.sizes["state"]
        try:
            return cl.Buffer(self.context, cl.mem_flags.READ_WRITE, size)
        except cl.Error as error:
            raise DeviceError(
                f"{described(self.device)} has no room for streams that pause: {first_line(error)}; they take "
                f"{human_bytes(size)} beside their state. Let other streams go"
            ) from error

    def step(self, inputs: Mapping[str, Array], state: StateBlock) -> dict[str, Array]:
        import pyopencl as cl

        assert isinstance(state, OpenclState)
        try:
            return state.run(inputs)
        except cl.Error as error:
            raise DeviceError(f"{described(self.device)} failed in a step: {first_line(error)}") from error
