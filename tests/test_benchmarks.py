"""What the studies in benchmarks/ compute from their measurements, and that they run."""

import dataclasses
import json

import pytest
import torch
from studies import common, gap_table, suboptimality

from inference import Evidence, Gaps
from pyro_vae.comparison import Scored, paired_difference

PRESET = dataclasses.replace(suboptimality.PRESETS["quick"], num_images=3)
ERROR = torch.full((6,), 0.1)


def gaps(log_p, local, amortized, *families):
    """Gaps of six images: these means, and what varies between images the same everywhere."""
    spread = torch.arange(6.0)
    terms = {"log_evidence": log_p, "elbo_local": local, "elbo_amortized": amortized}
    terms |= {"approximation_gap": log_p - local, "amortization_gap": local - amortized}
    terms |= {"inference_gap": log_p - amortized}
    columns = {term: value + (spread if "gap" not in term else 0.01 * spread) for term, value in terms.items()}
    return Gaps(
        **columns,
        **{f"{term}_se": ERROR for term in columns},
        converged=torch.ones(6, dtype=torch.bool),
        start_gap=torch.zeros(6),
        pareto_k=None,
        ess=None,
        family="q",
        evidence_method="exact",
        elbo_local_by_family=torch.stack([value + spread for value in families]) if families else None,
        elbo_local_by_family_se=torch.stack([ERROR for _ in families]) if families else None,
        estimates={"IWAE": Evidence(value=spread, se=ERROR, method="IWAE")},
        settings={"num_unconverged_by_family": [0 for _ in families]},
    )


def found():
    """Measurements of every variant in which all goes as expected, but for the wider encoder."""
    number = torch.tensor
    fixed = number(-90.0)
    return {
        "mean-field guide": gaps(fixed, number(-92.0), number(-95.0), number(-91.0)),
        "flow guide": gaps(number(-89.0), number(-90.0), number(-94.0), number(-91.0), number(-89.5)),
        "wider encoder": gaps(number(-89.0), number(-91.0), number(-95.0)),
        "deeper decoder": gaps(number(-88.0), number(-91.0), number(-95.0)),
        "linear decoder": gaps(number(-99.0), number(-99.5), number(-100.0)),
        "fixed decoder, mean-field guide": gaps(fixed, number(-92.0), number(-94.0)),
        "fixed decoder, flow guide": gaps(fixed, number(-91.5), number(-92.5)),
    }


def table():
    measured = found()
    return {
        title: gap_table.columns(variant, PRESET, measured[title], measured.get(variant.decoder_of))
        for title, variant in suboptimality.VARIANTS.items()
    }


def test_difference_is_that_of_the_library():
    values = torch.randn(2, 6), torch.rand(2, 6)
    columns = [(value, se) for value, se in zip(*values, strict=True)]
    records = [
        Scored(
            name="x", log_p=Evidence(value=value, se=se, method="x"), base_measure="counting", fingerprint="the same"
        )
        for value, se in columns
    ]
    assert common.difference(*columns) == paired_difference(*records)
    first = common.difference(*columns, rows=slice(0, 3))
    assert first["mean"] == pytest.approx(float((values[0][0] - values[0][1])[:3].mean()))


def test_verdicts():
    cases = {"as expected": (1.0, 0.4), "undecided": (1.0, 0.6), "contrary": (-1.0, 0.4)}
    for word, (mean, se) in cases.items():
        assert common.verdict({"mean": mean, "se": se, "mc_se": 0.0}) == word
    assert common.verdict({"mean": 1.0, "se": float("nan"), "mc_se": 0.0}) == "undecided"


