"""Engines that run a step graph: one file each, named by `--runtime`."""
