"""What benchmarks/speed.py computes from its timings, and that every part runs."""

import importlib
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import speed
import torch
from timing import (
    cores,
    leapfrogs,
    machine,
    markdown,
    picture,
    protocol,
    race,
    race_rivals,
    race_score,
    rounds,
    sizes,
    targets,
    threads,
    training,
)
from timing.methods import fit_svi, networks, products


def cell(name, **changes):
    return protocol.Cell(data=name, widths=(12, 6, 2), batch=4, steps=3, **changes)


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.npy"
    np.save(file, (np.random.default_rng(0).random((20, 12)) < 0.4).astype(np.uint8))
    return str(file)


class Asked:
    """A benchmark that asks for so many blocks."""

    def __init__(self, blocks):
        self.blocks = blocks
        self.answers = []

    def ask(self, answer):
        self.answers.append(answer)
        self.blocks -= 1
        return self.blocks >= 0


def test_a_turn_is_every_method_once_and_each_round_begins_with_another():
    probe = machine.Probe()
    order = list(rounds.turning(["a", "b", "c"], 3, probe))
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"] and len(probe.ms) == 3
    values = iter(range(6))
    found = rounds.alternate({"a": lambda: next(values), "b": lambda: -next(values)}, 3, probe)
    assert found == {"a": [0, 3, 4], "b": [-1, -2, -5]}
    assert rounds.summary([3.0, 1.0, 2.0]) == {"median": 2.0, "best": 1.0, "worst": 3.0, "rounds": 3}


def test_ratios_are_of_medians_and_of_bests():
    slow, fast = rounds.summary([4.0, 8.0, 6.0]), rounds.summary([2.0, 3.0, 1.0])
    assert rounds.ratio(slow, fast) == {"median": 3.0, "best": 4.0}
    assert rounds.ratio(None, fast) is None and rounds.ratio(slow, {}) is None


def test_a_disturbed_run_is_said_to_be_so():
    probe = machine.Probe()
    probe.ms, probe.others = [1.0] * 18 + [1.6, 9.0], [(0.1, 2.0)] * 20
    assert probe.summary()["disturbed_rounds"] == 2 and not probe.summary()["disturbed"]
    assert probe.summary()["others_cores"] == pytest.approx(0.05)
    probe.others[0] = (1.0, 2.0)
    assert probe.summary()["disturbed_rounds"] == 3 and probe.summary()["disturbed"]


def test_how_far_apart_the_cores_are():
    nanoseconds = cores.handover_ns()
    if nanoseconds is None:
        pytest.skip("one core, or no C compiler")
    assert 1 < nanoseconds < 1e5
    probe = machine.Probe()
    probe.ms, probe.others, probe.handover_ns = [1.0], [(0.0, 1.0)], []
    assert probe.summary()["rounds_with_far_cores"] is None
    probe.handover_ns = [30.0, 165.0, 28.0]
    assert probe.summary()["rounds_with_far_cores"] == 1
    assert probe.summary()["handover_ns"] == {"best": 28.0, "worst": 165.0}


def test_what_others_do_meanwhile_is_counted(monkeypatch):
    """All cores worked 3 s while a block of ours worked 1 s."""
    busy = iter([10.0, 13.0])
    monkeypatch.setattr(machine, "busy_seconds", lambda: next(busy))
    probe = machine.Probe()
    probe()
    assert probe.watch(lambda: "done", lambda result: float(len(result) == 4)) == "done"
    assert probe.others[0][0] == 2.0 and probe.others[0][1] > 0


def test_a_pipe_ends_with_the_last_block_and_with_the_last_line():
    lines = [{"do": "block"}, {"do": "end"}]
    pipe = protocol.Pipe(io.StringIO("".join(json.dumps(line) + "\n" for line in lines)), io.StringIO())
    assert [pipe.ask({}), pipe.ask({}), pipe.ask({})] == [True, False, False]


@pytest.mark.parametrize("method", ["eager", "compiled", "pyro_svi", "products", "fit_svi"])
def test_methods_serve_blocks(method, rows):
    torch.set_default_dtype(torch.float32)
    asked = Asked(3)
    options = {"backend": "eager"} if method == "compiled" else {}
    module = importlib.import_module(f"timing.methods.{method}")
    module.run(cell(rows, options=options), asked)
    first, *timed = asked.answers
    assert "ms" not in first and len(timed) == 3 and all(answer["ms"] > 0 for answer in timed)
    if method != "products":
        # The loss is minus the ELBO of 12 pixels, nats per datapoint.
        assert all(4 < answer["loss"] < 12 for answer in timed)


def test_products_are_those_of_forward_and_backward():
    """Of every layer three, but for the first, which has no gradient in x."""
    assert products.shapes((784, 400, 20)) == [(784, 400), (400, 40), (20, 400), (400, 784)]
    step = products.products(cell(""), torch.float32)
    step()
    (work,) = (held.cell_contents for held in step.__closure__)
    assert len(work) == 3 * 4 - 1
    flops = sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b, _ in work)
    layers = products.shapes(cell("").widths)
    assert flops == 2 * 4 * (3 * sum(a * b for a, b in layers) - layers[0][0] * layers[0][1])


