"""What a group is where nobody says: devices that communicate cheaply among themselves."""

from types import SimpleNamespace
from typing import Any

import jax
import pytest

from lsgd_jax.cluster import processes


@pytest.mark.parametrize(("platform", "groups"), [("tpu", 2), ("gpu", 4), ("cpu", 4)])
def test_a_group_is_a_slice_of_tpus_whatever_its_hosts_and_a_machine_elsewhere(
    platform: str, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four hosts of two devices; two of them are a slice, and their numbers do not follow it."""
    found = [SimpleNamespace(platform=platform, slice_index=i // 2 % 2, process_index=i // 2, id=i) for i in range(8)]
    monkeypatch.setattr(jax, "devices", lambda: found)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr(processes, "alone", lambda: False)
    monkeypatch.setattr(processes, "count", lambda: 4)
    monkeypatch.setattr(processes, "hosts", lambda: [f"host{number}" for number in range(4)])
    assert processes.machines() == groups
    assert processes.default_shape({}) == {"groups": groups, "workers": 8 // groups}
    assert processes.default_shape({}, devices_per_worker=2) == {"groups": groups, "workers": 4 // groups}
    ordered: list[Any] = processes.devices()
    together = [device.slice_index if platform == "tpu" else device.process_index for device in ordered]
    assert together == sorted(together)
