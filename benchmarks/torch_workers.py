"""A worker of `torch_peer_side.py`: a network, its optimizer and its batch, which lies ready."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch_nets import Cnn7, language_net, next_token_loss

FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


class Worker(Protocol):
    """What takes local steps."""

    net: nn.Module

    def step(self) -> None:
        """One step of the optimizer."""


class ImageWorker:
    """cnn7 with Nesterov momentum and weight decay, on random images."""

    def __init__(self, batch_size: int, layout: str, dtype: str) -> None:
        self.net = Cnn7().to(memory_format=FORMATS[layout])
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-4, foreach=True
        )
        self.images = torch.randn(batch_size, 3, 28, 28).contiguous(memory_format=FORMATS[layout])
        self.labels = torch.randint(0, 10, (batch_size,))
        self.dtype = dtype

    def step(self) -> None:
        """One step of the optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == "bfloat16"):
            loss = F.cross_entropy(self.net(self.images), self.labels)
        loss.backward()
        self.optimizer.step()


class TextWorker:
    """A language model with AdamW, on windows of random tokens.

    Args:
      text: what `peer_torch.py` says of the workload: model, batch size, sizes and rates.
      way: "eager" or "compiled".
      dtype: "float32", or "bfloat16" for that of autocast.
    """

    def __init__(self, text: dict[str, Any], way: str, dtype: str) -> None:
        self.net = language_net(text)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=text["learning_rate"], weight_decay=text["weight_decay"], fused=True
        )
        self.windows = torch.randint(0, text["vocabulary"], (text["batch_size"], text["length"] + 1))
        self.dtype = dtype
        if way == "compiled":
            self.net.compile()

    def step(self) -> None:
        """One step of the optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == "bfloat16"):
            loss = next_token_loss(self.net, self.windows)
        loss.backward()
        self.optimizer.step()