def exact_problem():
    """A decoder that ignores z: q* is the prior, and the ELBO there is log p(x)."""
    decoder = torch.nn.Linear(2, 12)
    torch.nn.init.zeros_(decoder.weight)
    torch.nn.init.zeros_(decoder.bias)
    return decoder.requires_grad_(requires_grad=False), (torch.rand(5, 12) < 0.5).double()


def test_the_judge_knows_the_elbo():
    decoder, x = exact_problem()
    judge = race_score.Judge(decoder, x, 2, num_draws=8, seed=0)
    shifted = race_rivals.Rows(torch.ones(5, 2), torch.zeros(5, 2))
    assert judge(shifted).tolist() == pytest.approx([-12 * math.log(2) - 1] * 5)
    rows, share = race_score.better(shifted, race_rivals.Rows(torch.zeros(5, 2), torch.zeros(5, 2)), judge)
    assert share == 0 and not rows.mean.any()


def test_both_rivals_find_the_prior():
    decoder, x = exact_problem()
    start = race_rivals.Rows(torch.full((5, 2), 0.3), torch.full((5, 2), -0.2))
    found = race_rivals.adam(decoder, x, start, steps=300, rate=0.05, seed=0)
    assert all(part.abs().max() < 0.02 for part in found)
    looks = []

    def gap_of(rows):
        looks.append(rows)
        return 1.0 if len(looks) < 3 else 0.01

    slow = race_rivals.dynamics_of_2018(decoder, x, 2, gap_of, below=0.05, cap=60.0, first_look=10, seed=0)
    assert [snapshot.steps for snapshot in slow] == [10, 12, 14] and slow[-1].gap == 0.01
    ended = race_rivals.dynamics_of_2018(decoder, x, 2, lambda _: 1.0, below=0.05, cap=0.0, seed=0)
    assert ended[-1].steps == 50 and ended[-1].gap == 1.0


def test_the_smallest_budget_is_found_between_rungs():
    points = [race.Point(100, 1.0, 0.5), race.Point(200, 2.0, 0.01)]
    assert race.refined_budget(points, lambda steps: steps, lambda steps: 0.2 - steps / 1000, 0.05) in range(151, 164)
    assert race.refined_budget(points[:1], lambda steps: steps, float, 0.05) is None


def test_the_chains_of_2018_weigh_the_evidence():
    """Of a decoder that ignores z, every weight is exact; of another, the mean of the weights is p(x)."""
    decoder, x = exact_problem()
    betas = torch.linspace(0, 1, 5)
    log_w = leapfrogs.chains_of_2018(decoder, x, 2, num_chains=3, betas=betas)
    assert log_w.tolist() == pytest.approx([-12 * math.log(2)] * 15)
    decoder.weight.copy_(0.3 * torch.randn(12, 2))
    log_w = leapfrogs.chains_of_2018(decoder, x, 2, num_chains=400, betas=torch.linspace(0, 1, 20))
    draws = torch.randn(20000, 2)
    log_p = -torch.nn.functional.binary_cross_entropy_with_logits(
        decoder(draws)[:, None].expand(-1, 5, -1), x.expand(20000, -1, -1), reduction="none"
    ).sum(-1)
    truth = log_p.logsumexp(0) - math.log(20000)
    found = log_w.unflatten(0, (400, 5)).logsumexp(0) - math.log(400)
    assert bool(((found - truth).abs() < 0.05).all())


def measured():
    """A record in which our step takes 2 ms at every size, and everything else twice as long."""
    t = training
    ms = {name: {"median": 4.0, "best": 2.0} for name in (t.PYRO, t.EAGER, t.COMPILED, t.OURS_BF16, t.PRODUCTS)}
    ms[t.OURS] = {"median": 2.0, "best": 1.0}
    cells = [
        {"widths": [784, width, 2], "batch": batch, "device": "cpu", "ms": ms, "errors": {"pythae": "no"}}
        for width in (200, 400)
        for batch in (1, 128)
    ]
    part = {
        "seconds": {
            "refine < 0.05": {"median": 1.0, "best": 1.0},
            "Adam, one copy < 0.05": {"median": 12.0, "best": 9.0},
        },
        "ladders": {race.OURS: [race.Point({}, 1.0, 0.04)._asdict()], race.ADAM: []},
        "num_images": 5,
        race.SLOW: {
            "snapshots": [{"seconds": 90.0, "gap": 0.2}],
            "below": 0.05,
            "reached": False,
            "seconds": 90.0,
        },
    }
    ladders = {"q*": [{"seconds": 1.0, "width": {"mean": 0.4}}], "prior": [{"seconds": 9.0, "width": {"mean": 0.6}}]}
    return {
        "training": {"cells": cells},
        "estep": {"mnist": part},
        "ais": {
            "leapfrogs": {"ratio_to_2018": {leapfrogs.OURS: {"median": 2.5, "best": 2.0}}},
            "widths": {"ratios": {}, "ladders": ladders, "width": 0.5},
        },
    }


