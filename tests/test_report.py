"""The page of a run and that of a study: complete, safe, alone, and plain about what is missing."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
from study_records import made_up, results_of

from pyro_vae import open_run
from pyro_vae.cli import main
from pyro_vae.plots import plot_differences
from pyro_vae.report import open_folder, write_report
from pyro_vae.report.page import number_table, page, warnings_of, word_table
from pyro_vae.report.study import study_page
from pyro_vae.study import Study

SMALL = [
    "--training.epochs=2",
    "--num-latents=2",
    "decoder:mlp",
    "--decoder.hidden=16",
    "encoder:mlp",
    "--encoder.hidden=16",
]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("runs") / "svi"
    assert main(["fit", f"--out={folder}", *SMALL]) == 0
    return folder


@pytest.fixture(scope="module")
def measured(fitted, tmp_path_factory):
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("runs") / "measured"
    shutil.copytree(fitted, folder)
    assert main(["gaps", str(folder), "--num-data=10"]) == 0
    return folder


@pytest.fixture(autouse=True)
def _single_precision():
    torch.set_default_dtype(torch.float32)


def text_of(html):
    """What a reader sees, without the pictures."""
    plain = re.sub(r"<(style|script)>.*?</\1>|<[^>]*>", " ", html, flags=re.DOTALL)
    for name, letter in {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'", "&amp;": "&"}.items():
        plain = plain.replace(name, letter)
    return " ".join(plain.split())


def is_alone(html):
    """Nothing is asked of a network, and no link leads anywhere."""
    return not re.search(r'(?:src|href|action)="(?!data:)|@import|url\(|<a ', html)


class TestRun:
    def test_everything_is_in_the_page(self, measured):
        run = open_run(measured)
        html = write_report(run).read_text()
        seen = text_of(html)
        for row in run.gaps.rows().values():
            assert f"{row['mean']:.4f}" in seen and f"{row['se']:.4f}" in seen
        assert run.fit.headline in seen
        assert html.count("<img ") == len(list((measured / "figures").glob("*.png"))) >= 8
        assert is_alone(html)
        assert "Gaps by label" in seen and "sortable" in html
        assert '"seed": 0' in seen and f"torch {run.config['versions']['torch']}" in seen
        assert "mlp(hidden=16" in seen

    def test_no_gaps_yet(self, fitted):
        seen = text_of(write_report(fitted).read_text())
        assert f"Gaps were not measured. To measure them: pyro-vae gaps {fitted}" in seen
        assert "is missing" not in seen

    @pytest.mark.parametrize(
        ("piece", "said"),
        [
            ("results.nc", "results.nc is missing (draws and gaps). To make it: pyro-vae resume {0}"),
            ("figures", "figures/elbo.png is missing (the pictures of the fit). To make it: pyro-vae resume {0}"),
            (
                "figures/gaps.png",
                "figures/gaps.png is missing (the pictures of the gaps). To make it: pyro-vae gaps {0} --overwrite",
            ),
            ("metrics.jsonl", "metrics.jsonl is missing (the metrics of every epoch). To make it: pyro-vae fit"),
        ],
    )
    def test_what_is_missing_is_named_with_its_command(self, measured, tmp_path, piece, said):
        folder = tmp_path / "run"
        shutil.copytree(measured, folder)
        if (folder / piece).is_dir():
            shutil.rmtree(folder / piece)
        else:
            (folder / piece).unlink()
        html = write_report(folder).read_text()
        assert said.format(folder) in text_of(html) and is_alone(html)

    def test_what_could_not_be_made_is_named_with_the_reason(self, measured, tmp_path):
        folder = tmp_path / "run"
        shutil.copytree(measured, folder)
        (folder / "not-made.json").write_text('{"figures/posterior.png": "IndexError: <empty>"}')
        html = write_report(folder).read_text()
        said = (
            "figures/posterior.png is missing (it could not be made: IndexError: <empty>). To make it: pyro-vae resume"
        )
        assert f"{said} {folder}" in text_of(html) and is_alone(html)
        for damaged in ("{", "[]"):
            (folder / "not-made.json").write_text(damaged)
            assert "is missing" not in text_of(write_report(folder).read_text())

    def test_a_run_without_its_model(self, measured, tmp_path, capsys):
        folder = tmp_path / "run"
        shutil.copytree(measured, folder)
        (folder / "checkpoint.pt").unlink()
        assert main(["report", str(folder)]) == 2
        said = capsys.readouterr().err
        assert (
            "expected checkpoint.pt, the weights of the run, in its folder; there is none. Fit again: pyro-vae fit"
            in said
        )

    def test_the_command_that_it_names_makes_it(self, fitted, tmp_path, capsys):
        folder = tmp_path / "a run"
        shutil.copytree(fitted, folder)
        (folder / "results.nc").unlink()
        seen = text_of(write_report(folder).read_text())
        command = re.search(r"To make it: pyro-vae resume '(.*?)'", seen)
        assert main(["resume", command[1]]) == 0
        assert (folder / "results.nc").is_file()
        (folder / "metrics.jsonl").unlink()
        seen = text_of(write_report(folder).read_text())
        command = re.search(r"To make it: pyro-vae (fit --config '(.*?)' --out '(.*?)' --overwrite)", seen)
        assert main(["fit", "--config", command[2], "--out", command[3], "--overwrite"]) == 0
        assert (folder / "metrics.jsonl").is_file()
        again, before = (open_run(one).vae.state_dict() for one in (folder, fitted))
        assert all(torch.equal(again[name], before[name]) for name in before)

    def test_a_warning_is_marked_as_one(self, measured, monkeypatch):
        k = torch.tensor([0.1] * 8 + [0.8, 0.9], dtype=torch.float64)
        gaps = made_up([-1.0 - n for n in range(10)], pareto_k=k)
        run = open_run(measured)
        monkeypatch.setattr(type(run), "gaps", gaps)
        warnings = re.findall(r'<p class="warning">(.*?)</p>', write_report(run).read_text())
        (said,) = [warning for warning in warnings if "Pareto k &gt; 0.7" in warning]
        assert said.startswith(
            "<strong>Warning.</strong> Pareto k &gt; 0.7 for 2 of 10 datapoints: do not trust log p(x)"
        )
        assert "there (datapoints 9, 8). Try more num_evidence_draws" in said


class TestStudy:
    @pytest.fixture
    def results(self, tmp_path):
        cells = {}
        for seed in range(3):
            for number, prior in enumerate(("standard-normal", "<b>laplace</b>")):
                values = [-10.0 - seed + number * (1 + seed), -20.0 + number * seed, -30.0]
                k = torch.tensor([0.1, 0.2, 0.9 if number else 0.1], dtype=torch.float64)
                cells[prior, seed] = made_up(values, pareto_k=k), {}
        failure = {"place": {"prior": "horseshoe", "seed": "0"}, "error": "ValueError: <oops>", "traceback": "at 1"}
        axes = {"prior": ["standard-normal", "<b>laplace</b>"], "seed": [0, 1, 2]}
        return results_of(axes, cells, folder=tmp_path, failures=[failure], num_open=2)

    def test_everything_is_in_the_page(self, results):
        html = write_report(results).read_text()
        seen = text_of(html)
        (difference,) = results.differences("prior")
        for number in (difference.mean, difference.se, difference.mc_se, difference.seed_se):
            assert f"{number:.4f}" in seen
        for value in results.table()["log_p"]:
            assert f"{value:.4f}" in seen
        # Counts are whole: not converged, k > 0.7, N, seconds.
        assert html.count('<td data-value="3">3</td><td data-value="2">2</td></tr>') == len(results.cells)
        assert html.count("<img ") == 1 and html.count('class="sortable"') == 2 and is_alone(html)
        assert "prior horseshoe, seed 0: ValueError: <oops>" in seen and "<oops>" not in html
        assert "<b>laplace</b>" in seen and "<b>laplace" not in html
        assert "2 of 9 cells are not done" in seen and f"--out {results.folder}" in seen
        assert "Pareto k > 0.7 at 1 of 3 datapoints" in seen and "</b>, seed 0, and in 2 other cells: do not" in seen

    def test_one_seed_is_said(self, results):
        del results.cells[2:]
        assert "these fits only" in text_of(study_page(results))
        differences, _ = results.comparisons()
        (said,) = [
            text.get_text()
            for text in plot_differences({one.title: one for one in differences}).get_legend().get_texts()
        ]
        assert said == "± se, datapoints"

    def test_nothing_is_done_yet(self, results):
        nothing = results_of({"seed": [0, 1]}, {}, folder=results.folder, num_open=2)
        seen = text_of(study_page(nothing))
        assert "No cell is done yet" in seen and "2 of 2 cells are not done" in seen

    @pytest.mark.parametrize(
        ("axes", "cells", "said"),
        [
            ({"prior": ["a", "b"]}, {("a",): {}}, True),
            ({"prior": ["a", "b"]}, {("a",): {}, ("b",): {}}, False),
            ({"prior": ["a", "b"]}, {("a",): {}, ("b",): {"base_measure": "lebesgue"}}, False),
            ({"prior": ["a", "b"], "seed": [0, 1]}, {("a", 0): {}, ("b", 1): {}}, True),
        ],
        ids=["one value", "two", "refused", "other seeds"],
    )
    def test_that_nothing_compares_is_said_where_it_is_so(self, tmp_path, axes, cells, said):
        found = {place: (made_up([-1.0, -2.0]), changes) for place, changes in cells.items()}
        seen = text_of(study_page(results_of(axes, found, folder=tmp_path)))
        assert ("There is nothing to compare yet" in seen) == said
        assert ("is refused: base_measure" in seen) == any(cells.values())

    def test_only_what_is_shared_stands_among_the_settings(self, results):
        study = {**results.study, "axes": {"network": ["mlp"], "seed": [0]}, "engine": "em"}
        study["parts"] = {"prior": {"part": "laplace"}, "decoder": {"part": "linear"}}
        made = study_page(
            dataclasses.replace(results_of({"network": ["mlp"], "seed": [0]}, {}), study=study, folder=results.folder)
        )
        rows = dict(re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', made))
        assert rows["prior"] == "laplace" and rows["engine"] == "em" and rows["axis network"] == "mlp"
        assert not {"decoder", "encoder", "seed"} & set(rows)

    @pytest.mark.parametrize("num_broken", [1, 3])
    def test_cells_without_a_finite_score(self, tmp_path, num_broken):
        cells = {}
        for seed in range(3):
            cells["a", seed] = made_up([-1.0, -2.0]), {}
            cells["b", seed] = made_up([-1.0, float("nan") if seed < num_broken else -2.5]), {}
        made = study_page(results_of({"prior": ["a", "b"], "seed": [0, 1, 2]}, cells, folder=tmp_path))
        others = f", and in {num_broken - 1} other cells" if num_broken > 1 else ""
        assert f"No finite log p(x) at 1 of 2 datapoints of prior b, seed 0{others}: " in text_of(made)
        assert made.count('<td data-value="">–</td>') >= 3 * num_broken and "nan" not in text_of(made)


class TestFolder:
    def test_what_the_folder_holds_decides(self, fitted, tmp_path):
        assert open_folder(fitted).engine == "svi"
        study = {**Study(data="digits", axes={"seed": [0]}).describe(), "cells": {"seed=0": {"seed": "0"}}}
        (tmp_path / "study.json").write_text(json.dumps(study))
        assert open_folder(tmp_path).num_open == 1

    def test_neither(self, tmp_path, capsys):
        (tmp_path / "no").mkdir()
        assert main(["report", str(tmp_path / "no")]) == 2
        said = capsys.readouterr().err
        assert "expected a run, with config.json, or a study, with study.json" in said
        assert f"pyro-vae fit --out {tmp_path / 'no'}, or pyro-vae study FILE --out {tmp_path / 'no'}" in said

    def test_what_other_verbs_wrote(self, tmp_path):
        (tmp_path / "config.json").write_text('{"command": "demo", "seed": 0}')
        (tmp_path / "svi").mkdir()
        (tmp_path / "svi" / "config.json").write_text("{}")
        with pytest.raises(ValueError, match=rf"pyro-vae demo wrote it.*pyro-vae report {tmp_path}/svi"):
            open_folder(tmp_path)

    @pytest.mark.parametrize("text", ["{", "[]", '{"command": "fit"}'])
    def test_a_damaged_configuration(self, tmp_path, text):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises((ValueError, FileNotFoundError), match=r"config.json|checkpoint.pt"):
            open_folder(tmp_path)

    def test_a_file_that_cannot_be_written(self, fitted, tmp_path):
        with pytest.raises(ValueError, match="existing folder"):
            write_report(fitted, tmp_path / "no" / "report.html")
        with pytest.raises(ValueError, match="it is a folder"):
            write_report(fitted, tmp_path)
        (tmp_path / "thesis.tex").write_text("precious")
        with pytest.raises(ValueError, match="ends in .html"):
            write_report(fitted, tmp_path / "thesis.tex")
        assert (tmp_path / "thesis.tex").read_text() == "precious"

    def test_json(self, fitted, tmp_path, capsys):
        out = tmp_path / "page.html"
        assert main(["report", str(fitted), f"--out={out}", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"out": str(out)} and out.is_file()


def test_strings_are_escaped():
    evil = "<script>alert(1)</script>\"'&"
    made = page(
        evil, evil, [(evil, word_table({evil: evil}) + number_table([evil, "n"], [[evil, 1.5]]) + warnings_of([evil]))]
    )
    assert evil not in made and "<script>alert" not in made
    assert made.count("&lt;script&gt;") >= 8


def test_numbers_sort_by_value_and_what_is_none_is_a_dash():
    made = number_table(["a", "b"], [["x", 10.0], ["y", 9.12345678], ["z", float("nan")]])
    assert 'data-value="9.12345678">9.1235<' in made and 'data-value="10.0">10.0000<' in made
    assert '<td data-value="">–</td>' in made
