"""Verbs that were stopped, and go on: one line, the right exit code, nothing lost."""

import json
import signal
from pathlib import Path

import pytest
import torch

from inference import Stopped
from inference.checkpoint import load_checkpoint
from inference.training.saving import Saver
from pyro_vae.cli import main
from pyro_vae.folders import unfinished

SMALL = ["--num-latents=2", "--training.epochs=3", "--training.batch-size=200", "decoder:mlp", "encoder:mlp"]


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr("pyro_vae.drawing._draw", lambda *_, **__: None)


@pytest.fixture
def stop_at(monkeypatch):
    """As if a signal had come at a step."""
    between = Saver.between

    def stop(step, signum):
        def stopped(self, within, came):
            between(self, within, signum if self.state.step == step else came)

        monkeypatch.setattr(Saver, "between", stopped)

    yield stop
    monkeypatch.setattr(Saver, "between", between)


def weights(run):
    return load_checkpoint(Path(run) / "checkpoint.pt")["vae"]


@pytest.mark.parametrize(
    ("verb", "signum"), [("fit", signal.SIGTERM), pytest.param("em", signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_fit_goes_on_where_it_was_stopped(verb, signum, tmp_path, monkeypatch, capsys, stop_at):
    monkeypatch.chdir(tmp_path)
    assert main([verb, "--out", "whole", *SMALL]) == 0
    stop_at(8, signum)
    capsys.readouterr()
    assert main([verb, "--out", "cut", *SMALL]) == 128 + signum
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert f"stopped by {signum.name} after step 8: saved in cut.unfinished" in said.err
    assert said.err.endswith("Go on: pyro-vae resume cut\n")
    assert not Path("cut").exists() and list(Path("cut.unfinished").glob("step-*.pt"))
    monkeypatch.undo()
    monkeypatch.setattr("pyro_vae.drawing._draw", lambda *_, **__: None)
    # From another folder: what was typed there is meant.
    assert main(["resume", str(tmp_path / "cut")]) == 0
    assert not unfinished(tmp_path / "cut").exists()
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_same_command_goes_on_too(tmp_path, capsys, stop_at):
    command = ["fit", f"--out={tmp_path / 'run'}", *SMALL]
    stop_at(8, signal.SIGTERM)
    assert main(command) == 143
    assert main([*command[:2], "--seed=1", *command[2:]]) == 2
    assert "holds the state of another call: seed was 0, is 1" in capsys.readouterr().err
    stop_at(-1, signal.SIGTERM)
    assert main(command) == 0 and (tmp_path / "run" / "checkpoint.pt").is_file()


def test_overwrite_begins_anew_and_resume_does_not(tmp_path, capsys, stop_at):
    command = ["fit", f"--out={tmp_path / 'run'}", "--overwrite", *SMALL]
    stop_at(8, signal.SIGTERM)
    assert main(command) == 143
    stop_at(-1, signal.SIGTERM)
    before = sorted((tmp_path / "run.unfinished").glob("step-*.pt"))
    other = [word.replace("epochs=3", "epochs=2") for word in command]
    assert before and main(other) == 0
    stop_at(8, signal.SIGTERM)
    assert main(command) == 143
    steps = []
    stop_at(-1, signal.SIGTERM)
    import inference.training.saving as saving

    load = saving.Saver.load

    def loaded(self):
        within = load(self)
        steps.append(self.state.step)
        return within

    saving.Saver.load = loaded
    try:
        assert main(["resume", str(tmp_path / "run")]) == 0
    finally:
        saving.Saver.load = load
    assert steps == [8]


def test_nothing_to_go_on_from(tmp_path, capsys):
    assert main(["resume", str(tmp_path / "nowhere")]) == 2
    assert "expected a fit that was stopped; nothing was begun there" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    assert main(["resume", str(tmp_path / "run")]) == 2
    assert "the run there is complete: pyro-vae report" in capsys.readouterr().err
    state = unfinished(tmp_path / "cut")
    state.mkdir()
    for damaged in ("", "[]", '{"words": 3}', json.dumps({"words": ["fit"]})):
        (state / "command.json").write_text(damaged)
        assert main(["resume", str(tmp_path / "cut")]) == 2
        assert "it is damaged. Type that one again" in capsys.readouterr().err


def test_wrong_input_leaves_no_state(tmp_path, capsys):
    assert main(["fit", f"--out={tmp_path / 'run'}", "--data=nothing", *SMALL]) == 2
    assert list(tmp_path.iterdir()) == [], capsys.readouterr().err


@pytest.mark.slow
def test_gaps_go_on(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    assert main(["fit", f"--out={run}", *SMALL]) == 0
    monkeypatch.setattr("inference.scoring.VALUES_AT_ONCE", 1)
    import inference.gaps
    from inference import chunked

    chunk, done = chunked._chunk, []

    def counted(work, model, data, start, stop, **options):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(start)
        return chunk(work, model, data, start, stop, **options)

    monkeypatch.setattr(chunked, "_chunk", counted)
    assert main(["gaps", str(run), "--num-data=130"]) == 130
    assert "stopped after 64 of 130 datapoints of gaps; they are kept in" in capsys.readouterr().err
    monkeypatch.setattr(chunked, "_chunk", chunk)
    searched = []
    best = inference.gaps.best_rows

    def recorded(objective, x, *rest, **how):
        searched.append(len(x))
        return best(objective, x, *rest, **how)

    monkeypatch.setattr(inference.gaps, "best_rows", recorded)
    assert main(["gaps", str(run), "--num-data=130"]) == 0
    assert searched == [64, 2] and not list(run.glob("*.unfinished"))


def test_a_terminated_command_is_one_line(capsys, monkeypatch):
    import os

    def terminated(self):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    from pyro_vae.cli.showing import ListCommand

    monkeypatch.setattr(ListCommand, "__call__", terminated)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["list"]) == 143
    assert capsys.readouterr().err == "pyro-vae: interrupted; no run was written or replaced\n"
    assert signal.getsignal(signal.SIGTERM) is before and issubclass(Stopped, KeyboardInterrupt)
