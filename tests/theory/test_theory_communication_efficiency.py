"""What methods send: figures worked out by hand, and the claims for few workers."""

import csv
import importlib
from pathlib import Path
from types import ModuleType

import jax
import pytest

from lsgd_jax.models import make_model

import communication_efficiency  # isort: skip


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    importlib.reload(communication_efficiency)  # flags keep what they were given
    for name in ("resnet20", "vgg16"):
        monkeypatch.delitem(communication_efficiency.MODELS, name)
    return communication_efficiency


def test_bytes_are_those_worked_out_by_hand(script: ModuleType) -> None:
    model, tiny, count = 4 * 1000, 8, 4  # a score and a rank; how many workers are in a mean
    assert script.as_collectives("lsgd", 1000, 1) == (2 * 3 * (model + tiny) / 64, 0)
    assert script.as_collectives("easgd", 1000, 1) == (2 * 3 * (model + count) / 64, 0)
    local, everywhere = 4 * 2 * 3 * (model + tiny) / 64, 2 * 15 * (model + tiny) / 128
    assert script.as_collectives("lsgd", 1000, 4) == pytest.approx((local + everywhere, everywhere))
    assert script.as_collectives("data_parallel", 1000, 4) == (2 * 15 * model, 2 * 15 * model)
    assert script.as_messages("lsgd", 1000, 1) == (3 * (model + tiny) / 64, 0)
    local, everywhere = 4 * 3 * (model + tiny) / 64, 15 * (model + tiny) / 128
    assert script.as_messages("lsgd", 1000, 4) == pytest.approx((local + everywhere, everywhere))
    assert script.as_messages("easgd", 1000, 4) == (2 * 16 * model / 64,) * 2
    assert script.as_messages("downpour", 1000, 4) == (2 * 16 * model,) * 2


@pytest.mark.parametrize("name", communication_efficiency.MODELS)
def test_models_have_as_many_parameters_as_the_library_s(name: str) -> None:
    side, classes = {"cnn7": (28, 10), "resnet50": (224, 1000)}.get(name, (32, 10))
    params, _ = jax.eval_shape(make_model(name, (side, side, 3), classes).init, jax.random.key(0))
    counted = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert counted == communication_efficiency.MODELS[name].parameters


def test_messages_of_leaders_are_fewer_and_masked_sums_are_not(script: ModuleType, tmp_path: Path) -> None:
    assert script.main(["communication_efficiency.py", "--workers=16,4", f"--workdir={tmp_path}/new"]) == 0
    with (tmp_path / "new/communication_efficiency.csv").open() as file:
        sent = {
            (row["model"], row["workers"], row["way"], row["method"]): float(row["sent"])
            for row in csv.DictReader(file)
        }
    assert len(sent) == 2 * 2 * (5 + 4)
    for size in ("4", "16"):
        for model in script.MODELS:
            assert sent[model, size, "messages", "lsgd"] < 0.7 * sent[model, size, "messages", "easgd"]
            assert sent[model, size, "collectives", "lsgd"] > sent[model, size, "collectives", "easgd"]
    assert (tmp_path / "new/communication_efficiency.png").stat().st_size > 30_000


def test_the_claim_fails_for_a_method_that_sends_all_models(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = script.as_messages
    monkeypatch.setattr(script, "as_messages", lambda method, *sizes: honest("easgd", *sizes))
    assert script.main(["communication_efficiency.py", "--workers=4", f"--workdir={tmp_path}"]) == 1


@pytest.mark.parametrize(
    "argument", ["--workers=", "--workers=4,6", "--workers=x", "--workers=2048", "--workdir=/dev/null/x"]
)
def test_a_mistake_is_told_in_one_line(script: ModuleType, capsys: pytest.CaptureFixture[str], argument: str) -> None:
    assert script.main(["communication_efficiency.py", argument]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("communication_efficiency.py: error: ")
    assert argument.split(",")[0] in err
    assert err.count("\n") == 1
