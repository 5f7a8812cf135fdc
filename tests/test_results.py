import copy
import dataclasses
import math
import pickle
from xml.etree import ElementTree

import pytest
import torch

from inference.results import Evidence, Fit, Gaps, Note, Refined, summarise
from inference.results.summary import fixed, table_row

N = 6


def gaps(**changes):
    """Six datapoints whose terms fit together, exact unless told otherwise."""
    log_evidence = torch.tensor([-10.0, -11.0, -12.0, -13.0, -14.0, -15.0])
    approximation = torch.tensor([0.1, 0.2, 0.1, 0.2, 0.1, 0.2])
    amortization = torch.tensor([0.5, 0.1, 0.9, -0.01, 0.3, 0.7])
    fields = {
        "log_evidence": log_evidence,
        "elbo_local": log_evidence - approximation,
        "elbo_amortized": log_evidence - approximation - amortization,
        "approximation_gap": approximation,
        "amortization_gap": amortization,
        "inference_gap": approximation + amortization,
        **{f"{term}_se": torch.full((N,), 0.01 * i) for i, term in enumerate(Gaps.TERMS)},
        "converged": torch.tensor([True, True, True, False, True, True]),
        "start_gap": torch.tensor([0.0, 0.01, 0.5, math.nan, 0.02, 0.2]),
        "pareto_k": torch.tensor([0.1, 0.6, 0.8, math.nan, 0.3, 0.55]),
        "ess": torch.full((N,), 900.0),
        "family": "MeanField(8)",
        "evidence_method": "IWAE, 5000 draws",
        "is_lower_bound": True,
    }
    return Gaps(**{**fields, **changes})


def test_terms_are_fields():
    names = {field.name for field in dataclasses.fields(Gaps)}
    assert {*Gaps.TERMS, *(f"{term}_se" for term in Gaps.TERMS)} <= names
    assert len(gaps()) == N


