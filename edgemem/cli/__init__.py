"""The `edgemem` command."""
