"""All experiments on the theory as one command: what it runs, reports and returns."""

import importlib
import signal
from pathlib import Path
from types import ModuleType

import pytest

from lsgd_jax.cluster.stopping import StopRequest

import theory  # isort: skip

STUB = '''"""{title}

More."""
import pathlib, sys
from claims import Claim, conclude
folder = pathlib.Path(sys.argv[1].removeprefix("--workdir="))
folder.mkdir(parents=True, exist_ok=True)
(folder / "drawn.png").touch()
(folder / "numbers.csv").touch()
{body}
seed = " ".join(sys.argv[2:]) or "no seed"
sys.exit(conclude(folder, [Claim("{title}", seed, {held}), Claim("its end", "far", False, expected=False)]))
'''


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with fresh flags, over two experiments of our own."""
    scripts = Path(theory.__file__).parent
    module = importlib.reload(theory)
    monkeypatch.setattr(module, "SCRIPTS", tmp_path / "scripts")
    monkeypatch.setattr(module, "EXPERIMENTS", {"first": True, "second": False})
    monkeypatch.setenv("PYTHONPATH", str(scripts))
    (tmp_path / "scripts").mkdir()
    make(tmp_path, "first", "One")
    make(tmp_path, "second", "Two")
    return module


def make(folder: Path, name: str, title: str, *, held: bool = True, body: str = "") -> None:
    (folder / "scripts" / f"{name}.py").write_text(STUB.format(title=title, held=held, body=body))


def test_every_experiment_of_the_list_has_its_claims_and_figures_in_the_report(
    script: ModuleType, tmp_path: Path
) -> None:
    assert script.main(["theory.py", f"--workdir={tmp_path}/out/theory", "--seed=7"]) == 0
    report = (tmp_path / "out/theory.md").read_text()
    assert "All 2 claims that should hold do; 2 more show where claims end." in report
    assert report.index("## One") < report.index("## Two")
    assert "\n## One\n\nMore.\n" in report
    assert "| One | --seed=7 | yes |" in report
    assert "| Two | no seed | yes |" in report, "it draws nothing"
    assert "| its end | far | no, as expected |" in report
    for name in ("first", "second"):
        assert f"![drawn](theory/{name}/drawn.png)" in report
        assert f"[numbers.csv](theory/{name}/numbers.csv)" in report
    assert f"`python experiments/first.py --workdir={tmp_path}/out/theory/first --seed=7`" in report
    for fact in ("--seed=7", "s of CPU time", "jax ", "python ", "commit "):
        assert fact in report


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"held": False}, "| One | --seed=0 | **no** |"),
        ({"body": "sys.exit(2)"}, "**did not finish: exit code 2**"),
        ({"body": "raise SystemError"}, "**did not finish: exit code 1**"),
        ({"body": "import os; os.kill(os.getpid(), 9)"}, "**did not finish: exit code -9**"),
    ],
)
def test_what_fails_is_told_after_everything_has_run(
    script: ModuleType, tmp_path: Path, broken: dict, told: str
) -> None:
    arguments = ["theory.py", f"--workdir={tmp_path}/theory"]
    assert script.main(arguments) == 0
    make(tmp_path, "first", "One", **broken)
    assert script.main(arguments) == 1
    report = (tmp_path / "theory.md").read_text()
    assert told in report
    assert "**Not everything held.** first: " in report
    assert "| Two | no seed | yes |" in report


def test_a_script_that_is_missing_is_told_in_the_report(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "scripts/first.py").unlink()
    assert script.main(["theory.py", f"--workdir={tmp_path}/theory"]) == 1
    report = (tmp_path / "theory.md").read_text()
    assert "## first\n" in report
    assert "**did not finish: exit code 2**" in report
    assert "| Two | no seed | yes |" in report


def test_an_experiment_ends_with_the_script_that_has_started_it(script: ModuleType, tmp_path: Path) -> None:
    make(tmp_path, "first", "One", body="import signal; signal.pause()")
    stop = StopRequest()
    stop.ask()
    assert script.run("first", tmp_path / "theory", 0, stop).code == -signal.SIGTERM


def test_files_of_an_earlier_run_do_not_get_into_the_report(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "theory/first").mkdir(parents=True)
    for name in ("claims.json", "stale.png", "stale.csv"):
        (tmp_path / "theory/first" / name).write_text("[]")
    assert script.main(["theory.py", f"--workdir={tmp_path}/theory"]) == 0
    assert "stale" not in (tmp_path / "theory.md").read_text()


def test_a_report_that_cannot_be_written_is_told_in_one_line(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theory.md").mkdir()
    assert script.main(["theory.py", f"--workdir={tmp_path}/theory"]) == 2
    assert capsys.readouterr().err == (
        f"theory.py: error: cannot write {tmp_path}/theory.md (Is a directory): choose another --workdir\n"
    )


def test_every_experiment_has_a_script_and_only_those_that_draw_numbers_take_a_seed() -> None:
    for name, draws in theory.EXPERIMENTS.items():
        script = importlib.import_module(name)
        assert {flag.name for flag in script.TABLE} >= {"workdir", *(["seed"] if draws else [])}
        assert ("seed" in {flag.name for flag in script.TABLE}) == draws


@pytest.mark.parametrize("argument", ["--seed=-1", "--workdir=/dev/null/x", "x"])
def test_a_mistake_is_told_in_one_line(script: ModuleType, capsys: pytest.CaptureFixture[str], argument: str) -> None:
    assert script.main(["theory.py", argument]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("theory.py: error: ")
    assert argument.split("=")[0] in err
    assert err.count("\n") == 1


def test_claims_that_were_cut_off_are_those_of_an_experiment_that_did_not_finish(tmp_path: Path) -> None:
    (tmp_path / "claims.json").write_text('[{"text": "One", "mea')
    assert theory.claims_in(tmp_path / "claims.json") == []
