"""Quantization of step graphs that knows about their state."""
