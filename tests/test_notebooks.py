"""The notebooks run for real, what their text says of the results is so, and they can be read without running them."""

import pathlib
import re
import textwrap

import nbformat
import pytest
from nbclient import NotebookClient
from thorough import mostly

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
SITE = (FOLDER.parent / "mkdocs.yml").read_text()

# What the text says, with some room for rounding; run as the last cell.
FACTS = {
    "own_model_and_data": """
        assert result.summary["test_error"] < 0.05 and result.summary["best"] in ("center", "leader")
        assert more.summary["step"] == 1200 and len(more.metrics) > len(result.metrics)
        best = more.summary["test_error" if more.summary["best"] == "center" else "leader_test_error"]
        assert float(error(net, test).mean()) == pytest.approx(best, abs=1e-6), "what was read back is what was trained"
        assert row["validation_loss"] < np.log(3) and row["leader_validation_loss"] < np.log(3)
    """,
    "compare_methods": """
        assert len([line for line in log if line.startswith("search")]) == 8
        assert len([line for line in log if line.startswith("test")]) == 9
        for method in ("lsgd", "local_sgd", "data_parallel"):
            assert f"| {method} |" in table[: table.index("\\n\\n")]
    """,
    "many_machines": """
        assert leaders("one") == leaders("three")
        assert len(rows("one")) == len(rows("three")) > 1
        for one, three in zip(rows("one"), rows("three")):
            assert one["validation_error"] == pytest.approx(three["validation_error"], abs=0.01)
        assert killed and run.returncode == 0
        with open("runs/live/generations.csv") as file:
            generations = list(csv.DictReader(file))
        assert [bool(row["lost"]) for row in generations].count(True) >= 1, "somebody was lost"
        assert generations[-1]["processes"] == "0 1 2", "and came again"
        assert rows("live")[-1]["step"] == 3000
    """,
    "quickstart": """
        assert jax.device_count() == 8
        assert losses.shape == (8, steps)
        assert losses[:, :5].mean() > 2 > 0.1 > losses[:, -10:].mean(), "all scores fall"
        for g, leaders in enumerate(local_leaders):
            assert set(leaders) <= set(range(4 * g, 4 * g + 4)), "a group's leader is one of its own"
        assert global_leaders == [0, 0, 0, 0] and local_leaders[0][:4] == [2, 2, 1, 0]
        lsgd_center, lsgd_workers = errors["lsgd"]
        assert lsgd_center < np.mean(lsgd_workers) < np.mean(errors["independent"][1]), "communication helps"
        assert len(set(errors["local_sgd"][1])) == 1, "the workers have just been averaged"
        sent = {m: ledger(m, params, groups=2, workers=4).bytes_sent(steps) for m in (method, averaging, every_step)}
        assert sent[method] == pytest.approx(sent[averaging], rel=0.01)
        assert 13 < sent[every_step] / sent[method] < 15
        assert summary["test_error"] < 0.07 and summary["test_error"] < summary["leader_test_error"]
        assert (predictions == digits.target[:10]).sum() >= 8
    """,
    "leader_vs_average": """
        last = {name: (run[0][-1].min(), completion(run[1][-1].mean(axis=0))) for name, run in runs.items()}
        assert max(last["LGD"]) < 1e-6 and max(last["averaging"]) < 1e-6, "all workers share a minimum"
        assert last["nothing"][0] < 1e-6 and last["nothing"][1] > 1e4, "good workers with a bad mean"
        assert last["EAGD"][0] > 100, "held back by the center"
        slopes = [np.linalg.norm(jax.grad(completion)(runs[name][1][-1, 0])) for name in ("LGD", "EAGD")]
        assert slopes[0] < 1e-2 < 100 < slopes[1], "elastic averaging rests where the gradient is not zero"
        assert solved["LGD"].all() and solved["EAGD"].sum() < 12
        in_valley = {name: (values < -0.21).all(axis=1) for name, (values, _) in paths.items()}
        assert in_valley["LGD"][60] and in_valley["nothing"][60]
        assert not in_valley["EAGD"][120] and not in_valley["averaging"][120]
        assert in_valley["EAGD"][-1] and in_valley["averaging"][-1]
        assert landscape(paths["nothing"][1][-1].mean(axis=0)) > 0.99, "the mean is the peak"
        lsgd_worker, lsgd_mean = jitter["LSGD, λ = 0.1"]
        lone_worker, lone_mean = jitter["nothing"]
        assert lone_mean == pytest.approx(lone_worker / 8, rel=0.2), "noise averages out"
        assert lsgd_worker < lone_worker and lsgd_mean > 2 * lone_mean, "shared noise does not"
    """,
}

PICTURES = {"quickstart": 3, "leader_vs_average": 3, "own_model_and_data": 2}


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_is_tested() -> None:
    assert [path.stem for path in PATHS] == sorted(FACTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly(FACTS, "quickstart", "leader_vs_average"))
def test_a_notebook_runs_from_top_to_bottom_and_its_text_is_true(name: str, tmp_path: pathlib.Path) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("import pytest\n" + textwrap.dedent(FACTS[name])))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_outputs_are_kept_small_and_free_of_a_machines_paths(path: pathlib.Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "run in order, from a fresh kernel"
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= PICTURES.get(path.stem, 1)
    assert path.stat().st_size < 400_000
    texts = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs]
    assert not re.search(r"/(home|root|tmp|Users|usr)/", "".join(texts))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_opens_on_colab_and_installs_the_package_from_the_repository_of_the_site(path: pathlib.Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    badge = re.search(r"\(https://colab\.research\.google\.com/github/(.+)/blob/main/(.+)\)", notebook.cells[0].source)
    assert badge is not None
    assert re.findall(r"^repo_url: (.+)$", SITE, re.MULTILINE) == [f"https://github.com/{badge[1]}"]
    assert badge[2] == f"notebooks/{path.name}"
    first = code_cells(notebook)[0].source
    assert 'if "google.colab" in sys.modules:' in first
    assert f'@ git+https://github.com/{badge[1]}"' in first
