"""Streaming-memory models from PyTorch to the edge, with state under a contract."""

