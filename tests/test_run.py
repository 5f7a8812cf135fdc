import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from inference import Fit
from pyro_vae import VAE
from pyro_vae.folders import new_folder
from pyro_vae.parts import Parts, Sizes
from pyro_vae.run import Run, open_run, save_run


def test_a_run_in_print_at_a_prompt_and_in_a_notebook():
    parts = {"prior": {"part": "laplace", "scale": 1.0}, "decoder": {"part": "mlp", "hidden": [16]}}
    config = {
        "data": {"load": {"name_or_path": "<digits>"}},
        "engine": "svi",
        "parts": parts,
        "sizes": {"num_latents": 3},
    }
    elbo = torch.linspace(-9.0, -8.5, 4)
    fit = Fit(elbo=elbo, elbo_validation=None, seconds=1.0, num_steps=4, stopped_because="the budget ended")
    run = Run(Path("runs/a"), config, torch.nn.Linear(2, 2), fit)
    assert repr(run) == f"Run(folder='runs/a', data='<digits>', engine=svi, fit={fit!r})" and "\n" not in repr(run)
    *described, last = str(run).splitlines()
    assert [line.split(maxsplit=1) for line in described] == [
        ["run", "runs/a"],
        ["data", "<digits>"],
        ["engine", "SVI"],
        ["prior", "laplace"],
        ["decoder", "mlp"],
        ["latents", "3"],
    ]
    assert last == str(fit)
    html = run._repr_html_()
    assert "&lt;digits&gt;" in html and "laplace" in html and "ELBO -8.500" in html and "<digits>" not in html


class TestNewFolder:
    def test_appears_whole(self, tmp_path):
        out = tmp_path / "a" / "b"
        with new_folder(out) as folder:
            (folder / "config.json").write_text("{}")
            assert not out.exists()
        assert [entry.name for entry in out.iterdir()] == ["config.json"]
        assert [entry.name for entry in out.parent.iterdir()] == ["b"]

    def test_vanishes_when_it_fails(self, tmp_path):
        with pytest.raises(RuntimeError, match="stop"), new_folder(tmp_path / "run") as folder:
            (folder / "config.json").write_text("{}")
            raise RuntimeError("stop")
        assert list(tmp_path.iterdir()) == []

    def test_an_old_run_stays_until_the_new_one_is_whole(self, tmp_path):
        out = tmp_path / "run"
        with new_folder(out) as folder:
            (folder / "config.json").write_text("old")
        with pytest.raises(RuntimeError, match="stop"), new_folder(out, replace=True):
            raise RuntimeError("stop")
        assert (out / "config.json").read_text() == "old"
        with new_folder(out, replace=True) as folder:
            (folder / "config.json").write_text("new")
        assert (out / "config.json").read_text() == "new"

    def test_an_empty_folder_is_taken(self, tmp_path):
        (tmp_path / "run").mkdir()
        with new_folder(tmp_path / "run") as folder:
            (folder / "config.json").write_text("{}")
        assert (tmp_path / "run" / "config.json").is_file()

    @pytest.mark.parametrize("replace", [False, True])
    def test_what_is_no_run_is_not_touched(self, tmp_path, replace):
        (tmp_path / "letter").write_text("x")
        with pytest.raises(ValueError, match="other files"), new_folder(tmp_path, replace=replace):
            pass
        with pytest.raises(ValueError, match="it is a file"), new_folder(tmp_path / "letter", replace=replace):
            pass
        assert (tmp_path / "letter").read_text() == "x"

    def test_a_link_leads_to_the_folder(self, tmp_path):
        (tmp_path / "far").mkdir()
        (tmp_path / "near").symlink_to(tmp_path / "far")
        with new_folder(tmp_path / "near") as folder:
            (folder / "config.json").write_text("{}")
        assert (tmp_path / "near").is_symlink() and (tmp_path / "far" / "config.json").is_file()

    def test_the_old_run_comes_back_when_the_new_one_cannot_take_its_place(self, tmp_path):
        out = tmp_path / "run"
        with new_folder(out) as folder:
            (folder / "config.json").write_text("old")
        with pytest.raises(OSError), new_folder(out, replace=True) as folder:  # noqa: PT011 (the system's)
            shutil.rmtree(folder)  # what shall take its place is gone
        assert (out / "config.json").read_text() == "old"

    @pytest.mark.parametrize("name", [".", "..", ""])
    def test_the_folder_one_is_in_stays(self, tmp_path, monkeypatch, name):
        (tmp_path / "a").mkdir()
        monkeypatch.chdir(tmp_path / "a")
        with pytest.raises(ValueError, match="you are in it"), new_folder(Path(name)):
            pass

    @pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
    def test_who_may_read_it_is_for_the_umask_to_say(self, tmp_path, mask):
        before = os.umask(mask)
        try:
            with new_folder(tmp_path / "run"):
                pass
        finally:
            os.umask(before)
        assert (tmp_path / "run").stat().st_mode & 0o777 == 0o777 & ~mask

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(ValueError, match="cannot be written"), new_folder(tmp_path / "file" / "run"):
            pass


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        pytest.param(None, FileNotFoundError, "expected a run folder", id="no folder"),
        pytest.param("{", ValueError, "expected JSON", id="torn configuration"),
        pytest.param("{}", ValueError, "in it 'parts' is missing", id="empty configuration"),
        pytest.param(
            json.dumps({"parts": {"prior": {"part": "nobody"}}, "sizes": {}}), ValueError, "nobody", id="unknown part"
        ),
        pytest.param(
            json.dumps({"parts": {}, "sizes": {"num_latents": 2, "num_values": 3}}),
            FileNotFoundError,
            "checkpoint",
            id="no checkpoint",
        ),
    ],
)
def test_open_run_says_what_is_wrong(tmp_path, config, error, message):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(error, match=message) as caught:
        open_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_fit_without_an_elbo_comes_back(tmp_path):
    parts, sizes = Parts(), Sizes(num_latents=2, num_values=4)
    vae = VAE(**parts.build(sizes) | {"encoder": None})
    fit = Fit(
        elbo=None,
        log_joint=torch.tensor([-3.0, -2.0]),
        elbo_validation=torch.tensor([-4.0, -3.5]),
        seconds=1.0,
        num_steps=2,
        stopped_because="the budget ended",
    )
    config = {"parts": parts.to_config(), "sizes": dataclasses.asdict(sizes)}
    save_run(tmp_path, config=config, vae=vae, fit=fit, terms={2: {"kl": float("nan")}})
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [
        {"epoch": 1, "log_joint": -3.0, "elbo_validation": -4.0},
        {"epoch": 2, "log_joint": -2.0, "elbo_validation": -3.5, "kl": None},  # NaN is no JSON
    ]
    run = open_run(tmp_path)
    assert "data='unknown'" in repr(run) and "unknown" in str(run)
    again = run.fit
    assert str(again) == str(fit) and again.elbo is None and torch.equal(again.log_joint, fit.log_joint)
