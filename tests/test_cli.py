import contextlib
import html
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
import torch
import xarray as xr

import pyro_vae.cli.comparing
import pyro_vae.demo
import pyro_vae.drawing
import pyro_vae.jobs
from inference import Local, elbo
from pyro_vae import __version__, open_run
from pyro_vae.cli import main
from pyro_vae.cli.options import DataOptions
from pyro_vae.cli.output import next_command
from pyro_vae.cli.parsing import VERBS, parse
from pyro_vae.parts import catalog
from pyro_vae.report import write_report

# In more than two dimensions a run draws fewer pictures.
LATENTS = "--num-latents=3"
SMALL = [
    "--training.epochs=3",
    LATENTS,
    "decoder:mlp",
    "--decoder.hidden=16",
    "encoder:mlp",
    "--encoder.hidden=16",
]
FLAT = ["--num-latents=2" if word == LATENTS else word for word in SMALL]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One small run of each engine on the digits, as a user makes them."""
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("runs")
    for engine, verb in (("svi", "fit"), ("em", "em")):
        assert main([verb, f"--out={folder / engine}", *FLAT]) == 0
    return folder


@pytest.fixture
def _no_pictures(monkeypatch):
    """Of runs whose pictures a test does not look at."""
    monkeypatch.setattr(pyro_vae.drawing, "draw_fit", lambda *_: {})


def parse_words(line):
    """The words of a line that says what to type next."""
    return line.removeprefix("Next: pyro-vae ").split()


@pytest.fixture(autouse=True)
def _single_precision():
    """The command line runs in torch's default, not in the float64 of the other tests."""
    torch.set_default_dtype(torch.float32)


class TestFit:
    def test_the_folder_holds_everything(self, runs):
        assert sorted(path.name for path in (runs / "svi").iterdir()) == [
            "checkpoint.pt",
            "config.json",
            "figures",
            "metrics.jsonl",
            "results.nc",
        ]
        pictures = {"elbo.png", "reconstructions.png", "samples.png", "manifold.png", "latent.png"}
        pictures |= {"interpolations.png", "traversals.png", "aggregate.png", "posterior.png", "kl_per_dim.png"}
        for engine in ("svi", "em"):
            assert {path.name for path in (runs / engine / "figures").iterdir()} >= pictures
            for name in pictures:
                assert np.ptp(matplotlib.image.imread(runs / engine / "figures" / name)) > 0.5  # not a blank page

    def test_metrics_are_one_line_an_epoch(self, runs):
        rows = [json.loads(line) for line in (runs / "svi" / "metrics.jsonl").read_text().splitlines()]
        fit = open_run(runs / "svi").fit
        assert [row["epoch"] for row in rows] == [1, 2, 3]
        assert [row["elbo"] for row in rows] == fit.elbo.tolist()
        assert [row["elbo_validation"] for row in rows] == fit.elbo_validation.tolist()

    def test_the_run_opens_with_its_weights(self, runs):
        run = open_run(runs / "svi")
        x = run.dataset.validation.tensor()
        held_out = elbo(run.vae.model, run.vae.guide, x, seed=0)
        # Another estimate of what the fit reported last: equal within five standard errors of four draws a datapoint.
        assert abs(held_out.value.mean() - run.fit.elbo_validation[-1]) < 5 * held_out.value.std() / len(x) ** 0.5
        assert not run.vae.training

    def test_the_em_run_keeps_its_rows(self, runs):
        run = open_run(runs / "em")
        assert run.vae.guide is None
        assert run.fit.params.shape == (1197, 4)
        assert isinstance(run.local_guide, Local)

    def test_counts_get_a_binomial_without_being_told(self, runs):
        config = json.loads((runs / "svi" / "config.json").read_text())
        assert config["parts"]["likelihood"] == {"part": "binomial", "total_count": None, "mask": False}
        assert config["sizes"]["max_value"] == 16
        assert torch.__version__.startswith(config["versions"]["torch"])  # which leaves out +cpu or +cu130

    def test_results_open_in_xarray(self, runs):
        with xr.open_datatree(runs / "svi" / "results.nc", engine="h5netcdf") as tree:
            assert dict(tree["posterior"].sizes) == {"chain": 4, "draw": 250, "obs_id": 100, "latent_dim": 2}
            assert "lp" in tree["sample_stats"]

    @pytest.mark.slow
    def test_the_same_seed_gives_the_same_bits_in_another_process(self, runs, tmp_path):
        command = [sys.executable, "-m", "pyro_vae", "fit", f"--out={tmp_path / 'again'}", *FLAT]
        subprocess.run(command, check=True, capture_output=True)
        ours, theirs = (open_run(folder).vae.state_dict() for folder in (runs / "svi", tmp_path / "again"))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    @pytest.mark.usefixtures("_no_pictures")
    def test_json_alone_on_standard_output(self, tmp_path, capsys):
        assert main(["fit", f"--out={tmp_path / 'run'}", "--json", *SMALL]) == 0
        record = json.loads(capsys.readouterr().out)
        assert len(record["elbo"]) == 3
        assert record["num_steps"] == 30

    @pytest.mark.usefixtures("_no_pictures")
    @pytest.mark.slow
    def test_a_fit_cut_short_says_so_wherever_its_numbers_are_shown(self, tmp_path, capsys):
        out = tmp_path / "a run"
        assert main(["fit", f"--out={out}", "--training.epochs=6", *SMALL[1:]]) == 0
        said = capsys.readouterr().out
        (note,) = open_run(out).fit.notes()
        longer = f"pyro-vae fit --config '{out}' --out '{out}-longer' --training.epochs 24"
        assert "still rising" in str(note)
        assert f"\n{note}\nTo train longer: {longer}\n" in said
        assert main(["gaps", str(out), "--num-data=3"]) == 0
        said = capsys.readouterr().out
        assert said.index("inference gap") < said.index(f"\n{note}\nTo train longer: {longer}\n")
        page = html.unescape(write_report(out).read_text())
        assert note.in_full in page and longer in page
        command = parse(shlex.split(longer)[1:])
        assert command.training.epochs == 24 and command.num_latents == 3

    def test_a_short_fit_is_not_judged(self, runs, tmp_path):
        page = write_report(runs / "svi", tmp_path / "page.html").read_text()
        assert "still rising" not in page and "To train longer" not in page