def test_targets_and_their_verdicts():
    found = {target.line: target for target in targets.targets(measured())}
    verdicts = [target.verdict for target in found.values()]
    assert verdicts[:6] == ["not measured", "met", "met", "acceptable", "missed", "missed"]
    assert verdicts[6:] == ["met", "acceptable", "acceptable", "not measured", "not measured"]
    slow = found["... against the dynamics of 2018, one copy a point"]
    assert slow.lower_bound and slow.measured == {"mnist": 90.0}
    text = targets.text_of(list(found.values()))
    assert ">= 90.00" in text and text.count("\n") == len(found)
    assert "failed: no" in targets.training_text(measured())
    json.dumps(targets.as_records(list(found.values())))
    assert {target.verdict for target in targets.targets({})} == {"not measured"}


def test_tables_of_two_runs():
    record = measured()
    record["targets"] = targets.as_records(targets.targets(record))
    record["training"]["fixed_overhead"] = record["training"]["cells"][0]
    record["ais"]["leapfrogs"]["rows_a_second"] = {leapfrogs.SLOW: 30000.0}
    record["ais"]["widths"]["seconds"] = {}
    text = markdown.tables([record, record])
    assert "| > 90 (acceptable) | > 90 (acceptable) |" in text and "| 30,000 |" in text and "| > 90 |" in text


def test_the_picture(tmp_path):
    picture.draw(measured(), tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 10_000


def test_plain_network_has_the_sizes_of_ours():
    plain, ours = networks.PlainVAE((12, 6, 2)), fit_svi.build((12, 6, 2))
    assert sum(w.numel() for w in plain.parameters()) == sum(w.numel() for w in ours.parameters())


@pytest.mark.parametrize("part", ["precision", "estep", pytest.param("ais", marks=pytest.mark.slow), "em"])
def test_a_part_runs(part, tmp_path):
    torch.set_default_dtype(torch.float32)
    record = speed.run(sizes.TINY, [part], tmp_path, tmp_path / "kept", numpyro=None, pythae=None)
    json.dumps(record)
    assert part in record and record["disturbance"]["rounds"] > 0
    picture.draw(record, tmp_path / "speed.png")
    assert markdown.tables([record])
    if part == "precision":
        assert len(record[part]["elbo"]["bfloat16"]) == 2 and record[part]["difference"]["se"] > 0
    elif part == "em":
        assert record[part]["num_data"] == 600 and record[part]["1 steps"]["us_a_datapoint"] > 0
    elif part == "estep":
        (found,) = record["estep"].values()
        assert found["reference"]["elbo"] < 0 and found["ladders"][race.ADAM][-1]["gap"] < found["start_gap"]
    else:
        assert set(record["ais"]["leapfrogs"]["rows_a_second"]) >= {leapfrogs.OURS, leapfrogs.SLOW}
        assert all(
            math.isfinite(rung["width"]["mean"]) for rung in record["ais"]["widths"]["ladders"]["prior, as published"]
        )


@pytest.mark.slow
def test_training_runs(tmp_path):
    """Every method that this interpreter has, in processes of their own, by the script."""
    root = Path(speed.__file__).resolve().parents[1]
    command = [sys.executable, speed.__file__, f"--out={tmp_path}", "--dry-run", "--only", "training"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    for found in (*record["training"]["cells"], record["training"]["fixed_overhead"]):
        assert {training.OURS, training.PYRO, training.EAGER, training.COMPILED} <= set(found["ms"]), found["errors"]
    assert record["training"]["fixed_overhead"]["profile_of_fit_svi"]["python"]
    assert "ratio" in done.stderr and (tmp_path / "speed.png").exists()


def test_a_neighbour_is_measured_in_processes_of_their_own():
    found = threads.measure({"OMP_NUM_THREADS": "1"}, 0.05, neighbour=True)
    assert found["threads"] == 1 and 0 < found["best"] <= found["median"] <= found["worst"]
    assert "default" in threads.text_of({"default": {"alone": found, "neighbour": found}})


@pytest.mark.slow
def test_the_gpu_benchmark_runs_with_the_cpu_in_its_place(tmp_path, run_benchmark):
    done = run_benchmark("gpu.py", tmp_path, "--device=cpu")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert {"training", "em", "precision", "agreement"} <= set(record)
    assert all(one["largest_difference"] == 0 for name, one in record["agreement"].items() if name != "num_data")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says that there is no GPU")
def test_the_gpu_benchmark_says_that_there_is_none(tmp_path, run_benchmark):
    done = run_benchmark("gpu.py", tmp_path)
    assert done.returncode == 2 and "torch sees none" in done.stderr