def test_summary_is_the_formulas():
    record = gaps(amortization_gap_se=torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
    summary = record.summary()
    further = ["families", "notes", "family", "evidence_method", "seed", "settings"]
    assert list(summary) == [*Gaps.TERMS, "num_data", "num_unconverged", "num_untrusted", *further]
    assert summary["num_untrusted"] == 1 and gaps(pareto_k=None).summary()["num_untrusted"] is None
    assert summary["families"] == {} and summary["family"] == "MeanField(8)" and summary["seed"] is None
    assert summary["notes"] == list(map(str, record.notes()))
    assert summary["num_data"] == N and summary["num_unconverged"] == 1
    for term in Gaps.TERMS:
        value, se = getattr(record, term).tolist(), getattr(record, f"{term}_se").tolist()
        mean = sum(value) / N
        assert summary[term] == pytest.approx(
            {
                "mean": mean,
                "se": math.sqrt(sum((v - mean) ** 2 for v in value) / (N - 1) / N),
                "mc_se": math.sqrt(sum(s**2 for s in se)) / N,
            }
        )
    assert summary["amortization_gap"]["mc_se"] == pytest.approx(math.sqrt(0.91) / 6)


def test_summarise_limits():
    one = summarise(torch.tensor([2.0]), torch.tensor([0.5]))
    assert one["mean"] == 2.0 and math.isnan(one["se"]) and one["mc_se"] == 0.5
    assert all(math.isnan(value) for value in summarise(torch.zeros(0), torch.zeros(0)).values())
    # A float32 sum over many datapoints would lose the third digit here.
    many = summarise(torch.full((100_000,), -543.21, dtype=torch.float32), torch.zeros(100_000, dtype=torch.float32))
    assert many["mean"] == pytest.approx(-543.21, abs=1e-4)


def test_parts_of_the_summary_sum():
    summary = gaps().summary()
    assert summary["inference_gap"]["mean"] == pytest.approx(
        summary["approximation_gap"]["mean"] + summary["amortization_gap"]["mean"]
    )


def test_by_labels():
    record = gaps()
    groups = record.by([7, 3, 7, 3, 7, 7])
    assert list(groups) == [3, 7]
    assert groups[3]["num_data"] == 2 and groups[7]["num_data"] == 4
    assert groups[3]["num_unconverged"] == 1 and groups[7]["num_unconverged"] == 0
    assert groups[3]["amortization_gap"]["mean"] == pytest.approx((0.1 - 0.01) / 2)
    assert groups[7]["log_evidence"]["mean"] == pytest.approx(-51 / 4)
    assert groups[3]["num_untrusted"] == 0 and groups[7]["num_untrusted"] == 1
    whole = record.by(torch.zeros(N, dtype=torch.long))[0]
    assert whole == {name: record.summary()[name] for name in whole}


def test_table_by_labels():
    header, *rows = gaps().table_by([7, 3, 7, 3, 7, 7]).splitlines()
    assert header.split() == "label N approximation gap se amortization gap se inference gap se".split()
    groups = gaps().by([7, 3, 7, 3, 7, 7])
    for row, (label, summary) in zip(rows, groups.items(), strict=True):
        numbers = [summary[gap][which] for gap in Gaps.GAPS for which in ("mean", "se")]
        assert [float(n) for n in row.split()] == pytest.approx([label, summary["num_data"], *numbers], abs=6e-5)
    assert len({len(line) for line in (header, *rows)}) == 1


@pytest.mark.parametrize(
    "labels",
    [[1, 2], torch.zeros(N, 1, dtype=torch.long), torch.zeros(N)],
    ids=["too few", "a matrix", "not integers"],
)
def test_bad_labels(labels):
    with pytest.raises(ValueError, match=rf"labels: expected integers of shape \({N},\), one a datapoint; got"):
        gaps().by(labels)


def test_worst():
    assert gaps().worst(3).tolist() == [2, 5, 0]
    assert gaps().worst(100).tolist() == [2, 5, 0, 4, 1, 3]


def test_table():
    lines = str(gaps()).splitlines()
    assert lines[0].split() == ["nats", "per", "datapoint", "mean", "se", "mc_se"]
    rows = {line[:28].strip(): line[28:].split() for line in lines[1:7]}
    assert list(rows) == ["log p(x)", "L[q*]", "L[q]", "approximation gap", "amortization gap", "inference gap"]
    summary = gaps().summary()
    for numbers, term in zip(rows.values(), Gaps.TERMS, strict=True):
        assert [float(n) for n in numbers] == pytest.approx(list(summary[term].values()), abs=6e-5)
    assert len({len(line) for line in lines[:7]}) == 1


def test_notes():
    notes = "\n".join(str(gaps()).splitlines()[7:])
    for part in (
        "N = 6; q in MeanField(8).\nlog p(x): IWAE, 5000 draws.",
        "the amortization gap is under-estimated",
        "the inference gap is under-estimated",
        "approximation gap can err either way",
        "Not converged: 1 of 6",
        "more than 0.1 nat apart at 2 of 6",
        "Pareto k > 0.5 at 3 of 6: the error of log p(x) is unreliable there (datapoints 2, 1, 5).",
        "Warning: Pareto k > 0.7 at 1 of 6: do not trust log p(x) there (datapoint 2). Try more num",
    ):
        assert part in notes


def test_notes_say_how_grave_they_are():
    chains = evidence(
        value=torch.zeros(N), se=torch.zeros(N), ess=torch.tensor([1.0] + [9.0] * 5), acceptance=torch.ones(N)
    )
    record = gaps(estimates={"IWAE": evidence(value=torch.ones(N), se=torch.zeros(N)), "AIS": chains}, width=(0.5, 0.1))
    starts = [(note.severity, note.text[:16]) for note in record.notes() if note.severity != "remark"]
    assert starts == [
        ("caution", "Not converged: 1"),
        ("caution", "Warm and cold se"),
        ("caution", "Pareto k > 0.5 {"),
        ("warning", "Pareto k > 0.7 {"),
        ("warning", "one chain carrie"),
        ("warning", "the estimators o"),
        ("warning", "on simulated dat"),
    ]
    remarks = [note for note in record.notes() if not note.is_grave]
    words = [note.text.split()[0] for note in remarks]
    assert words == ["73%", "N", "log", "se:", "The", "log", "The", "Estimators:"]
    (chain,) = [note.text for note in record.notes() if "one chain" in note.text]
    assert "at 1 of 6 datapoints (datapoint 0). Raise num_chains" in chain
    assert [note.share for note in record.notes() if note.share] == [(3, N), (1, N)]


@pytest.mark.parametrize(
    ("note", "printed", "in_full"),
    [
        (
            Note(severity="warning", text="Pareto k > 0.7 {}: do not.", share=(12, 1000)),
            "Warning: Pareto k > 0.7 at 12 of 1000: do not.",
            "Pareto k > 0.7 for 12 of 1000 datapoints: do not.",
        ),
        (
            Note(severity="caution", text="Pareto k > 0.5 {}: unreliable.", share=(0, 3)),
            "Pareto k > 0.5 at 0 of 3: unreliable.",
            "Pareto k > 0.5 for 0 of 3 datapoints: unreliable.",
        ),
        (
            Note(severity="warning", text="one chain, at 3 of 20: {}."),
            "Warning: one chain, at 3 of 20: {}.",
            "One chain, at 3 of 20: {}.",
        ),
        (Note(text="q in {0} and {}."), "q in {0} and {}.", "Q in {0} and {}."),
    ],
)
def test_a_note_in_print_and_in_full(note, printed, in_full):
    assert str(note) == printed and note.in_full == in_full


def test_many_datapoints_are_not_all_named():
    notes = str(gaps(pareto_k=torch.tensor([0.8, 0.9, 1.0, 0.71, 0.72, 0.73])))
    assert "Pareto k > 0.7 at 6 of 6: do not trust log p(x) there (datapoints 2, 1, 0, 5, 4, ...)." in notes


class TestVerdict:
    """Encoder or family?"""

    @staticmethod
    def said(approximation, amortization, *, mc_se=0.0):
        approximation, amortization = torch.tensor(approximation), torch.tensor(amortization)
        record = gaps(
            approximation_gap=approximation,
            amortization_gap=amortization,
            inference_gap=approximation + amortization,
            **{f"{gap}_se": torch.full_like(approximation, mc_se) for gap in Gaps.GAPS},
        )
        return [
            note.text for note in record.notes() if "of the inference gap" in note.text or "told from 0" in note.text
        ]

    def test_shares(self):
        approximation, amortization = [0.2, 0.3, 0.2, 0.3, 0.25, 0.25], [0.6, 0.7, 0.8, 0.9, 0.75, 0.75]
        (text,) = self.said(approximation, amortization)
        share = 0.75
        rest = [b - share * (a + b) for a, b in zip(approximation, amortization, strict=True)]
        # Their mean is 0, and that of the inference gap 1.
        se = math.sqrt(sum(r**2 for r in rest) / (N - 1) / N)
        assert text == (
            f"75% of the inference gap is amortization (the encoder), 25% approximation (the family); se {se:.1%}."
        )

    def test_a_gap_within_its_errors_has_no_share(self):
        (text,) = self.said([0.5, -0.5, 0.4, -0.3], [5.0, 6.0, 7.0, 8.0])
        assert text.startswith("The inference gap is amortization (the encoder)")
        (text,) = self.said([5.0, 6.0, 7.0, 8.0], [0.5, -0.5, 0.4, -0.3])
        assert text.startswith("The inference gap is approximation (the family)")

    def test_nothing_is_said_of_what_is_not_told_from_0(self):
        assert self.said([0.5, -0.5, 0.4, -0.3], [0.5, -0.5, 0.4, -0.3]) == []
        assert self.said([0.2, 0.3, 0.2, 0.3], [0.6, 0.7, 0.8, 0.9], mc_se=2.0) == []
        assert self.said([0.5], [0.5]) == []

    def test_what_a_further_family_wins(self):
        own = gaps().elbo_local
        record = gaps(
            families=("Full(8)", "Poor(8)"),
            elbo_local_by_family=torch.stack([own + torch.tensor([0.1, 0.3, 0.1, 0.3, 0.1, 0.3]), own - 0.5]),
            elbo_local_by_family_se=torch.full((2, N), 0.02),
            elbo_local_se=torch.full((N,), 0.01),
        )
        # The values vary by several nats, their differences by 0.1: the error is paired.
        se, mc_se = math.sqrt(6 * 0.01 / 5 / 6), math.hypot(0.01, 0.02) / math.sqrt(6)
        found = record.family_differences()
        assert found["Full(8)"] == pytest.approx({"mean": 0.2, "se": se, "mc_se": mc_se}, abs=1e-5)
        assert record.summary()["families"]["Full(8)"]["less_own"] == found["Full(8)"]
        assert record.summary()["families"]["Poor(8)"]["elbo_local"]["mean"] == pytest.approx(float(own.mean()) - 0.5)
        said = str(record)
        assert f"L[q*] in Full(8) is 0.2000 above that in MeanField(8) (se {se:.4f}, paired by datapoint; mc" in said
        assert "L[q*] in Poor(8) is 0.5000 below that in MeanField(8)" in said
        assert gaps().family_differences() == {}


def test_no_false_alarms():
    clean = gaps(
        converged=torch.ones(N, dtype=torch.bool),
        start_gap=torch.full((N,), 0.05),
        pareto_k=torch.tensor([0.1, 0.2, 0.3, 0.4, math.nan, 0.5]),
    )
    for word in ("Not converged", "apart", "Pareto", "Warning"):
        assert word not in str(clean)
    # Known evidence is no lower bound.
    assert "inference gap is under-estimated" not in str(gaps(is_lower_bound=False, evidence_method="quadrature"))


def test_further_families_in_the_table():
    record = gaps(
        families=("FullCovariance(8)",),
        elbo_local_by_family=torch.full((1, N), -12.5),
        elbo_local_by_family_se=torch.full((1, N), 0.6),
    )
    line = next(line for line in str(record).splitlines() if line.startswith("L[q*] in FullCovariance(8)"))
    assert [float(n) for n in line.split()[-3:]] == pytest.approx([-12.5, 0.0, 0.6 / math.sqrt(6)], abs=6e-5)


def evidence(**changes):
    return Evidence(
        **{"value": torch.tensor([-1.0, -3.0]), "se": torch.tensor([0.3, 0.4]), "method": "IWAE", **changes}
    )


def fit(**changes):
    fields = {
        "elbo": torch.tensor([-9.0, -8.5]),
        "elbo_validation": None,
        "seconds": 1.25,
        "num_steps": 20,
        "stopped_because": "the budget ended",
    }
    return Fit(**{**fields, **changes})


def refined():
    column = torch.zeros(3)
    return Refined(
        params=torch.zeros(3, 4),
        elbo=column,
        elbo_se=column,
        remaining=column,
        converged=column == 0,
        start_gap=column,
    )


def test_evidence_in_one_line():
    # se = sd / sqrt(2) = 1, mc_se = sqrt(0.09 + 0.16) / 2.
    assert str(evidence()) == "IWAE: -2.0000 nats per datapoint, se 1.0000 (Monte Carlo 0.2500), N = 2"
    whole = evidence(
        ess=torch.tensor([3.0, 9.0]), acceptance=torch.tensor([0.5, 0.7]), pareto_k=torch.tensor([0.1, 0.8])
    )
    for part in ("effective number 3.0 (median)", "acceptance 0.60", "Pareto k > 0.7 at 1"):
        assert part in str(whole)


def test_fit_in_one_line():
    line = str(fit())
    assert "2 epochs, 20 steps, 1.2 s: ELBO -8.500 nats per datapoint; stopped because: the budget ended" in line
    line = str(fit(elbo_validation=torch.tensor([-9.5, -9.25]), best_epoch=1))
    assert "held-out -9.250" in line and "kept epoch 2" in line
    # What it says is true of the parameters that the model has now.
    kept = fit(elbo_validation=torch.tensor([-9.25, -9.5]), best_epoch=0)
    assert f"ELBO {kept.elbo[0]:.3f}, held-out -9.250 nats per datapoint at the kept epoch 1" in str(kept)
    assert "-9.2500" in kept._repr_html_() and "-9.5000" not in kept._repr_html_()
    assert "elbo_validation=-9.250" in repr(kept)


@pytest.mark.parametrize("value", [0.0, -1.5, 123456.789, -8295092.6872, 1e12, -1e300, float("nan"), -float("inf")])
def test_numbers_of_any_size_keep_apart(value):
    for width, digits in ((12, 4), (10, 4), (9, 3), (8, 4), (19, 4)):
        text = fixed(value, width, digits)
        assert len(text) == width and text.startswith(" ")
        assert float(text) == pytest.approx(value, rel=0.05, abs=1e-4, nan_ok=True)
    row = table_row("log p(x)", value, abs(value), 2372410520.3416).split()
    assert len(row) == 5
    assert str(fit(elbo=torch.zeros(0))) == "no epoch finished; stopped because: the budget ended"


class TestUnfinishedFits:
    rising, flat = torch.linspace(-16.0, -10.0, 101), torch.full((101,), -10.0)

    @staticmethod
    def said(**changes):
        return [(note.severity, note.text) for note in fit(**changes).notes()]

    def test_a_fit_cut_short_warns(self):
        ((severity, text),) = self.said(elbo=self.rising, settings={"training": {"epochs": 101, "warm_up": 0}})
        assert severity == "warning"
        assert text.startswith(
            "the ELBO was still rising, by about 0.6 nats over the last 10 epochs, when the budget of"
        )
        assert text.endswith("unfinished fit. Train longer.")
        record = fit(elbo=self.rising)
        assert str(record).splitlines() == [record.headline, f"Warning: {text}"]
        assert cells_of(record._repr_html_())[1] == [record.headline, f"Warning: {text}"]

    def test_held_out_data_decide_where_there_are_some(self):
        assert self.said(elbo=self.rising, elbo_validation=self.flat) == []
        ((_, text),) = self.said(elbo=self.flat, elbo_validation=self.rising)
        assert text.startswith("the held-out ELBO was")

    def test_monte_carlo_em(self):
        ((_, text),) = self.said(elbo=None, log_joint=self.rising)
        assert text.startswith("the mean of log p(x, z) was")
        assert self.said(elbo=None, log_joint=self.flat) == []

    def test_what_a_criterion_ended_is_finished(self):
        assert self.said(elbo=self.rising, settings={"training": {"epochs": 200}}) == []

    def test_the_warm_up_is_left_out(self):
        # The ELBO leaps when the weight of the KL has come to 1; what follows is at rest.
        curve = torch.cat([torch.linspace(-50.0, -10.0, 90), torch.full((10,), -10.0)])
        assert self.said(elbo=curve, settings={"training": {"epochs": 100, "warm_up": 0}})
        assert self.said(elbo=curve, settings={"training": {"epochs": 100, "warm_up": 90}}) == []
        assert self.said(elbo=curve, settings={"training": {"epochs": 100, "warm_up": 200}}) == []

    def test_nothing_to_say(self):
        assert self.said() == self.said(elbo=torch.zeros(0)) == self.said(elbo=None) == []


@pytest.mark.parametrize("make", [lambda: gaps(), lambda: evidence(), lambda: fit(), lambda: refined()])
def test_a_record_is_a_line_at_a_prompt(make):
    record = make()
    line = repr(record)
    assert "tensor" not in line and "\n" not in line and len(line) < 200
    assert line.startswith(f"{type(record).__name__}(") and line.endswith(")")


def test_lines_at_a_prompt_say_what_it_is():
    assert repr(gaps()) == (
        "Gaps(N=6, family='MeanField(8)', approximation_gap=0.1500, amortization_gap=0.4150, inference_gap=0.5650)"
    )
    assert repr(fit()) == "Fit(epochs=2, elbo=-8.500, stopped_because='the budget ended')"
    assert repr(evidence()) == "Evidence(N=2, mean=-2.0000, method='IWAE')"
    assert repr(refined()) == "Refined(N=3, elbo=0.0000, num_unconverged=0)"


def test_a_fit_without_an_elbo_says_what_it_has():
    sampled = fit(elbo=None, log_joint=torch.tensor([-7.0, -6.5]))
    assert "1.2 s: mean log p(x, z) -6.500 nats per datapoint; stopped" in str(sampled) and list(sampled.history) == [
        "log_joint"
    ]
    both = fit(elbo=None, log_joint=torch.tensor([-7.0, -6.5]), elbo_validation=torch.tensor([-9.5, -9.25]))
    assert "mean log p(x, z) -6.500, held-out ELBO -9.250 nats" in str(both)
    assert list(both.history) == ["log_joint", "elbo_validation"]
    assert str(fit(elbo=None, log_joint=torch.zeros(0))).startswith("no epoch finished")


@pytest.mark.parametrize("record", [gaps, evidence, fit, refined], ids=lambda f: f.__name__)
def test_records_are_frozen_and_travel(record):
    record = record()
    for field in dataclasses.fields(record):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, field.name, None)
    for other in (pickle.loads(pickle.dumps(record)), copy.deepcopy(record)):
        assert str(other) == str(record)
    with pytest.raises(TypeError, match="positional"):
        type(record)(torch.zeros(2))


