import json
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
import torch
import xarray as xr

import pyro_vae.demo
import pyro_vae.jobs
from inference import Local, elbo
from pyro_vae import __version__, open_run
from pyro_vae.cli import main

SMALL = [
    "--training.epochs=3",
    "--num-latents=2",
    "decoder:mlp",
    "--decoder.hidden=16",
    "encoder:mlp",
    "--encoder.hidden=16",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One small run of each engine on the digits, as a user makes them."""
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("runs")
    for engine in ("svi", "em"):
        assert main(["fit", f"--out={folder / engine}", f"--engine={engine}", *SMALL]) == 0
    return folder


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

    def test_the_same_seed_gives_the_same_bits_in_another_process(self, runs, tmp_path):
        command = [sys.executable, "-m", "pyro_vae", "fit", f"--out={tmp_path / 'again'}", *SMALL]
        subprocess.run(command, check=True, capture_output=True)
        ours, theirs = (open_run(folder).vae.state_dict() for folder in (runs / "svi", tmp_path / "again"))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    def test_json_alone_on_standard_output(self, tmp_path, capsys):
        assert main(["fit", f"--out={tmp_path / 'run'}", "--json", *SMALL]) == 0
        record = json.loads(capsys.readouterr().out)
        assert len(record["elbo"]) == 3
        assert record["num_steps"] == 30


class TestGaps:
    @pytest.mark.parametrize("engine", ["svi", "em"])
    def test_measures_and_keeps(self, runs, engine, capsys):
        assert main(["gaps", str(runs / engine), "--num-data=10", "--families", "full-covariance"]) == 0
        said = capsys.readouterr().out
        assert "amortization gap" in said
        assert "L[q*] in FullCovariance(2)" in said
        run = open_run(runs / engine)
        assert run.vae.guide is not None  # the EM run has been given an encoder, and keeps it
        gaps = run.gaps
        assert len(gaps) == 10
        assert gaps.families == ("FullCovariance(2)",)
        assert (gaps.amortization_gap > -4 * gaps.amortization_gap_se).all()
        assert gaps.seconds.keys() >= {"search", "score", "evidence"}
        for name in ("gaps.png", "gap_histogram.png"):
            assert (runs / engine / "figures" / name).is_file()
        assert dict(run.results["posterior"].sizes)["obs_id"] == 100  # the draws stay

    def test_json_is_the_summary(self, runs, capsys):
        assert main(["gaps", str(runs / "svi"), "--num-data=10", "--json"]) == 0
        summary = json.loads(capsys.readouterr().out)
        assert summary == open_run(runs / "svi").gaps.summary()
        assert summary["num_data"] == 10

    def test_changed_data_are_refused(self, runs, tmp_path, capsys):
        data = tmp_path / "data.npy"
        rng = np.random.default_rng(0)
        np.save(data, rng.integers(0, 5, (60, 4)))
        assert main(["fit", f"--out={tmp_path / 'run'}", f"--data={data}", *SMALL]) == 0
        np.save(data, rng.integers(0, 5, (60, 4)))
        assert main(["gaps", str(tmp_path / "run")]) == 2
        assert "fingerprint" in capsys.readouterr().err


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
    "no command": ([], "fit"),
    "unknown command": (["foo"], "fit, gaps, compare, demo"),
    "no out": (["fit"], "--out"),
    "unknown data": (["fit", "--out={out}", "--data=mnits"], "mnist"),
    "missing file": (["fit", "--out={out}", "--data=nothing.npy"], "nothing.npy"),
    "zero latents": (["fit", "--out={out}", "--num-latents=0"], "num_latents: expected a positive integer; got 0"),
    "zero epochs": (["fit", "--out={out}", "--training.epochs=0"], "epochs: expected an integer of at least 1; got 0"),
    "negative batch": (["fit", "--out={out}", "--training.batch-size=-1"], "batch_size"),
    "negative step": (["fit", "--out={out}", "training.optimizer:adam", "--training.optimizer.lr=-1"], "lr: expected"),
    "no number": (["fit", "--out={out}", "--num-latents=many"], "many"),
    "unknown option": (["fit", "--out={out}", "--latents=3"], "--latents"),
    "unknown likelihood": (["fit", "--out={out}", "likelihood:bernouli"], "likelihood:bernoulli"),
    "negative seed": (["fit", "--out={out}", "--seed=-1"], "seed"),
    "wrong likelihood": (["fit", "--out={out}", "likelihood:bernoulli"], "--data.binarize fixed"),
    "too few counts": (
        ["fit", "--out={out}", "likelihood:binomial", "--likelihood.total-count=3"],
        "total_count|Binomial",
    ),
    "zero width": (["fit", "--out={out}", "decoder:mlp", "--decoder.hidden", "0"], "hidden"),
    "em on dynamic data": (
        ["fit", "--out={out}", "--engine=em", "--data.binarize=dynamic", "likelihood:bernoulli"],
        "fixed",
    ),
    "no run": (["gaps", "{out}"], "expected a run folder"),
    "no datapoints": (["gaps", "{out}", "--num-data=0"], "--num-data"),
    "nothing to compare": (["compare", "--out={out}", "--num-data=0"], "--num-data"),
    "compare with all dimensions": (["compare", "--out={out}", "--num-latents=64"], "num_latents: expected fewer"),
}


def _check_refusal(words, expected, out, capsys):
    import re

    assert main(words) == 2
    captured = capsys.readouterr()
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

    def test_from_a_shell_too(self, tmp_path):
        done = subprocess.run([sys.executable, "-m", "pyro_vae", "fit", "--data=x"], capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stdout == ""
        assert "Traceback" not in done.stderr


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pyro-vae {__version__}\n"


class TestDemo:
    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch):
        """The same demonstration with few epochs and datapoints; the whole one is `make demo`."""
        short = {name: pyro_vae.demo.Training(epochs=10, batch_size=50) for name in ("svi", "em")}
        measure = pyro_vae.demo.measure_run
        monkeypatch.setattr(pyro_vae.demo, "TRAINING", short)
        monkeypatch.setattr(pyro_vae.jobs, "NUM_DRAWN", 10)
        monkeypatch.setattr(pyro_vae.demo, "measure_run", lambda run, **options: measure(run, num_data=4, **options))

    def test_json_and_replacement(self, tmp_path, capsys):
        out = tmp_path / "demo"
        assert main(["demo", f"--out={out}", "--json"]) == 0
        first = capsys.readouterr()
        summary = json.loads(first.out)
        terms = {"log_evidence", "elbo_local", "elbo_amortized"}
        terms |= {"approximation_gap", "amortization_gap", "inference_gap"}
        for engine in ("svi", "em"):
            assert summary[engine].keys() == terms | {"num_data", "num_unconverged"}
            assert summary[engine]["amortization_gap"].keys() == {"mean", "se", "mc_se"}
        paired = open_run(out / "em").gaps.log_evidence - open_run(out / "svi").gaps.log_evidence
        assert summary["difference"]["log_evidence"]["mean"] == pytest.approx(float(paired.mean()))
        assert summary["difference"]["log_evidence"]["se"] == pytest.approx(float(paired.std()) / 4**0.5)
        assert {path.name for path in (out / "figures").iterdir()} == {"elbo.png", "gaps.png", "gap_histogram.png"}

        assert main(["demo", f"--out={out}"]) == 0
        second = capsys.readouterr()
        assert "replaced" in second.err
        assert "Model cost" in second.out
        assert "pyro-vae gaps" in second.out
        again = json.loads((out / "gaps.json").read_text())
        assert again == summary  # the same seed, the same numbers
