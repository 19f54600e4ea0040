"""The networks of `peer_torch.py` as a good PyTorch user would write them; needs torch alone."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

HEAD = 64  # the width of an attention head


class Cnn7(nn.Module):
    """The paper's 7-layer CNN, as in `lsgd_jax.models`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 64, 5), nn.Conv2d(64, 128, 5), nn.Conv2d(128, 64, 3)
        self.dense, self.logits = nn.Linear(256, 256), nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.conv3(x)).flatten(1)
        return self.logits(F.dropout(F.relu(self.dense(x)), 0.5))


class Block(nn.Module):
    """Causal self-attention, then an MLP of 4 × width, each on a normalized copy of what it adds to."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        heads = self.attend(self.norm1(x)).view(batch, length, 3, width // HEAD, HEAD)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        attended = attended.transpose(1, 2).reshape(batch, length, width)
        x = x + F.dropout(self.project(attended), self.dropout, self.training)
        hidden = F.gelu(self.expand(self.norm2(x)), approximate="tanh")
        return x + F.dropout(self.contract(hidden), self.dropout, self.training)


class Transformer(nn.Module):
    """Blocks between an embedding and its transpose, as in `lsgd_jax.models.transformer`."""

    def __init__(self, vocabulary: int, length: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = dropout

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)


class Lstm(nn.Module):
    """`nn.LSTM` between an embedding and its transpose.

    As `lsgd_jax.models.lstm`, but for the second bias vector of each layer of `nn.LSTM`,
    and for dropout, whose masks are drawn anew at each time step. The text begins anew
    with every window.
    """

    def __init__(self, vocabulary: int, length: int, width: int, layers: int, dropout: float) -> None:
        del length  # any will do
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.recurrent = nn.LSTM(width, width, layers, dropout=dropout)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.dropout = dropout

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = F.dropout(self.embedding(tokens.T), self.dropout, self.training)
        outputs, _ = self.recurrent(x)
        outputs = F.dropout(outputs, self.dropout, self.training)
        return F.linear(outputs, self.embedding.weight, self.bias).transpose(0, 1)


def language_net(workload: dict[str, Any]) -> nn.Module:
    """The language model that `peer_torch.py` asks for."""
    make = {"transformer": Transformer, "lstm": Lstm}[workload["model"]]
    return make(*(workload[size] for size in ("vocabulary", "length", "width", "layers", "dropout")))


def next_token_loss(net: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """The mean cross entropy of each token after those before it, of int[batch, length + 1]."""
    logits = net(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


def parameter_count(net: nn.Module) -> int:
    """How many numbers are trained; tied weights count once."""
    return sum(parameter.numel() for parameter in net.parameters())
