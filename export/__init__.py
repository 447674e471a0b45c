"""Torch modules to ONNX step graphs with explicit state."""
