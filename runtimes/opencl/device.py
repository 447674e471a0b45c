"""Which OpenCL device a program runs on."""

from __future__ import annotations

import re
from typing import Any

from edgemem.errors import DeviceError, MissingDependency
from edgemem.text import human_bytes

INSTALL = "pip install 'edgemem[opencl]', and the driver of your device (of the CPU: apt install pocl-opencl-icd)"

LEAST = (1, 2)


def devices() -> list[Any]:
    """Every OpenCL device of this machine.

    Raises:
        MissingDependency: pyopencl is not installed.
        DeviceError: no driver is installed.
    """
    try:
        import pyopencl
    except ImportError as error:
        raise MissingDependency(f"the opencl runtime needs pyopencl; install it with: {INSTALL}") from error
    try:
        platforms = pyopencl.get_platforms()
        return [device for platform in platforms for device in platform.get_devices()]
    except pyopencl.Error as error:
        raise DeviceError(f"no OpenCL driver was found ({error}); install one: {INSTALL}") from error


def device(pattern: str | None) -> Any:
    """The first device whose own name or platform's name has `pattern` in it, whatever its case; the first if None.

    Raises:
        MissingDependency, DeviceError: there is none.
    """
    there = devices()
    for candidate in there:
        if pattern is None or pattern.lower() in described(candidate).lower():
            return candidate
    wanted = "a device" if pattern is None else f"a device with {pattern!r} in its name"
    known = ", ".join(described(candidate) for candidate in there) or "none"
    raise DeviceError(f"OpenCL: {wanted} was wanted, this machine has {known}; compile for a board that is here")


def described(device: Any) -> str:
    """Platform and name of a device."""
    return f"{device.platform.name}: {device.name}"


def check_version(device: Any) -> None:
    """Refuse a device whose driver has not what the kernels are written for.

    Raises:
        DeviceError: OpenCL older than 1.2.
    """
    numbers = re.match(r"OpenCL (\d+)\.(\d+)", str(device.version))
    if numbers is None or (int(numbers[1]), int(numbers[2])) < LEAST:
        raise DeviceError(
            f"{described(device)} has a driver that is too old: {device.version} came, OpenCL {LEAST[0]}.{LEAST[1]} "
            "was wanted; update it"
        )


def check_room(device: Any, needed: int, largest: int, model: str) -> None:
    """Refuse a program that the device cannot hold.

    Raises:
        DeviceError: with the bytes needed and the bytes there.
    """
    there, at_once = int(device.global_mem_size), int(device.max_mem_alloc_size)
    if needed > there or largest > at_once:
        raise DeviceError(
            f"{model} does not fit {described(device)}: {human_bytes(needed)} needed, {human_bytes(largest)} of it in "
            f"one buffer; the device has {human_bytes(there)}, {human_bytes(at_once)} in one. Quantize with --scheme w8"
        )
