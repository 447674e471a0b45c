"""What all oracles share: plain float64 NumPy on single vectors."""

from __future__ import annotations

from math import erf

import numpy as np

Parameters = dict[str, np.ndarray]


def sub(parameters: Parameters, name: str) -> Parameters:
    """The parameters of one part, under the names that the part itself uses."""
    return {key[len(name) + 1 :]: value for key, value in parameters.items() if key.startswith(name + ".")}


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """One vector x [width], normalised to mean 0 and variance 1, then scaled and shifted."""
    mean = x.sum() / x.size
    variance = ((x - mean) ** 2).sum() / x.size
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0)


def gelu(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * u * (1.0 + erf(u / 2.0**0.5)) for u in x])


def softmax(scores: list[float]) -> np.ndarray:
    """Weights of a list of scores."""
    powers = np.exp(np.array(scores) - max(scores))
    return powers / powers.sum()


def linear(part: Parameters, x: np.ndarray) -> np.ndarray:
    """`weight` [out, in] times x [in], plus `bias` [out] where there is one."""
    return part["weight"] @ x + part.get("bias", 0.0)