def cells_of(html):
    """The table of a record as rows of text, and what stands under it; well-formed, or this raises."""
    root = ElementTree.fromstring(f"<div>{html}</div>")
    rows = [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]
    return rows, ["".join(line.itertext()) for line in root.iter("p")]


class TestNotebooks:
    def test_gaps_show_the_table_that_they_print(self):
        record = gaps(
            families=("A<B>(2)",),
            elbo_local_by_family=torch.full((1, N), -9.5),
            elbo_local_by_family_se=torch.ones(1, N),
        )
        rows, notes = cells_of(record._repr_html_())
        printed = [line for line in str(record).splitlines() if line]
        assert rows[0] == ["nats per datapoint", "mean", "se", "mc_se"]
        assert [row[0] for row in rows[1:]] == [*Gaps.LABELS.values(), "L[q*] in A<B>(2)"]
        for row, line in zip(rows[1:], printed[1:], strict=False):
            assert row[1:] == line.split()[-3:]
        assert notes == list(map(str, record.notes()))

    def test_evidence(self):
        record = evidence(method="IWAE, 5 draws", pareto_k=torch.tensor([0.1, 0.8]))
        rows, notes = cells_of(record._repr_html_())
        assert rows[1] == ["IWAE, 5 draws", "-2.0000", "1.0000", "0.2500"]
        assert notes == ["N = 2, Pareto k > 0.7 at 1: do not trust it there"]

    def test_fit(self):
        rows, notes = cells_of(fit(elbo_validation=torch.tensor([-9.5, -9.25]))._repr_html_())
        assert rows[1:] == [["elbo", "-8.5000"], ["elbo_validation", "-9.2500"]]
        assert notes == [str(fit(elbo_validation=torch.tensor([-9.5, -9.25])))]
        assert cells_of(fit(elbo=torch.zeros(0))._repr_html_())[0] == [["after the last epoch", "nats per datapoint"]]
