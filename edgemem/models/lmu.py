"""Legendre Memory Unit networks: features in, features out, one row per frame.

y = W stack(x) + b, the stack being `layers` of LMUCell (Voelker et al. 2019), each `width` hidden units wide,
or, with `parallel`, of the feed-forward LMU (Chilkuri & Eliasmith 2021; Liu et al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from edgemem.cells.legendre import LMU, LMUCell
from edgemem.errors import ConfigError
from edgemem.models import ModelSpec, at_least
from edgemem.module import Composite, Run
from edgemem.state import Port


@dataclass(frozen=True)
class LMUConfig:
    """Sizes of `lmu`. `channels` counts the memories of a parallel layer; the original cell has one."""

    layers: int = 2
    width: int = 64
    order: int = 16
    window: float = 64.0  # steps that a memory spans
    features: int = 16
    outputs: int = 16
    parallel: bool = False
    channels: int = 1

    def __post_init__(self) -> None:
        at_least(self, layers=1, width=1, order=1, features=1, outputs=1, channels=1)
        check_window(self, self.window)
        if self.channels > 1 and not self.parallel:
            raise ConfigError(
                f"channels must be 1 for the original cell, got {self.channels}; set parallel=true for more"
            )


def check_window(config: object, window: float) -> None:
    """Refuse a memory that spans less than one step.

    Raises:
        ConfigError: naming the configuration and the value.
    """
    if not 1.0 <= window <= 1e6:
        raise ConfigError(f"window must be from 1 to 1000000 steps, got {window}")


class LMUNetwork(Composite):
    """x [batch, time, features] to y [batch, time, outputs]."""

    def __init__(self, config: LMUConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            layer(config, config.width if index else config.features) for index in range(config.layers)
        )
        self.head = nn.Linear(config.width, config.outputs)
        self.inputs = (Port("x", (config.features,)),)
        self.outputs = (Port("y", (config.outputs,), role="values"),)

    def flow(self, x: Tensor, run: Run) -> Tensor:
        for index in range(len(self.layers)):
            x = run(f"layers.{index}", x)
        y: Tensor = self.head(x)
        return y


def layer(config: LMUConfig, inputs: int) -> LMU | LMUCell:
    """One layer that reads `inputs` numbers a frame."""
    if config.parallel:
        return LMU(inputs, config.order, config.window, outputs=config.width, channels=config.channels)
    return LMUCell(inputs, config.width, config.order, config.window)


MODELS = (
    ModelSpec(
        name="lmu",
        family="lmu",
        paper="Voelker, Kajić & Eliasmith, Legendre Memory Units, NeurIPS 2019",
        summary="Stack of Legendre Memory Units, original or parallel; features in, features out",
        config=LMUConfig,
        build=LMUNetwork,
    ),
)
