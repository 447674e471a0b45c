"""Quantized models: their patterns recognised, and kernels that read weights in the form in which they are stored.

weights      int8, half, 4-bit and codes: what is stored, how a kernel reads it
recogniser   ONNX patterns -> operators of edgemem's own
products     these operators as tensor expressions, weights packed for the core
"""
