"""How long communication takes: latency and bandwidth of links, and a ledger.

The alpha-beta model (Hockney, 1994): a collective takes ``messages * latency +
bytes / bandwidth``, where messages and bytes are those that one worker sends. A
group is a node. A ring over several nodes goes through the workers of one node
after those of another, so that one worker of a node sends to the next node and
has its network card for itself; all links work at the same time, and the slowest
sets the pace. A permutation is taken to be one between neighbours of such a ring.
Rings side by side over the same nodes share the card evenly. No worker waits for a
slow one. Communication and computation overlap only for methods that are `overlapped`.
"""

from typing import NamedTuple

from lsgd_jax.accounting.ledger import Entry, Ledger
from lsgd_jax.accounting.traffic import Collective
from lsgd_jax.collectives import GROUP


class Link(NamedTuple):
    """A link between two workers or two nodes, in each direction.

    Attributes:
      latency: seconds that a message takes, however short it is.
      bandwidth: bytes in a second.
    """

    latency: float
    bandwidth: float


class Network(NamedTuple):
    """What connects workers.

    Attributes:
      inside: the link of each worker to the others of its node.
      between: the link of a whole node to the other nodes.
    """

    inside: Link
    between: Link


PCIE_4 = Link(latency=10e-6, bandwidth=25e9)
NVLINK_4 = Link(latency=5e-6, bandwidth=450e9)

# Nominal rates, and round figures for what a message costs in software: to compare by order of magnitude.
# `fit_link` has the figures of a network at hand.
NETWORKS = {
    "100 Mb/s internet": Network(PCIE_4, Link(latency=50e-3, bandwidth=100e6 / 8)),
    "1 Gb/s Ethernet": Network(PCIE_4, Link(latency=100e-6, bandwidth=1e9 / 8)),
    "10 Gb/s Ethernet": Network(PCIE_4, Link(latency=50e-6, bandwidth=10e9 / 8)),
    "400 Gb/s InfiniBand": Network(NVLINK_4, Link(latency=5e-6, bandwidth=400e9 / 8)),
}


def link_seconds(link: Link, messages: float, sent: float) -> float:
    """Seconds in which one worker sends so many messages, of so many bytes together, one after the other."""
    return messages * link.latency + sent / link.bandwidth


def collective_seconds(collective: Collective, sends: Ledger, network: Network) -> float:
    """Seconds of a collective: inside each node, or at the pace of the network between nodes."""
    if GROUP not in collective.axes or sends.groups == 1:
        return link_seconds(network.inside, collective.messages, collective.sent)
    return link_seconds(network.between, collective.messages, collective.sent * sends.rings(collective))


def entry_seconds(entry: Entry, sends: Ledger, network: Network) -> float:
    """Seconds of a communication."""
    return sum(collective_seconds(collective, sends, network) for collective in entry.collectives)


def communication_seconds(sends: Ledger, network: Network) -> float:
    """Seconds of communication in each local step, on average over a long run, hidden or not."""
    return sum(entry_seconds(entry, sends, network) / entry.period for entry in sends.entries)


def step_seconds(sends: Ledger, network: Network, compute_seconds: float) -> float:
    """Seconds of a local step, on average over a long run.

    A communication of a method that is `overlapped` has as many local steps to hide behind as it takes effect later,
    and what is longer shows; and all of them together are not faster than the links::

      max(compute + what shows, overlapped communication) + other communication
    """
    shows = hidden = other = 0.0
    for entry in sends.entries:
        seconds = entry_seconds(entry, sends, network)
        if entry.delay:
            hidden += seconds / entry.period
            shows += max(0.0, seconds - entry.delay * compute_seconds) / entry.period
        else:
            other += seconds / entry.period
    return max(compute_seconds + shows, hidden) + other


def run_seconds(sends: Ledger, network: Network, *, compute_seconds: float, steps: float) -> float:
    """Wall-clock of a run, with communications at their average rate even where it is shorter than a period.

    Args:
      sends: the ledger of the method.
      network: what connects the workers.
      compute_seconds: of one local step, without communication.
      steps: local steps of each worker.

    Returns:
      Seconds. Evaluation and checkpoints are not in it.
    """
    return steps * step_seconds(sends, network, compute_seconds)
