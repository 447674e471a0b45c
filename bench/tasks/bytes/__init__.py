"""Byte-level language models of Python source: data, training, measurement. `python -m bench.tasks.bytes --help`."""