def test_columns_of_a_variant():
    columns = table()
    first, flow, fixed = (columns[title] for title in ("mean-field guide", "flow guide", "fixed decoder, flow guide"))
    assert first["elbo_mean_field"][0][0] == -92 and first["elbo_flow"][0][0] == -91
    assert flow["elbo_mean_field"][0][0] == -91 and flow["elbo_flow"][0][0] == -89.5
    assert "elbo_flow" not in columns["wider encoder"]
    # The fixed decoder is the first one's: so are the best members of both families.
    assert fixed["elbo_mean_field"][0][0] == -92 and fixed["elbo_flow"][0][0] == -91
    assert fixed["amortization_gap_flow"][0][0] == -91 + 92.5
    assert fixed["amortization_gap_flow"][1][0] == pytest.approx(0.1 * 2**0.5)
    # A search for own weights that ended below the guide's own flow has not found the best one.
    measured = gaps(*torch.tensor([-89.0, -90.0, -94.0, -91.0, -90.5]))
    short = gap_table.columns(suboptimality.VARIANTS["flow guide"], PRESET, measured, None)
    assert short["elbo_flow"][0][0] == -90


def test_directions():
    claims = gap_table.directions("mnist", table(), 3, flow_converged=True)
    verdicts = {claim["expected"]: (claim["train"]["verdict"], claim["test"]["verdict"]) for claim in claims}
    assert verdicts.pop("a wider encoder has the smaller amortization gap") == ("contrary", "contrary")
    assert len(verdicts) == 4 and set(verdicts.values()) == {("as expected", "as expected")}
    fashion = gap_table.directions("fashion-mnist", table(), 3, flow_converged=False)
    (dominates,) = (claim for claim in fashion if "dominates" in claim["expected"])
    assert dominates["test"]["difference"]["mean"] == pytest.approx(3 - 2)
    # A search that fell short makes the gap to its end look small.
    (against_own,) = (claim for claim in fashion if claim["expected"] == gap_table.OWN_WEIGHTS)
    assert against_own["test"]["difference"]["mean"] > 0 and against_own["test"]["verdict"] == "undecided"


def test_a_folder_keeps_what_was_made_and_refuses_other_settings(tmp_path):
    common.open_folder(tmp_path / "study", {"seed": 0})
    common.open_folder(tmp_path / "study", {"seed": 0})
    with pytest.raises(ValueError, match="--out: .*other settings"):
        common.open_folder(tmp_path / "study", {"seed": 1})
    made = []

    def make():
        made.append(1)
        return {"gaps": found()["flow guide"]}

    first, second = (common.kept(tmp_path / "kept" / "flow.pt", make) for _ in range(2))
    assert len(made) == 1
    assert torch.equal(first["gaps"].elbo_local_by_family, second["gaps"].elbo_local_by_family)
    assert isinstance(second["gaps"].estimates["IWAE"], Evidence)


def test_the_record_and_its_picture(tmp_path):
    for title, measured in found().items():
        record = {"seconds": {"fit": 1.0, "measure": 1.0}}
        file = tmp_path / "mnist" / f"{common.slug(title)}.pt"
        common.kept(file, lambda measured=measured, record=record: {"gaps": measured, "record": record})
    record = {"datasets": {"mnist": gap_table.record_of("mnist", PRESET, tmp_path)}}
    record["settings"] = PRESET.describe()
    json.dumps(record)
    test = record["datasets"]["mnist"]["variants"]["mean-field guide"]["splits"]["test"]
    assert test["elbo_flow"]["mean"] == pytest.approx(-91 + 4)  # images 3, 4 and 5
    assert test["estimates"]["IWAE"]["mean"] == pytest.approx(4)
    gap_table.draw(record, tmp_path / "gaps.png")
    assert (tmp_path / "gaps.png").stat().st_size > 10_000
    assert "as expected" in gap_table.text_of(record)


@pytest.mark.slow
def test_inference_suboptimality_runs(tmp_path, run_benchmark):
    """Both data sets at a tiny size; then again, from what was kept."""
    for preset in ("paper", "paper"):
        done = run_benchmark("inference_suboptimality.py", tmp_path, f"--preset={preset}", "--jobs=1", "--device=cpu")
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "record.json").read_text()) == json.loads(done.stdout)
    refused = run_benchmark("inference_suboptimality.py", tmp_path, "--seed=1")
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and "other settings" in refused.stderr
