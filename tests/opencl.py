"""What tests of OpenCL share: whether PoCL is there."""

from __future__ import annotations


def has_pocl() -> bool:
    """Whether OpenCL on this machine's processor can be used from Python."""
    try:
        import pyopencl as cl
    except ImportError:
        return False
    try:
        return any("portable" in platform.name.lower() for platform in cl.get_platforms())
    except cl.Error:
        return False