class TestGaps:
    @pytest.mark.parametrize("engine", ["svi", pytest.param("em", marks=pytest.mark.slow)])
    def test_measures_and_keeps(self, runs, engine, capsys):
        further = ["--families", "full-covariance"] if engine == "svi" else []
        assert main(["gaps", str(runs / engine), "--num-data=10", "--overwrite", *further]) == 0
        said = capsys.readouterr().out
        assert "amortization gap" in said
        assert ("L[q*] in FullCovariance(2)" in said) == bool(further)
        run = open_run(runs / engine)
        assert run.vae.guide is not None  # the EM run has been given an encoder, and keeps it
        gaps = run.gaps
        assert len(gaps) == 10
        assert gaps.families == (("FullCovariance(2)",) if further else ())
        assert (gaps.amortization_gap > -4 * gaps.amortization_gap_se).all()
        assert gaps.seconds.keys() >= {"search", "score", "evidence"}
        for name in ("gaps.png", "gap_histogram.png"):
            assert (runs / engine / "figures" / name).is_file()
        assert dict(run.results["posterior"].sizes)["obs_id"] == 100  # the draws stay

    def test_a_measurement_is_not_replaced_unasked(self, runs, tmp_path, capsys):
        run = tmp_path / "run"
        shutil.copytree(runs / "svi", run)
        (run / "results.nc").unlink()
        assert main(["gaps", str(run), "--num-data=4", "--families", "full-covariance"]) == 0
        before = (run / "results.nc").read_bytes()
        capsys.readouterr()
        assert main(["gaps", str(run), "--num-data=2"]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1
        assert "already holds the gaps of 4 datapoints, with FullCovariance(2); nothing was touched" in said.err
        assert f"pyro-vae gaps {run} --overwrite" in said.err and f"pyro-vae report {run}" in said.err
        assert (run / "results.nc").read_bytes() == before
        assert main(["gaps", str(run), "--num-data=2", "--overwrite"]) == 0
        assert len(open_run(run).gaps) == 2

    def test_the_families_are_named_in_the_help(self, capsys):
        with pytest.raises(SystemExit):
            main(["gaps", "--help"])
        said = " ".join(re.sub(r"\x1b\[[0-9;]*m|│", "", capsys.readouterr().out).split())
        assert "as long again" in said
        assert all(re.search(rf"There are .*\b{family}\b", said) for family in catalog("family"))

    def test_json_is_the_summary(self, runs, capsys):
        assert main(["gaps", str(runs / "svi"), "--num-data=10", "--json", "--overwrite"]) == 0
        summary = json.loads(capsys.readouterr().out)
        run = open_run(runs / "svi")
        assert summary == {**run.gaps.summary(), "fit_notes": []}
        assert summary["num_data"] == 10 and summary["seed"] == 0 and "num_untrusted" in summary

    def test_json_of_one_datapoint(self, runs, tmp_path, capsys):
        shutil.copytree(runs / "svi", tmp_path / "run")
        assert (
            main(
                [
                    "gaps",
                    str(tmp_path / "run"),
                    "--num-data=1",
                    "--json",
                    "--overwrite",
                    "--families",
                    "full-covariance",
                ]
            )
            == 0
        )
        summary = json.loads(capsys.readouterr().out)
        # It has no sampling error.
        assert summary["amortization_gap"]["se"] is None and summary["amortization_gap"]["mean"] > -1
        assert summary["families"]["FullCovariance(2)"]["less_own"]["mc_se"] > 0

    def test_changed_data_are_refused(self, runs, tmp_path, capsys):
        data = tmp_path / "data.npy"
        rng = np.random.default_rng(0)
        np.save(data, rng.integers(0, 5, (60, 4)))
        assert main(["fit", f"--out={tmp_path / 'run'}", f"--data={data}", *SMALL]) == 0
        np.save(data, rng.integers(0, 5, (60, 4)))
        assert main(["gaps", str(tmp_path / "run")]) == 2
        assert "fingerprint" in capsys.readouterr().err


@pytest.mark.usefixtures("_no_pictures")
class TestAnotherFolder:
    """A run is used from where it was not made."""

    @pytest.fixture
    def run(self, tmp_path, monkeypatch):
        np.save(tmp_path / "mine.npy", np.random.default_rng(0).integers(0, 5, (60, 4)))
        (tmp_path / "a" / "b").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "a")
        assert main(["fit", "--out=run", "--data=../mine.npy", *SMALL]) == 0
        monkeypatch.chdir("b")
        return tmp_path / "a" / "run"

    def test_the_data_are_found(self, run, tmp_path):
        assert json.loads((run / "config.json").read_text())["data"]["load"]["name_or_path"] == f"{tmp_path}/mine.npy"
        assert main(["gaps", "../run", "--num-data=3"]) == 0
        assert main(["fit", "--config=../run", "--out=again"]) == 0
        assert open_run("again").config == open_run("../run").config

    def test_data_that_are_gone_are_named_with_the_run(self, run, tmp_path, capsys):
        (tmp_path / "mine.npy").rename(tmp_path / "yours.npy")
        capsys.readouterr()
        assert main(["gaps", "../run"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(
            f"pyro-vae: ../run: expected the data that the run was fitted to in {tmp_path}/mine.npy;"
        )
        assert "../run/config.json, as name_or_path" in said

    def test_a_comparison_names_the_file_from_the_root(self, run, tmp_path):
        words = ["compare", "--data=../../mine.npy", "--out=compared", "--num-latents=2", "--training.epochs=1"]
        assert main([*words, "--hidden", "8"]) == 0
        config = json.loads((tmp_path / "a" / "b" / "compared" / "config.json").read_text())
        assert config["data"]["load"]["name_or_path"] == f"{tmp_path}/mine.npy"


class TestFolderOfRuns:
    @pytest.mark.parametrize("num_runs", [1, 2, 7])
    def test_its_runs_are_named(self, tmp_path, num_runs, capsys):
        names = [f"r{number}" for number in range(num_runs)]
        for name in names:
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text("{}")
        shown = "the run r0" if num_runs == 1 else f"the runs {', '.join(names[:5])}{' and 2 more' * (num_runs > 5)}"
        assert main(["gaps", str(tmp_path)]) == 2
        assert f"it holds {shown}. Name one, such as {tmp_path}/r0." in capsys.readouterr().err
        assert main(["report", str(tmp_path)]) == 2
        assert f"it holds {shown}: pyro-vae report {tmp_path}/r0" in capsys.readouterr().err

    def test_those_of_a_demonstration_have_a_report_each(self, tmp_path, capsys):
        for name in ("", "svi", "em"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "config.json").write_text('{"command": "demo"}')
        assert main(["report", str(tmp_path)]) == 2
        assert f"pyro-vae report {tmp_path}/em, pyro-vae report {tmp_path}/svi" in capsys.readouterr().err


@pytest.mark.usefixtures("_no_pictures")
class TestOut:
    @pytest.mark.slow
    def test_by_default_it_is_named_by_time_data_and_prior(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["fit", *SMALL[:2], "prior:laplace", *SMALL[2:]]) == 0
        said = capsys.readouterr().out.splitlines()
        (run,) = (tmp_path / "runs").iterdir()
        assert re.fullmatch(r"\d{8}-\d{6}-digits-laplace", run.name)
        assert said[-1] == f"Next: pyro-vae gaps runs/{run.name}"
        assert main(parse_words(said[-1]) + ["--num-data=4"]) == 0

    @pytest.mark.slow
    def test_overwrite_replaces_a_run_when_the_new_one_is_whole(self, tmp_path, capsys):
        out = tmp_path / "run"
        assert main(["fit", f"--out={out}", *SMALL]) == 0
        before = (out / "checkpoint.pt").read_bytes()
        words = ["fit", f"--out={out}", "--overwrite", *SMALL]
        assert main([*words, "training.optimizer:sgd", "--training.optimizer.lr=1e30"]) == 2
        assert (out / "checkpoint.pt").read_bytes() == before
        assert main([*words, "--seed=1"]) == 0
        assert open_run(out).config["seed"] == 1

    def test_draws_are_not_overwritten_unasked(self, runs, tmp_path, capsys):
        out = tmp_path / "draws.npy"
        out.write_text("precious")
        assert main(["generate", str(runs / "svi"), f"--out={out}"]) == 2
        assert out.read_text() == "precious" and "--overwrite" in capsys.readouterr().err
        assert main(["generate", str(runs / "svi"), f"--out={out}", "--overwrite", "--num-draws=5"]) == 0
        assert np.load(out).shape == (5, 64)


@pytest.mark.usefixtures("_no_pictures")
class TestConfig:
    @pytest.mark.slow
    def test_it_repeats_a_run_bit_for_bit(self, runs, tmp_path):
        for verb, engine in (("fit", "svi"), ("em", "em")):
            out = tmp_path / engine
            assert main([verb, "--config", str(runs / engine / "config.json"), f"--out={out}"]) == 0
            ours, theirs = open_run(runs / engine), open_run(out)
            # The run of EM may have been given an encoder since.
            before, again = ours.vae.state_dict(), theirs.vae.state_dict()
            assert all(torch.equal(value, before[name]) for name, value in again.items())
            assert {**ours.config} == {**theirs.config}

    def test_any_option_overrides_it(self, runs, tmp_path):
        words = ["fit", f"--config={runs / 'svi'}", f"--out={tmp_path / 'run'}", "--seed=3", "prior:laplace"]
        assert main([*words, "training.optimizer:sgd", "--training.optimizer.lr=0.001"]) == 0
        ours, theirs = open_run(runs / "svi").config, open_run(tmp_path / "run").config
        assert theirs["seed"] == 3 and theirs["parts"]["prior"]["part"] == "laplace"
        assert theirs["training"]["optimizer"] == {"part": "SGD", "lr": 0.001, "momentum": 0.0}
        assert theirs["training"]["epochs"] == 3 and theirs["parts"]["decoder"] == ours["parts"]["decoder"]

    def test_another_engine_is_named(self, runs, tmp_path, capsys):
        assert main(["fit", "--config", str(runs / "em"), f"--out={tmp_path / 'run'}"]) == 2
        assert "pyro-vae em" in capsys.readouterr().err

    def test_a_newer_version_is_named(self, runs, tmp_path, capsys):
        config = json.loads((runs / "svi" / "config.json").read_text())
        config["versions"]["pyro-vae"] = "99.1"
        (tmp_path / "config.json").write_text(json.dumps(config))
        for words in (["fit", "--config", str(tmp_path)], ["gaps", str(tmp_path)]):
            assert main(words) == 2
            assert "written by pyro-vae 99.1" in capsys.readouterr().err


class TestMissingPieces:
    def test_the_piece_and_the_command_are_named(self, runs, tmp_path, capsys):
        run = tmp_path / "run"
        shutil.copytree(runs / "svi", run)
        (run / "results.nc").unlink()
        with pytest.raises(FileNotFoundError, match=r"results\.nc.*pyro-vae gaps"):
            _ = open_run(run).results
        assert main(["gaps", str(run), "--num-data=3"]) == 0
        assert len(open_run(run).gaps) == 3
        (run / "checkpoint.pt").unlink()
        capsys.readouterr()
        assert main(["gaps", str(run)]) == 2
        assert (
            f"checkpoint.pt, the weights of the run, in its folder; there is none. Fit again: pyro-vae fit --config "
            f"{run}" in capsys.readouterr().err
        )


@pytest.mark.usefixtures("_no_pictures")
class TestVerbs:
    def test_evaluate(self, runs, capsys):
        words = [
            "evaluate",
            str(runs / "svi"),
            "--num-data=8",
            "--num-draws=100",
            "--estimators",
            "elbo",
            "iwae",
            "ais",
        ]
        words += ["--num-temperatures=10", "--num-chains=4"]
        assert main(words) == 0
        said = capsys.readouterr().out
        assert [line.split(":")[0] for line in said.splitlines()] == ["elbo", "iwae", "ais", "Next"]
        assert main([*words, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        x = open_run(runs / "svi").dataset.test.head(8)
        vae = open_run(runs / "svi").vae
        assert found["elbo"]["mean"] == float(elbo(vae.model, vae.guide, x, num_draws=100, seed=0).value.mean())
        assert main(["evaluate", str(runs / "svi"), "--split=train", "--num-data=8", "--estimators", "elbo"]) == 0
        assert f"elbo: {found['elbo']['mean']:.3f}" not in capsys.readouterr().out

    def test_generate_draws_a_picture(self, runs, tmp_path, capsys):
        assert main(["generate", str(runs / "svi"), f"--out={tmp_path / 'draws.png'}", "--num-draws=9", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["shape"] == [9, 64]
        assert np.ptp(matplotlib.image.imread(tmp_path / "draws.png")) > 0.5
        assert main(["generate", str(runs / "svi"), f"--out={tmp_path / 'draws.txt'}"]) == 2

    @pytest.mark.parametrize("kind", ["all", "data", "prior", "decoder"])
    def test_list(self, kind, capsys):
        assert main(["list", kind]) == 0
        said = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
        assert ("laplace" in said) == (kind in ("all", "prior"))
        assert ("fashion-mnist" in said) == (kind in ("all", "data"))
        assert main(["list", kind, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert all(text for entries in found.values() for text in entries.values())

    @pytest.mark.parametrize(("variant", "engine"), [("semi-amortized", "semi-amortized"), ("monte-carlo", "mcem")])
    def test_variants_of_em(self, variant, engine, tmp_path, capsys):
        rng = np.random.default_rng(0)
        np.save(tmp_path / "data.npy", rng.integers(0, 5, (60, 4)))
        words = ["em", f"--out={tmp_path / 'run'}", f"--data={tmp_path / 'data.npy'}", f"--variant={variant}", *SMALL]
        assert main(words) == 0
        assert open_run(tmp_path / "run").engine == engine
        assert main(["gaps", str(tmp_path / "run"), "--num-data=3"]) == 0

    def test_an_objective_by_name(self, tmp_path, capsys):
        words = ["fit", f"--out={tmp_path / 'run'}", *SMALL, "objective:iwae", "--objective.num-particles=3"]
        assert main(words) == 0
        assert open_run(tmp_path / "run").config["objective"] == {"part": "iwae", "num_particles": 3}

    def test_metrics_hold_the_terms(self, runs):
        rows = [json.loads(line) for line in (runs / "svi" / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            assert row["kl (held-out)"] > 0
            # The validation ELBO is over more datapoints and other draws: about the same.
            whole = row["reconstruction (held-out)"] - row["kl (held-out)"]
            assert whole == pytest.approx(row["elbo_validation"], rel=0.05)


class TestCompare:
    WORDS = ["compare", "--training.epochs=2", "--num-latents=3", "--num-data=20", "--hidden", "16"]
    MODELS = ["PCA", "autoencoder", "pPCA", "FA", "linear VAE", "VAE"]

    def test_table_and_picture(self, tmp_path, capsys):
        out = tmp_path / "compare"
        assert main([*self.WORDS, f"--out={out}"]) == 0
        said = capsys.readouterr().out
        assert [line.split("  ")[0].rstrip("*") for line in said.splitlines()[4:10]] == self.MODELS
        assert {path.name for path in out.iterdir()} == {"config.json", "compare.json", "compare.png"}
        summary = json.loads((out / "compare.json").read_text())
        assert list(summary["models"]) == self.MODELS
        assert summary["num_data"] == 20 and summary["settings"]["training"]["epochs"] == 2
        assert np.ptp(matplotlib.image.imread(out / "compare.png")) > 0.5  # not a blank page
        assert main([*self.WORDS, f"--out={out}"]) == 2
        assert "already holds a run" in capsys.readouterr().err

    def test_json_without_a_folder(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main([*self.WORDS, "--json"]) == 0
        summary = json.loads(capsys.readouterr().out)
        assert summary["models"]["PCA"]["log_p"] is None
        assert summary["models"]["VAE"]["log_p"].keys() == {"mean", "se", "mc_se"}
        assert not list(tmp_path.iterdir())


def _pickled(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def _array(array):
    return lambda path: np.save(path, array)


BAD_DATA = {
    "pickled": (_pickled, "pickle"),
    "one-dimensional": (_array(np.zeros(5)), "shape"),
    "empty": (_array(np.zeros((0, 5))), "empty|at least"),
    "not a number": (_array(np.full((50, 4), np.nan)), "NaN|nan|finite"),
    "infinite": (_array(np.full((50, 4), np.inf)), "inf|finite"),
    "torn": (lambda path: path.write_bytes(b"\x93NUMPY"), "npy|unreadable|cannot"),
    "gray without a choice": (_array(np.random.default_rng(0).random((50, 4))), "--data.binarize fixed"),
}

BAD_WORDS = {
    "unknown command": (["fti"], "Did you mean fit"),
    "unknown kind": (["list", "priors"], "Expected one of .*data.*prior"),
    "no study": (["study", "{out}.yaml"], "expected a study file"),
    "no engine of this name": (["em", "--out={out}", "--variant=variatonal"], "variational"),
    "objective where there is none": (
        ["em", "--out={out}", "--variant=monte-carlo", "objective:iwae"],
        "takes no other",
    ),
    "no draws": (["generate", "{out}", "--num-draws=0"], "--num-draws"),
    "no shell": (["completion", "fish"], "bash.*zsh"),
    "configuration of nothing": (["fit", "--config", "{out}"], "there is no"),
    "configuration without a name": (["fit", "--config"], "after it"),
    "configuration that is an option": (["fit", "--config", "--out={out}"], "after it"),
    "configuration of a verb that has none": (["gaps", "{out}", "--config", "x"], "Unknown option --config"),
    "misspelt configuration": (["fit", "--out={out}", "--confg=x"], "Did you mean --config"),
    "an option of no part": (
        ["fit", "--out={out}", "--prior.scale", "2"],
        r"^pyro-vae: Unknown option --prior\.scale\. The default prior has none\. Name the part .*prior:NAME\. See",
    ),
    "a part without its kind": (["fit", "--out={out}", "laplace"], "Did you mean prior:laplace"),
    "a setting that training has not": (
        ["fit", "--out={out}", "--training.zzz", "2"],
        r"^pyro-vae: Unknown option --training\.zzz\. See",
    ),
    "no run given": (["gaps"], r"^pyro-vae: Missing from pyro-vae gaps: PATH .* See pyro-vae gaps --help\.$"),
    "no estimators": (["evaluate", "{out}", "--estimators"], "--estimators: expected one or more"),
    "the folder one is in": (["fit", "--out=."], "you are in it"),
    "unknown data": (["fit", "--out={out}", "--data=mnits"], "mnist"),
    "missing file": (["fit", "--out={out}", "--data=nothing.npy"], "nothing.npy"),
    "zero latents": (["fit", "--out={out}", "--num-latents=0"], "num_latents: expected a positive integer; got 0"),
    "zero epochs": (["fit", "--out={out}", "--training.epochs=0"], "epochs: expected an integer of at least 1; got 0"),
    "negative batch": (["fit", "--out={out}", "--training.batch-size=-1"], "batch_size"),
    "negative step": (["fit", "--out={out}", "training.optimizer:adam", "--training.optimizer.lr=-1"], "lr: expected"),
    "no number": (["fit", "--out={out}", "--num-latents=many"], "many"),
    "unknown option": (["fit", "--out={out}", "--latents=3"], "--latents"),
    "unknown likelihood": (
        ["fit", "--out={out}", "likelihood:bernouli"],
        r"Unknown part likelihood:bernouli\. Did you mean likelihood:bernoulli.*one of (likelihood:[\w-]+,? ?)+\. See",
    ),
    "misspelt option": (
        ["fit", "--out={out}", "--num-latent=3"],
        r"Unknown option --num-latent\. Did you mean --num-latents",
    ),
    "misspelt option of a part": (
        ["fit", "--out={out}", "prior:vamp-prior", "--prior.num-component", "5"],
        "Did you mean --prior.num-components",
    ),
    "an option of another part": (
        ["fit", "--out={out}", "prior:laplace", "--prior.degrees", "5"],
        "Unknown option --prior.degrees. prior:laplace has --prior.scale",
    ),
    "unknown kind of part": (["fit", "--out={out}", "piror:laplace"], "Did you mean prior:laplace"),
    "negative seed": (["fit", "--out={out}", "--seed=-1"], "seed"),
    "wrong likelihood": (
        ["fit", "--out={out}", "likelihood:bernoulli"],
        r"--data\.binarize fixed.*On the command line: likelihood:binomial, .*likelihood:poisson\.$",
    ),
    "too few counts": (
        ["fit", "--out={out}", "likelihood:binomial", "--likelihood.total-count=3"],
        "total_count|Binomial",
    ),
    "zero width": (["fit", "--out={out}", "decoder:mlp", "--decoder.hidden", "0"], "hidden"),
    "em on dynamic data": (
        ["em", "--out={out}", "--data.binarize=dynamic", "likelihood:bernoulli"],
        "fixed",
    ),
    "no run": (["gaps", "{out}"], r"expected a run folder; there is no folder /.*run\."),
    "no run, in a folder that is not there": (["gaps", "nowhere/mine"], r"there is no folder /.*/nowhere/mine\."),
    "a report of a folder that is not there": (["report", "nowhere"], r"there is no folder /.*/nowhere\."),
    "runs to compare": (
        ["compare", "runs/mine", "runs/x5"],
        r"Unknown word runs/mine\. pyro-vae compare fits .* takes no runs\..*pyro-vae study.*by_one_estimator",
    ),
    "an option before its part": (
        ["fit", "--out={out}", "--family.rank", "3", "family:low-rank", "--seed=1"],
        r"before family:low-rank\. Put --family\.rank 3 after family:low-rank\. See",
    ),
    "an option before its part, in one word": (
        ["fit", "--out={out}", "--prior.scale=2", "--num-latents", "3", "prior:laplace"],
        r"Put --prior\.scale=2 after prior:laplace\. See",
    ),
    "an option that takes its part for a value": (
        ["fit", "--out={out}", "--decoder.hidden", "3", "4", "decoder:mlp"],
        r"Put --decoder\.hidden 3 4 after decoder:mlp\. See",
    ),
    "no datapoints": (["gaps", "{out}", "--num-data=0"], "--num-data"),
    "nothing to compare": (["compare", "--out={out}", "--num-data=0"], "--num-data"),
    "compare with all dimensions": (["compare", "--out={out}", "--num-latents=64"], "num_latents: expected fewer"),
}


def _check_refusal(words, expected, out, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert not re.search("[─-]{3}", captured.err), captured.err  # nothing of a frame
    assert captured.out == ""
    assert captured.err.startswith("pyro-vae: ")
    assert captured.err.count("\n") == 1, captured.err
    assert re.search(expected, captured.err), captured.err
    assert not out.exists()
    assert not [entry for entry in out.parent.iterdir() if entry.name.startswith(".")]


class TestBadInput:
    @pytest.mark.parametrize("case", BAD_WORDS)
    def test_words(self, case, tmp_path, capsys):
        words, expected = BAD_WORDS[case]
        out = tmp_path / "run"
        _check_refusal([word.format(out=out) for word in words], expected, out, capsys)

    @pytest.mark.parametrize("case", BAD_DATA)
    def test_data(self, case, tmp_path, capsys):
        write, expected = BAD_DATA[case]
        write(tmp_path / "data.npy")
        out = tmp_path / "run"
        _check_refusal(["fit", f"--out={out}", f"--data={tmp_path / 'data.npy'}"], expected, out, capsys)

    def test_a_run_is_never_overwritten(self, runs, capsys):
        before = (runs / "svi" / "checkpoint.pt").read_bytes()
        assert main(["fit", f"--out={runs / 'svi'}", *SMALL]) == 2
        assert "already holds a run" in capsys.readouterr().err
        assert (runs / "svi" / "checkpoint.pt").read_bytes() == before

    def test_other_files_are_never_overwritten(self, tmp_path, capsys):
        (tmp_path / "thesis.tex").write_text("precious")
        assert main(["fit", f"--out={tmp_path}", *SMALL]) == 2
        assert "other files" in capsys.readouterr().err
        assert (tmp_path / "thesis.tex").read_text() == "precious"

    def test_a_fit_that_blows_up_leaves_nothing(self, tmp_path, capsys):
        out = tmp_path / "run"
        words = ["fit", f"--out={out}", *SMALL, "training.optimizer:sgd", "--training.optimizer.lr=1e30"]
        _check_refusal(words, "not finite", out, capsys)

    @pytest.mark.parametrize("case", ["no run given", "an option of no part", "no number", "unknown likelihood"])
    def test_where_the_terminal_has_no_frames(self, case, tmp_path, capsys, monkeypatch):
        """tyro frames its errors by other characters where the encoding is not UTF-8."""
        words, expected = BAD_WORDS[case]
        said = io.StringIO()
        monkeypatch.setattr(sys, "stdout", said)
        assert main([word.format(out=tmp_path / "run") for word in words]) == 2
        err = capsys.readouterr().err
        assert re.search(expected, err) and err.count("\n") == 1 and "---" not in err, err
        assert said.getvalue() == ""

    def test_from_a_shell_too(self, tmp_path):
        done = subprocess.run([sys.executable, "-m", "pyro_vae", "fit", "--data=x"], capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stdout == ""
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("words", [["list", "prior"], pytest.param(["fit", "--help"], marks=pytest.mark.slow)])
    def test_a_reader_who_goes_away(self, words):
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "w") as pipe:
            command = [sys.executable, "-m", "pyro_vae", *words]
            done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True)
        assert (done.returncode, done.stderr) == (0, "")

    def test_an_interruption(self, tmp_path, capsys, monkeypatch):
        def stop(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("pyro_vae.cli.fitting.fit_run", stop)
        assert main(["fit", f"--out={tmp_path / 'run'}"]) == 130
        captured = capsys.readouterr()
        assert captured.out == "" and "interrupted" in captured.err
        assert not list(tmp_path.iterdir())


DAMAGE = {
    "training.foo": (lambda config: config["training"].update(foo=1), "foo"),
    "no optimizer": (lambda config: config.update(training={}), "optimizer"),
    "data.foo": (lambda config: config["data"]["load"].update(foo=1), "foo"),
    "no data set": (lambda config: config.update(data={}), "load"),
    "no latents": (lambda config: config.update(sizes={}), "num_latents"),
    "versions": (lambda config: config.update(versions="1.0"), "versions|missing or unknown"),
}


class TestDamage:
    @pytest.mark.parametrize("case", DAMAGE)
    def test_a_configuration_is_refused_in_one_line(self, case, runs, tmp_path, capsys):
        damage, expected = DAMAGE[case]
        config = json.loads((runs / "svi" / "config.json").read_text())
        damage(config)
        (tmp_path / "config.json").write_text(json.dumps(config))
        _check_refusal(["fit", f"--config={tmp_path}", f"--out={tmp_path / 'run'}"], expected, tmp_path / "run", capsys)

    @pytest.mark.parametrize(
        ("name", "write", "expected"),
        [
            ("results.nc", lambda path: path.write_text("x"), r"results\.nc.*Delete it"),
            ("checkpoint.pt", lambda path: torch.save({"a": 1}, path), r"checkpoint\.pt.*holds others"),
            ("config.json", lambda path: path.write_text('{"command": "demo"}'), "pyro-vae demo wrote it"),
        ],
    )
    def test_a_file_of_a_run_is_refused_before_the_work(
        self, name, write, expected, runs, tmp_path, capsys, monkeypatch
    ):
        run = tmp_path / "run"
        shutil.copytree(runs / "svi", run)
        write(run / name)
        monkeypatch.setattr(pyro_vae.jobs, "measure_gaps", None)
        assert main(["gaps", str(run)]) == 2
        assert re.search(expected, capsys.readouterr().err)

    def test_a_file_in_place_of_a_run(self, runs, capsys):
        assert main(["gaps", str(runs / "svi" / "config.json")]) == 2
        assert "it is a file" in capsys.readouterr().err

    def test_pictures_are_made_anew_and_what_is_not_defined_is_null(self, runs, tmp_path, capsys):
        run = tmp_path / "run"
        shutil.copytree(runs / "svi", run)
        shutil.rmtree(run / "figures")
        assert main(["gaps", str(run), "--num-data=1", "--json", "--overwrite"]) == 0
        assert json.loads(capsys.readouterr().out)["amortization_gap"]["se"] is None
        assert (run / "figures" / "gaps.png").is_file()


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_overview_lists_every_verb(words, capsys):
    assert main(words) == (0 if words else 2)
    said = capsys.readouterr().out
    assert all(f"pyro-vae {verb}" in said for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example_that_parses(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    example = re.search(rf"Example: pyro-vae ({verb}.*)", re.sub(r"\x1b\[[0-9;]*m", "", said))
    assert example, said
    parse(_whole(verb).split())


def _whole(verb):
    """The example of a verb, which help may have broken into lines."""
    return re.search(r"Example: pyro-vae (.*)", VERBS[verb].__doc__).group(1)


def test_completion_of_zsh_knows_verbs_and_options(capsys):
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef pyro-vae") and "--num-latents" in script and "evaluate" in script


@pytest.fixture(scope="module")
def completion_script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "pyro-vae.bash"
    with path.open("w") as written, contextlib.redirect_stdout(written):
        assert main(["completion", "bash"]) == 0
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
class TestCompletionOfBash:
    @pytest.mark.parametrize(
        ("typed", "offered"),
        [
            ("fi", ["fit"]),
            ("fit --num-l", ["--num-latents"]),
            ("fit --conf", ["--config"]),
            # What follows a colon, a word of its own to bash.
            ("fit prior:la", ["laplace"]),
            ("em training.optimizer:", ["adam", "sgd"]),
            ("fit prior:vamp-prior --prior.", ["--prior.num-components"]),
            ("fit decoder:linear prior:laplace --prior.", ["--prior.scale"]),
            ("evaluate runs/a --split t", ["train", "test"]),
            ("em --variant mon", ["monte-carlo"]),
            ("list pr", ["prior"]),
            ("completion ", ["bash", "zsh"]),
            ("gaps runs/", []),  # and bash offers files
        ],
    )
    def test_what_the_tab_key_offers(self, completion_script, typed, offered):
        line = f"pyro-vae {typed}"
        typing = f'COMP_LINE="{line}" COMP_POINT={len(line)}; _pyro_vae'
        asked = f'source "{completion_script}"; {typing}; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "--norc", "-c", asked], capture_output=True, text=True, check=True)
        assert done.stdout.split() == offered and not done.stderr


def test_the_next_command_names_the_data(tmp_path):
    options = DataOptions(name="my data.csv", binarize="fixed", columns=("a", "b"), num_test=3)
    said = next_command("fit", *options.words())
    words = shlex.split(said.removeprefix("Next: pyro-vae "))
    assert parse(words).data == options


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pyro-vae {__version__}\n"


@pytest.mark.usefixtures("_no_pictures")
class TestDemo:
    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch):
        """The same demonstration with few epochs and datapoints; the whole one is `make demo`."""
        short = {name: pyro_vae.demo.Training(epochs=4, batch_size=50) for name in ("svi", "em")}
        measure = pyro_vae.demo.measure_run
        monkeypatch.setattr(pyro_vae.demo, "TRAINING", short)
        monkeypatch.setattr(pyro_vae.drawing, "NUM_DRAWN", 10)
        monkeypatch.setattr(pyro_vae.demo, "measure_run", lambda run, **options: measure(run, num_data=4, **options))

    @pytest.mark.slow
    def test_table_json_and_replacement(self, tmp_path, capsys, monkeypatch):
        out = tmp_path / "demo"
        out.mkdir()
        (out / "config.json").write_text('{"command": "demo"}')
        made = []

        def run_once(out, *, seed):
            if not made:
                made.append(pyro_vae.demo.run_demo(out, seed=seed))
            return made[0]

        monkeypatch.setattr(pyro_vae.cli.comparing, "run_demo", run_once)
        assert main(["demo", f"--out={out}"]) == 0
        said = capsys.readouterr()
        assert "replaced" in said.err
        assert "Model cost" in said.out
        assert said.out.splitlines()[-1] == f"Next: pyro-vae report {out / 'svi'}"
        assert main(["demo", f"--out={out}", "--json"]) == 0
        summary = json.loads(capsys.readouterr().out)
        assert summary == json.loads((out / "gaps.json").read_text())
        terms = {"log_evidence", "elbo_local", "elbo_amortized"}
        terms |= {"approximation_gap", "amortization_gap", "inference_gap"}
        for engine in ("svi", "em"):
            assert summary[engine].keys() > terms | {"num_data", "num_unconverged", "num_untrusted", "notes", "seed"}
            assert summary[engine]["amortization_gap"].keys() == {"mean", "se", "mc_se"}
        paired = open_run(out / "em").gaps.log_evidence - open_run(out / "svi").gaps.log_evidence
        assert summary["difference"]["log_evidence"]["mean"] == pytest.approx(float(paired.mean()))
        assert summary["difference"]["log_evidence"]["se"] == pytest.approx(float(paired.std()) / 4**0.5)
        assert {path.name for path in (out / "figures").iterdir()} >= {"elbo.png", "gaps.png", "gap_histogram.png"}
