"""Studies: which cells there are, what a file may say, and what the differences are, by hand."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from study_records import made_up, results_of

from inference import Adam, Cosine, Evidence
from inference.draws import gaps_dataset, gaps_from_datatree
from inference.objectives import IWAE
from pyro_vae.parts import options
from pyro_vae.study import Study, StudyResults, read_study


def design(study):
    (cell,) = study.cells()
    return cell


class TestCells:
    def test_every_combination_the_last_axis_fastest(self):
        study = Study(data="digits", axes={"engine": ["svi", "em"], "training.epochs": [1, 2, 3], "seed": [0, 1]})
        cells = list(study.cells())
        assert [(cell.engine, cell.training.epochs, cell.seed) for cell in cells] == [
            (engine, epochs, seed) for engine in ("svi", "em") for epochs in (1, 2, 3) for seed in (0, 1)
        ]
        assert len({cell.name for cell in cells}) == 12

    def test_an_axis_goes_before_what_is_shared(self):
        study = Study(
            data="digits",
            parts={"prior": "laplace", "decoder": {"part": "mlp", "hidden": [16]}},
            training={"epochs": 7},
            engine="em",
            axes={"prior": ["uniform"], "training.epochs": [3], "engine": ["mcem"], "num_latents": [5], "seed": [4]},
        )
        cell = design(study)
        assert cell.parts.prior == options("prior", "uniform")
        assert cell.parts.decoder == options("decoder", "mlp", hidden=(16,))
        assert (cell.training.epochs, cell.engine, cell.num_latents, cell.seed) == (3, "mcem", 5, 4)

    def test_the_likelihood_follows_the_data_unless_it_is_said(self):
        assert design(Study(data="digits", axes={"seed": [0]})).parts.likelihood is None
        assert design(Study(data="digits", axes={"likelihood": ["poisson"]})).parts.likelihood == options(
            "likelihood", "poisson"
        )

    def test_a_network_is_a_decoder_and_an_encoder(self):
        cells = list(Study(data="digits", axes={"network": [{"part": "mlp", "hidden": [9]}, "conv"]}).cells())
        assert cells[0].parts.decoder.hidden == cells[0].parts.encoder.hidden == (9,)
        assert cells[1].parts.to_config()["decoder"]["part"] == "conv-decoder"
        assert cells[1].parts.to_config()["encoder"]["part"] == "conv-encoder"
        shared = design(Study(data="digits", parts={"network": "linear", "encoder": "mlp"}, axes={"seed": [0]}))
        assert [shared.parts.to_config()[kind]["part"] for kind in ("decoder", "encoder")] == ["linear", "mlp"]

    def test_optimizer_and_schedule_by_name(self):
        study = Study(
            data="digits",
            training={"schedule": "cosine"},
            axes={"training.optimizer": [{"part": "adam", "lr": 0.003}, "sgd"]},
        )
        first, second = study.cells()
        assert first.training.optimizer == Adam(lr=0.003) and first.training.schedule == Cosine()
        assert second.place == {"training.optimizer": "sgd"}

    def test_objects_are_taken_as_what_they_say(self):
        made = Study(
            data="digits",
            training={"optimizer": Adam(lr=0.003)},
            parts={"prior": options("prior", "laplace")},
            axes={"objective": [None, IWAE(8)]},
        )
        said = Study(
            data={"name_or_path": "digits"},
            training={"optimizer": {"part": "adam", "lr": 0.003}},
            parts={"prior": "laplace"},
            axes={"objective": [None, {"part": "iwae", "num_particles": 8}]},
        )
        assert [cell.name for cell in made.cells()] == [cell.name for cell in said.cells()]
        assert made.describe() == said.describe()
        json.dumps(made.describe())

    def test_names_tell_apart_what_looks_alike(self):
        one, other = (design(Study(data="digits", num_latents=n, axes={"seed": [0]})) for n in (2, 3))
        assert one.place == other.place and one.name != other.name
        assert "/" not in design(Study(data="digits", axes={"prior": ["laplace"]})).name

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            pytest.param({"axes": {}}, "expected at least one", id="no axis"),
            pytest.param({"axes": {"pior": [1]}}, "training.epochs; got 'pior'. Did you mean 'prior'", id="axis"),
            pytest.param({"axes": {"training.epoch": [1]}}, "Did you mean 'training.epochs'", id="setting"),
            pytest.param({"axes": {"prior": ["laplas"]}}, "got 'laplas'. Did you mean 'laplace'", id="part"),
            pytest.param({"axes": {"prior": "laplace"}}, "expected a list", id="no list"),
            pytest.param({"axes": {"prior": []}}, "expected a list", id="empty list"),
            pytest.param({"axes": {"seed": [1, 2, 1]}}, "different values; got 1 twice", id="twice"),
            pytest.param({"axes": {"seed": [-1]}}, "seed: expected an integer", id="seed"),
            pytest.param({"axes": {"num_latents": ["8"]}}, "expected a positive integer; got '8'", id="latents"),
            pytest.param({"axes": {"engine": ["mcmc"]}}, "engine: expected one of svi, em.*got 'mcmc'", id="engine"),
            pytest.param({"axes": {"objective": ["iwa"]}}, "got 'iwa'. Did you mean 'iwae'", id="objective"),
            pytest.param({"axes": {"network": ["mlq"]}}, "got 'mlq'. Did you mean 'mlp'", id="network"),
            pytest.param({"axes": {"network": ["mlp"], "decoder": ["mlp"]}}, "got both", id="network and decoder"),
            pytest.param({"parts": {"piror": "laplace"}}, "parts: .*Did you mean 'prior'", id="kind"),
            pytest.param({"training": {"epochz": 3}}, "training: .*Did you mean 'epochs'", id="training"),
            pytest.param({"training": {"epochs": 0}}, "epochs: expected an integer of at least 1", id="epochs"),
            pytest.param(
                {"training": {"local_lr": "fast"}}, "local_lr: expected a positive step size; got 'fast'", id="type"
            ),
            pytest.param(
                {"training": {"optimizer": {"part": "adam", "rate": 1}}}, "optimizer adam: .*rate", id="option"
            ),
            pytest.param({"training": {"optimizer": "adamw"}}, "Did you mean 'adam'", id="optimizer"),
            pytest.param(
                {"data": {"name_or_path": "digits", "binarise": "fixed"}}, "Did you mean 'binarize'", id="data"
            ),
            pytest.param({"data": {"binarize": "fixed"}}, "expected a name or a path", id="no data"),
            pytest.param({"data": torch.zeros(3, 2)}, "got Tensor", id="tensor"),
            pytest.param({"num_data": 1}, "at least 2", id="one datapoint"),
        ],
    )
    def test_bad_input(self, changes, message):
        with pytest.raises(ValueError, match=message):
            Study(**{"data": "digits", "axes": {"seed": [0]}, **changes})


class TestFiles:
    def test_yaml(self, tmp_path):
        path = tmp_path / "study.yaml"
        path.write_text(
            "data: {name_or_path: digits, binarize: fixed}\n"
            "training: {epochs: 3, optimizer: {part: adam, lr: 3e-3}}\n"
            "axes:\n"
            "  prior: [laplace, {part: gaussian-mixture, num_components: 4}]\n"
            "  objective: [null, iwae]\n"
        )
        study = read_study(path)
        assert study.load_arguments == {"name_or_path": "digits", "binarize": "fixed"}
        cells = list(study.cells())
        assert [cell.place["prior"] for cell in cells[::2]] == ["laplace", "gaussian-mixture(num_components=4)"]
        # YAML 1.1 would read 3e-3 as text.
        assert cells[0].training.optimizer == Adam(lr=0.003)
        assert [cell.place["objective"] for cell in cells[:2]] == ["none", "iwae"]

    def test_python(self, tmp_path):
        path = tmp_path / "study.py"
        path.write_text("from pyro_vae.study import Study\nstudy = Study(data='digits', axes={'seed': range(3)})\n")
        assert [cell.seed for cell in read_study(path).cells()] == [0, 1, 2]
        path.write_text("study = 3\n")
        with pytest.raises(ValueError, match="a variable study that holds a pyro_vae.study.Study; got int"):
            read_study(path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("data: digits\naxes:\n  pior: [laplace]\n", r"line 3: axes: expected prior, .*'pior'.*mean 'prior'"),
            ("data: digits\naxes:\n  seed: [0]\n\n  training.epoch: [3]\n", r"line 5: .*mean 'training.epochs'"),
            ("data: digits\nsead: 3\naxes: {seed: [0]}\n", r"line 2: expected a key among data, .*got 'sead'.*'seed'"),
            ("data: digits\n", "expected axes"),
            ("axes: {seed: [0]}\n", "expected data"),
            ("data: digits\naxes:\n", "line 2: axes: expected names"),
            ("data: digits\naxes:\n  prior:\n  - laplace\n  - laplas\n", "line 5: .*got 'laplas'"),
            ("data: digits\naxes: {prior: laplace}\n", "line 2: .*expected a list"),
            ("data: digits\naxes:\n  seed: [1, 1]\n", "line 3: .*got 1 twice"),
            ("data: digits\naxes:\n  engine: [svi, mcmc]\n", "line 3: engine: expected one of svi"),
            ("data: digits\ntraining:\n  epochs: 0\naxes: {seed: [0]}\n", "line 2: epochs: expected"),
            ("data: digits\naxes:\n  seed: [0]\n  seed: [1]\n", "line 4: seed stands there twice, first in line 3"),
            (
                "data: digits\ntraining:\n  epochs: 1\n  epochs: 2\naxes: {seed: [0]}\n",
                "line 4: epochs stands there twice",
            ),
            (
                "data: digits\naxes:\n  prior:\n  - {part: laplace,\n     part: uniform}\n",
                "line 5: part stands there twice",
            ),
            ("- 1\n", "expected keys"),
            ("", "expected keys"),
            ("a: [", "expected YAML"),
        ],
    )
    def test_bad_files_name_the_line(self, text, message, tmp_path):
        path = tmp_path / "study.yaml"
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_study(path)

    def test_no_study_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="expected a study file"):
            read_study(tmp_path / "no.yaml")
        (tmp_path / "study.json").write_text("{}")
        with pytest.raises(ValueError, match="ends in .yaml"):
            read_study(tmp_path / "study.json")


BASE = torch.tensor([[-10.0, -20.0, -30.0, -40.0], [-11.0, -22.0, -33.0, -44.0], [-15.0, -25.0, -35.0, -45.0]])
# By seed and datapoint: what b has over a.
LEAD = torch.tensor([[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0], [3.0, 4.0, 5.0, 6.0]])


class TestDifferences:
    def both(self, seeds=(0, 1, 2), **changes):
        cells = {}
        # Cells come in any order: they are paired by seed, not by position.
        for seed in seeds:
            cells["b", seed] = made_up(BASE[seed] + LEAD[seed], se=0.4), {}
        for seed in reversed(seeds):
            cells["a", seed] = made_up(BASE[seed], se=0.3), changes
        return results_of({"prior": ["a", "b"], "seed": list(seeds)}, cells)

    def test_by_hand(self):
        (found,) = self.both().differences("prior")
        assert (found.value, found.baseline, found.elsewhere) == ("b", "a", {})
        assert found.mean == pytest.approx(3.5)
        # Means over seeds 2, 3, 4, 5: variance 5 / 3, over four datapoints.
        assert found.se == pytest.approx(math.sqrt(5 / 12))
        # Seeds 2.5, 3.5, 4.5: standard deviation 1.
        assert found.by_seed == {"0": 2.5, "1": 3.5, "2": 4.5}
        assert found.seed_se == pytest.approx(1 / math.sqrt(3))
        # A difference errs by hypot(0.3, 0.4), a mean of twelve of them by a twelfth of the root of their squares.
        assert found.mc_se == pytest.approx(0.5 / math.sqrt(12))
        assert str(found) == ("prior: b - a: +3.500 nats per datapoint (se 0.645, mc_se 0.144; seed_se 0.577, 3 seeds)")
        assert found.summary()["num_seeds"] == 3

    def test_the_other_way_round_is_its_negative(self):
        (one,), (other,) = (self.both().differences("prior", baseline=name) for name in "ab")
        assert (one.mean, one.se, one.mc_se, one.seed_se) == pytest.approx(
            (-other.mean, other.se, other.mc_se, other.seed_se)
        )

    def test_one_seed_speaks_of_these_two_fits_only(self):
        (found,) = self.both(seeds=(1,)).differences("prior")
        assert found.mean == pytest.approx(3.5) and found.se == pytest.approx(math.sqrt(5 / 12))
        assert math.isnan(found.seed_se) and "these two fits only" in str(found)
        assert found.summary()["seed_se"] is None
        (found,) = self.both(seeds=(0, 1)).differences("prior")
        assert math.isnan(found.seed_se) and "2 seeds, too few" in str(found) and found.mean == pytest.approx(3.0)

    def test_only_seeds_that_both_have(self):
        results = self.both()
        del results.cells[0]  # b at seed 0
        (found,) = results.differences("prior")
        assert found.by_seed == {"1": 3.5, "2": 4.5}

    def test_all_else_equal(self):
        cells = {}
        for number, prior in enumerate("ab"):
            for other, family in enumerate("xy"):
                cells[prior, family] = made_up([number + 10.0 * number * other, number + 10.0 * number * other]), {}
        results = results_of({"prior": ["a", "b"], "family": ["x", "y"]}, cells)
        found = {one.elsewhere["family"]: one.mean for one in results.differences("prior")}
        assert found == {"x": 1.0, "y": 11.0}
        differences, refused = results.comparisons()
        assert [(one.axis, *one.elsewhere.values()) for one in differences] == [
            ("prior", "x"),
            ("prior", "y"),
            ("family", "a"),
            ("family", "b"),
        ]
        assert not refused

    @pytest.mark.parametrize(
        ("changes", "kind", "message"),
        [
            ({"base_measure": "lebesgue"}, "base measure", "masses and densities do not compare"),
            ({"fingerprint": "b" * 64}, "data", "expected the same data"),
        ],
    )
    def test_what_does_not_compare_is_refused(self, changes, kind, message):
        results = self.both(**changes)
        with pytest.raises(ValueError, match=f"prior: b - a is refused: .*{message}"):
            results.differences("prior")
        differences, (refused,) = results.comparisons()
        assert not differences and message in refused.reason and refused.kind == kind
        assert (refused.axis, refused.value, refused.baseline, refused.places) == ("prior", "b", "a", ({},))
        assert f"\n{refused}\n" in str(results)
        assert json.loads(json.dumps(results.summary()["refused"])) == [
            {**vars(refused), "places": [{}]},
        ]

    def test_one_refusal_for_all_places_where_it_is_for_the_same_reason(self):
        cells = {}
        for place, changes in {
            "x": {"base_measure": "lebesgue"},
            "y": {"base_measure": "lebesgue"},
            "z": {"fingerprint": "b" * 64},
        }.items():
            cells["a", place] = made_up([1.0, 2.0]), {}
            cells["b", place] = made_up([1.0, 2.0]), changes
        _, refused = results_of({"prior": ["a", "b"], "family": ["x", "y", "z"]}, cells).comparisons()
        by_prior = [one for one in refused if one.axis == "prior"]
        assert [(one.kind, [place["family"] for place in one.places]) for one in by_prior] == [
            ("base measure", ["x", "y"]),
            ("data", ["z"]),
        ]
        assert str(by_prior[0]).endswith("of one base measure. So at 1 other place.")
        assert str(by_prior[1]).endswith("with the same binarization.")

    @pytest.mark.parametrize("num_data", [4, 3])
    def test_seeds_on_other_data_are_not_averaged(self, num_data):
        """Within each pair the data agree; the mean over seeds at a datapoint would be one over different x."""
        cells = {}
        for seed in (0, 1):
            changes = {"fingerprint": "ab"[seed] * 64} if num_data == 4 else {}
            rows = num_data if seed else 4
            cells["a", seed] = made_up(BASE[seed, :rows]), changes
            cells["b", seed] = made_up(BASE[seed, :rows] + 1), changes
        differences, (refused,) = results_of({"prior": ["a", "b"], "seed": [0, 1]}, cells).comparisons()
        assert not differences and refused.kind == "data"
        assert "expected the same data for 'prior b, seed 0' and 'prior b, seed 1'" in str(refused)

    @pytest.mark.parametrize("bad", [math.nan, -math.inf])
    def test_a_cell_without_a_finite_score_costs_only_its_own_differences(self, bad):
        cells = {}
        for seed in range(3):
            cells["a", seed] = made_up(BASE[seed]), {}
            cells["b", seed] = made_up(BASE[seed] + LEAD[seed]), {}
            lost = BASE[seed].clone()
            lost[2] = bad if seed == 1 else lost[2]
            cells["c", seed] = made_up(lost), {}
        results = results_of({"prior": ["a", "b", "c"], "seed": [0, 1, 2]}, cells)
        sound, broken = results.differences("prior")
        assert sound.mean == pytest.approx(3.5) and sound.seed_se == pytest.approx(1 / math.sqrt(3))
        assert not math.isfinite(broken.mean) and not math.isfinite(broken.seed_se)
        summary = json.loads(json.dumps(results.summary(), allow_nan=False))["differences"][1]
        assert summary["mean"] is None and summary["by_seed"] == {"0": 0.0, "1": None, "2": 0.0}
        assert "Warning: No finite log p(x) at 1 of 4 datapoints of prior c, seed 1: " in str(results)

    def test_another_number_of_datapoints_is_refused(self):
        cells = {("a",): (made_up([1.0, 2.0]), {}), ("b",): (made_up([1.0, 2.0, 3.0]), {})}
        with pytest.raises(ValueError, match="expected the same data"):
            results_of({"prior": ["a", "b"]}, cells).differences("prior")

    def test_unknown_axis_and_baseline(self):
        with pytest.raises(ValueError, match="expected one of prior; got 'pior'. Did you mean 'prior'"):
            self.both().differences("pior")
        with pytest.raises(ValueError, match="expected one of prior; got 'seed'"):
            self.both().differences("seed")
        with pytest.raises(ValueError, match="expected one of a, b; got 'c'"):
            self.both().differences("prior", baseline="c")

    def test_every_cell_by_one_estimator(self):
        """Left to itself a would be scored by IWAE and b by AIS."""

        def estimate(value, method):
            halves = torch.full((2, 2), value, dtype=torch.float64)
            return Evidence(
                value=halves[0], se=halves[0] * 0 + 0.01, method=method, halves=halves, halves_se=halves * 0 + 0.01
            )

        def estimates(iwae, ais):
            return {"estimates": {"IWAE": estimate(iwae, "IWAE"), "AIS": estimate(ais, "AIS")}}

        cells = {
            ("a",): (made_up([-7.0, -7.0], **estimates(-7.0, -7.001)), {}),
            ("b",): (made_up([-5.0, -5.0], **estimates(-6.0, -5.0)), {}),
        }
        results = results_of({"prior": ["a", "b"]}, cells)
        assert [one.method.split(";")[0] for one in results.log_p] == ["AIS", "AIS"]
        (found,) = results.differences("prior")
        assert found.mean == pytest.approx(2.001)
        assert results.table()["estimator"].nunique() == 1

    def test_what_a_file_keeps_scores_as_what_was_measured(self):
        """The halves that estimators are chosen by are kept, too."""
        halves = torch.tensor([[-4.0, -5.0], [-5.5, -6.5]], dtype=torch.float64)
        known = Evidence(
            value=halves.mean(0), se=halves[0] * 0 + 0.1, method="AIS", halves=halves, halves_se=halves * 0 + 0.2
        )
        gaps = made_up([-1.0, -2.0], estimates={"AIS": known})
        read = gaps_from_datatree(xr.DataTree.from_dict({"/": xr.Dataset(), "gaps": gaps_dataset(gaps)}))
        torch.testing.assert_close(read.estimates["AIS"].halves, known.halves)
        torch.testing.assert_close(read.estimates["AIS"].halves_se, known.halves_se)


class TestTable:
    def results(self):
        k = torch.tensor([0.1, 0.8, 0.9, 0.2], dtype=torch.float64)
        cells = {
            ("b", 10): (made_up([1.0, 2.0, 3.0, 4.0], amortization_gap=torch.ones(4)), {}),
            ("b", 9): (made_up([1.0, 2.0, 3.0, 5.0], pareto_k=k), {}),
            ("a", 10): (made_up([0.0, 0.0, 0.0, 0.0], converged=torch.tensor([True, False, True, True])), {}),
        }
        return results_of({"prior": ["b", "a"], "training.epochs": [10, 9]}, cells)

    def test_a_row_a_cell_with_numbers_as_numbers(self):
        table = self.results().table()
        assert table["training.epochs"].tolist() == [10, 9, 10]
        assert table["log_p"].tolist() == [2.5, 2.75, 0.0]
        assert table["log_p_se"][0] == pytest.approx(math.sqrt(5 / 12))
        assert table["log_p_mc_se"].tolist() == pytest.approx([0.15] * 3)
        assert table["amortization_gap"].tolist() == [1.0, 0.0, 0.0]
        assert table["num_untrusted"].tolist() == [0, 2, 0] and table["num_unconverged"].tolist() == [0, 0, 1]
        assert {"likelihood", "engine", "num_latents", "seed", "training", "fingerprint", "seconds"} <= set(table)

    def test_a_dataset_with_a_dimension_an_axis(self):
        data = self.results().dataset()
        assert dict(data.sizes) == {"prior": 2, "training.epochs": 2}
        assert data["prior"].values.tolist() == ["b", "a"]
        assert data["training.epochs"].values.tolist() == [10, 9]
        assert float(data["log_p"].sel({"prior": "b", "training.epochs": 9})) == 2.75
        # There is no such cell.
        assert np.isnan(data["log_p"].sel({"prior": "a", "training.epochs": 9}))
        assert data["log_p"].attrs["units"] == "nats per datapoint"

    def test_what_a_reader_must_know(self):
        notes = self.results().notes()
        assert [note.severity for note in notes] == ["remark", "remark", "warning", "warning"]
        pareto, search = (str(note) for note in notes[2:])
        assert pareto.startswith("Warning: Pareto k > 0.7 at 2 of 4 datapoints of prior b, training.epochs 9: do not")
        assert "did not converge at 1 of 4 datapoints of prior a" in search

    def test_fits_cut_short_are_counted(self):
        results = self.results()
        first, second, third = results.cells
        rising = [first, dataclasses.replace(second, is_unfinished=True), third]
        assert not any("still rising" in str(note) for note in results.notes())
        (note,) = [note for note in dataclasses.replace(results, cells=rising).notes() if "still rising" in note.text]
        assert note.severity == "warning"
        assert note.text.startswith("1 of 3 fits were still rising when their budget of epochs ended (prior b, train")
        table = dataclasses.replace(results, cells=rising).table()
        assert table["is_unfinished"].tolist() == [False, True, False]

    def test_the_three_files_hold_the_same(self, tmp_path):
        results = self.results()
        results = StudyResults(**{**vars_of(results), "folder": tmp_path})
        files = results.save()
        assert [path.name for path in files] == ["table.csv", "table.nc", "table.parquet"]
        table = results.table()
        pd.testing.assert_frame_equal(pd.read_csv(files[0]), table, check_dtype=False)
        pd.testing.assert_frame_equal(pd.read_parquet(files[2]), table, check_dtype=False)
        with xr.open_dataset(files[1], engine="h5netcdf") as read:
            xr.testing.assert_allclose(read.load(), results.dataset())

    def test_nothing_yet(self, tmp_path):
        results = results_of({"prior": ["a", "b"]}, {})
        results = StudyResults(**{**vars_of(results), "folder": tmp_path, "num_cells": 2})
        assert results.table().empty and results.comparisons() == ([], []) and results.differences("prior") == []
        assert "2 of 2 cells are not done" in str(results)
        assert results.summary()["cells"] == []
        results.save()

    def test_the_summary_is_json(self):
        summary = json.loads(json.dumps(self.results().summary(), allow_nan=False))
        assert [cell["prior"] for cell in summary["cells"]] == ["b", "b", "a"]
        assert summary["differences"][0]["seed_se"] is None


def vars_of(results):
    return {name: getattr(results, name) for name in StudyResults.__dataclass_fields__}
