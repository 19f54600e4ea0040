"""`python -m lsgd_jax.doctor`."""

import importlib.metadata
from typing import Any

import jax
import pytest

from lsgd_jax import doctor

METADATA = ["jax!=0.10.2,>=0.10.1", 'nowhere-to-be-found>=1; extra == "train"', 'numpy>=1; extra == "train"',
            "jax[tpu]; extra == 'tpu'", 'lsgd_jax[train]; python_version > "3" and extra == "test"']  # fmt: skip


def test_versions_devices_and_features_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    told = capsys.readouterr().out
    for package in ("lsgd_jax", "jax", "jaxlib", "numpy", "optax"):
        assert f"\n{package} {importlib.metadata.version(package)}\n" in told
    assert f"devices: {jax.device_count()} × cpu, cpu\n" in told
    assert f"\n{doctor.FEATURES['train']}: installed\n  absl-py {importlib.metadata.version('absl-py')}, " in told


def test_what_is_missing_is_told_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda package: METADATA)
    assert doctor.requirements(METADATA) == {
        **{None: {"jax"}, "train": {"nowhere-to-be-found", "numpy"}},
        **{"tpu": {"jax[tpu]"}, "test": {"lsgd_jax[train]"}},
    }
    assert doctor.main([]) == 0
    line = f"{doctor.FEATURES['train']}: missing: nowhere-to-be-found (pip install 'lsgd_jax[train]')\n"
    assert f"{line}  numpy {importlib.metadata.version('numpy')}\n" in capsys.readouterr().out


def test_of_an_extra_of_jax_the_plugin_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda package: METADATA)
    monkeypatch.setattr(doctor, "version", {"libtpu": "0.0.30"}.get)
    assert doctor.main([]) == 0
    assert f"{doctor.FEATURES['tpu']}: installed\n  libtpu 0.0.30\n" in capsys.readouterr().out


def test_without_devices_it_says_why_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> Any:
        raise RuntimeError("Unable to initialize backend 'tpu'\nand more")

    monkeypatch.setattr(jax, "devices", none)
    assert doctor.main([]) == 1
    assert "\nno devices: Unable to initialize backend 'tpu'\n" in capsys.readouterr().out
