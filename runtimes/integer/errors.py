"""What has no integer kernel."""

from edgemem.errors import CompileError


class NotInteger(CompileError):
    """An operator without an integer kernel; the message names it."""
