import dataclasses
import inspect

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from plot_records import (
    legend,
    line,
    make_calibration,
    make_comparison,
    make_difference,
    make_evidence,
    make_fit,
    make_gaps,
    make_surgery,
    make_tracker,
)

from pyro_vae import plots
from pyro_vae.plots import (
    plot_aggregate,
    plot_comparison,
    plot_differences,
    plot_elbo,
    plot_elbo_terms,
    plot_gap_histogram,
    plot_gap_scatter,
    plot_gaps,
    plot_interpolations,
    plot_kl_per_dim,
    plot_latent,
    plot_log_p,
    plot_manifold,
    plot_pareto_k,
    plot_posterior,
    plot_rank_differences,
    plot_ranks,
    plot_reconstructions,
    plot_samples,
    plot_squared_error,
    plot_traversals,
    plot_worst,
)


class TestElbo:
    def test_curves_are_the_record_epochs_from_one(self):
        fits = {"SVI": make_fit(), "EM": make_fit(20, level=2.0, best_epoch=12)}
        ax = plot_elbo(fits)
        for name, fit in fits.items():
            training, held_out = line(ax, f"{name}, training"), line(ax, f"{name}, held-out")
            np.testing.assert_array_equal(training.get_ydata(), fit.elbo)
            np.testing.assert_array_equal(held_out.get_ydata(), fit.elbo_validation)
            np.testing.assert_array_equal(training.get_xdata(), np.arange(1, len(fit.elbo) + 1))
            assert training.get_color() == held_out.get_color()
            assert training.get_linestyle() != held_out.get_linestyle()
        assert line(ax, "SVI, training").get_color() != line(ax, "EM, training").get_color()
        assert "nats per datapoint" in ax.get_ylabel()

    def test_a_held_out_curve_names_its_q(self):
        """L[q*] lies above L[q] of the same model: unnamed, the worse model looks better."""
        known = {name: dataclasses.replace(make_fit(), settings={"engine": name}) for name in ("svi", "em", "mcem")}
        known["mcem"] = dataclasses.replace(known["mcem"], elbo=None)
        start = known["em"].elbo_validation - 1
        known["semi"] = dataclasses.replace(known["em"], elbo_start=start, elbo_start_validation=start)
        labels = [line.get_label() for line in plot_elbo(known).lines]
        expected = {"svi": "encoder", "em": "q*", "mcem": "q*", "semi": "after the steps"}
        assert [label for label in labels if "held-out" in label] == [
            f"{name}, held-out ({q})" for name, q in expected.items()
        ]
        assert [label for label in labels if "training" in label] == [
            f"{name}, training" for name in ("svi", "em", "semi")
        ]

    def test_kept_epoch_lies_on_the_held_out_curve(self):
        fit = make_fit(best_epoch=20)
        marker = line(plot_elbo({"SVI": fit}), "SVI, epoch kept (21)")
        assert marker.get_xdata() == [21]
        assert marker.get_ydata() == [fit.elbo_validation[20]]

    def test_a_fit_without_an_elbo_shows_what_was_held_out(self):
        fit = make_fit()
        sampled = dataclasses.replace(fit, elbo=None, log_joint=fit.elbo + 20)
        ax = plot_elbo({"Monte Carlo EM": sampled})
        assert legend(ax) == ["Monte Carlo EM, held-out", "Monte Carlo EM, epoch kept (21)"]
        nothing = dataclasses.replace(sampled, elbo_validation=None, best_epoch=None)
        assert not len(plot_elbo({"Monte Carlo EM": nothing}).lines)

    def test_without_held_out_data_only_training_is_drawn(self):
        ax = plot_elbo({"SVI": make_fit(validation=False, best_epoch=None)})
        assert legend(ax) == ["SVI, training"]

    def test_first_epochs_do_not_stretch_the_axis_and_are_mentioned(self):
        fit = make_fit()
        ax = plot_elbo({"SVI": fit})
        low, high = ax.get_ylim()
        assert -180 < low < fit.elbo_validation[3] and high > fit.elbo.max()
        assert "below the axis" in ax.texts[0].get_text() and "405" in ax.texts[0].get_text()

    def test_the_legend_lies_on_no_line(self):
        """Of an overfitted model one ends in a corner."""
        for ax in (plot_elbo({"SVI": make_fit(), "EM": make_fit(20, best_epoch=12)}), plot_elbo_terms(make_tracker())):
            ax.figure.canvas.draw()
            assert ax.get_legend().get_window_extent().y0 > ax.texts[0].get_window_extent().y1 > ax.bbox.y1

    def test_several_fits_are_told_apart_by_markers_too(self):
        ax = plot_elbo({"SVI": make_fit(), "EM": make_fit(20, level=2.0, best_epoch=12)})
        first, second = (line(ax, f"{name}, training") for name in ("SVI", "EM"))
        assert first.get_marker() == line(ax, "SVI, epoch kept (21)").get_marker() != second.get_marker()
        assert line(plot_elbo({"SVI": make_fit()}), "SVI, training").get_marker() == "None"

    def test_a_later_collapse_stays_on_the_axis(self):
        fit = make_fit(best_epoch=None)
        fit.elbo[25] = -900.0
        assert plot_elbo({"SVI": fit}).get_ylim()[0] < -900

    @pytest.mark.parametrize("num_epochs", [1, 3])
    def test_a_short_run_is_shown_whole(self, num_epochs):
        fit = make_fit(num_epochs, best_epoch=0)
        ax = plot_elbo({"SVI": fit})
        assert ax.get_ylim()[0] < fit.elbo_validation.min() and not ax.texts


class TestElboTerms:
    def test_the_upper_line_is_the_first_term_and_the_distance_to_the_elbo_the_second(self):
        tracker = make_tracker()
        ax = plot_elbo_terms(tracker)
        for name in ("training", "held-out"):
            upper = line(ax, f"E[log p(x | z)], {name}")
            lower = line(ax, f"ELBO, {name}")
            np.testing.assert_allclose(upper.get_ydata(), tracker.reconstruction[name])
            np.testing.assert_allclose(upper.get_ydata() - lower.get_ydata(), tracker.kl[name])
            np.testing.assert_array_equal(lower.get_xdata(), tracker.epochs)
            assert upper.get_color() != lower.get_color() and upper.get_linestyle() == lower.get_linestyle()
        assert len(ax.figure.axes) == 1, "one scale, so that the distance is nats"
        assert line(ax, "E[log p(x | z)], training").get_linestyle() != upper.get_linestyle()
        assert [shade.get_label() for shade in ax.collections] == ["KL(q || p), training"]

    def test_first_epochs_do_not_stretch_the_axis_and_are_mentioned(self):
        ax = plot_elbo_terms(make_tracker())
        assert ax.get_ylim()[0] > -200 and "below the axis" in ax.texts[0].get_text()

    def test_the_legend_tells_terms_by_colour_and_data_by_dash(self):
        tracker = make_tracker(names=("training", "held-out", "elsewhere"))
        ax = plot_elbo_terms(tracker)
        ends = [f"{tracker.kl[name][-1]:.3g}" for name in tracker.data]
        assert legend(ax) == ["E[log p(x | z)]", "KL(q || p)", "ELBO"]
        assert ax.get_legend().get_title().get_text() == (
            f"KL at the end: {ends[0]} (training, solid), {ends[1]} (held-out, dashed),\n{ends[2]} (elsewhere, dotted)"
        )
        upper, _, lower = ax.get_legend().legend_handles
        for term, handle in (("E[log p(x | z)]", upper), ("ELBO", lower)):
            assert handle.get_color() == line(ax, f"{term}, held-out").get_color()
        dashes = [line(ax, f"ELBO, {name}")._dash_pattern for name in tracker.data]
        assert dashes[0][1] is None and max(dashes[1][1]) > max(dashes[2][1]), "solid, then long dashes, then dots"
        alone = plot_elbo_terms(make_tracker(names=("training",))).get_legend().get_title().get_text()
        assert alone == f"KL at the end: {ends[0]}"

    @pytest.mark.parametrize("num_epochs", [1, 3])
    def test_a_short_run_without_held_out_data(self, num_epochs):
        ax = plot_elbo_terms(make_tracker(num_epochs, names=("training",)))
        assert len(ax.get_lines()) == 2 and not ax.texts
        ax.figure.canvas.draw()


class TestGaps:
    @pytest.mark.parametrize("error", ["se", "mc_se"])
    def test_bars_and_error_bars_are_the_summary(self, error):
        gaps = {"SVI": make_gaps(50), "EM": make_gaps(40, amortization=2.0)}
        ax = plot_gaps(gaps, error=error)
        assert [bars.get_label() for bars in ax.containers if hasattr(bars, "patches")] == [
            "approximation gap",
            "amortization gap",
            "inference gap",
        ]
        drawn = {bars.get_label(): bars for bars in ax.containers if hasattr(bars, "patches")}
        for column, record in enumerate(gaps.values()):
            summary = record.summary()
            for term in ("approximation_gap", "amortization_gap", "inference_gap"):
                bars = drawn[term.replace("_", " ")]
                bar, mean = bars.patches[column], summary[term]["mean"]
                assert bar.get_height() == pytest.approx(mean)
                (segments,) = bars.errorbar[2]
                (_, below), (_, above) = segments.get_segments()[column]
                assert (above - below) / 2 == pytest.approx(summary[term][error])
                assert (above + below) / 2 == pytest.approx(bar.get_y() + mean)
        assert ax.get_legend().get_title().get_text().startswith(f"error bars: ± 1 {error} (")
        assert "nats per datapoint" in ax.get_ylabel()
        assert ax.get_xticklabels()[1].get_text() == "EM\nMeanField(2), N = 40"

    @pytest.mark.parametrize("amortization", [1.5, -0.2])
    def test_the_two_gaps_stack_up_to_the_third(self, amortization):
        ax = plot_gaps({"SVI": make_gaps(amortization=amortization)})
        first, second, whole = (bars.patches[0] for bars in ax.containers if hasattr(bars, "patches"))
        assert first.get_y() == whole.get_y() == 0
        assert second.get_y() == pytest.approx(first.get_height())
        assert second.get_y() + second.get_height() == pytest.approx(whole.get_height())

    def test_one_datapoint_has_no_se_and_is_drawn(self):
        ax = plot_gaps({"SVI": make_gaps(1)})
        assert ax.patches[0].get_height() > 0
        ax.figure.canvas.draw()


class TestGapHistogram:
    def test_every_datapoint_is_counted_once_on_common_bins(self):
        gaps = {"SVI": make_gaps(50), "EM": make_gaps(40, amortization=-0.3)}
        ax = plot_gap_histogram(gaps, bins=12)
        outlines = [patch for patch in ax.patches if not patch.get_fill()]
        lowest = min(float(record.amortization_gap.min()) for record in gaps.values())
        assert lowest < 0
        edges = np.histogram_bin_edges(torch.cat([record.amortization_gap for record in gaps.values()]), bins=12)
        assert len(outlines) == 2
        for outline, record in zip(outlines, gaps.values(), strict=True):
            counts = np.histogram(record.amortization_gap, edges)[0]
            vertices = outline.get_xy()
            np.testing.assert_allclose(np.unique(vertices[:, 0]), edges)
            np.testing.assert_allclose(vertices[1:-1:2, 1], 100 * counts / len(record))
        assert ax.get_xlim()[0] < lowest

    def test_means_are_marked_and_named(self):
        gaps = {"SVI": make_gaps(50)}
        ax = plot_gap_histogram(gaps, term="approximation_gap")
        mean = gaps["SVI"].summary()["approximation_gap"]["mean"]
        assert mean in [line.get_xdata()[0] for line in ax.get_lines()]
        assert legend(ax) == [f"SVI: mean {mean:.2f}, N = 50"]
        assert ax.get_xlabel() == "approximation gap of a datapoint (nats)"

    def test_equal_gaps_are_drawn(self):
        gaps = make_gaps(5, amortization=0.0)
        outline = plot_gap_histogram({"SVI": gaps}).patches[-1].get_xy()
        assert outline[:, 1].max() == 100 and outline[:, 0].min() < 0 < outline[:, 0].max()

    def test_outlines_are_told_apart_by_colour_and_dash(self):
        ax = plot_gap_histogram({"SVI": make_gaps(50), "EM": make_gaps(40)})
        first, second = (patch for patch in ax.patches if not patch.get_fill())
        assert first.get_edgecolor() != second.get_edgecolor() and first.get_linestyle() != second.get_linestyle()

    def test_one_datapoint(self):
        plot_gap_histogram({"SVI": make_gaps(1)}).figure.canvas.draw()


def dots(ax):
    (found,) = [one for one in ax.collections if isinstance(one, PathCollection)]
    return found


class TestGapScatter:
    @pytest.mark.parametrize("term", ["amortization_gap", "approximation_gap", "inference_gap"])
    def test_points_and_bars_are_the_record(self, term):
        gaps = {"SVI": make_gaps(50), "EM": make_gaps(40, amortization=-0.3)}
        ax = plot_gap_scatter(gaps, term=term)
        assert legend(ax) == ["SVI, N = 50", "EM, N = 40"]
        shown = {tuple(point): index for index, point in enumerate(dots(ax).get_offsets().tolist())}
        assert len(shown) == 90
        paths, colors = dots(ax).get_paths(), dots(ax).get_facecolors()
        looks = []
        for container, record in zip(ax.containers, gaps.values(), strict=True):
            _, _, (bars,) = container
            value = getattr(record, term)
            ends = np.array([segment[:, 1] for segment in bars.get_segments()])
            np.testing.assert_allclose(ends.mean(1), value, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(np.diff(ends)[:, 0] / 2, getattr(record, f"{term}_se"), rtol=1e-4, atol=1e-5)
            places = [shown[point] for point in zip(record.log_evidence.tolist(), value.tolist(), strict=True)]
            looks.append({(len(paths[place]), *colors[place].tolist()) for place in places})
        assert [len(look) for look in looks] == [1, 1] and looks[0] != looks[1], "a look of its own for each model"
        assert ax.get_ylabel() == f"{term.replace('_', ' ')} (nats)" and ax.get_yscale() == "linear"
        error = torch.cat([getattr(record, f"{term}_se") for record in gaps.values()]).numpy()
        title = ax.get_legend().get_title().get_text()
        assert title == f"bars: ± 1 Monte Carlo standard error, median {np.median(error):.2g}"

    def test_no_model_hides_another(self):
        """Whatever comes last lies on top: of a model it must be no more than its share."""
        gaps = {"SVI": make_gaps(300), "EM": make_gaps(100)}
        last = dots(plot_gap_scatter(gaps)).get_facecolors()[-100:]
        assert (last == last[-1]).all(1).sum() in (25, 75)

    @pytest.mark.parametrize(("scale", "above"), [(1.0, "1"), (100.0, "100"), (1e-3, "0.1")])
    def test_outliers_do_not_squash_the_rest(self, scale, above):
        """The last gaps are noise of some 0.08 nats, which no log scale stretches."""
        gaps = make_gaps(50)
        gaps.amortization_gap.mul_(scale)[3] = 150.0
        ax = plot_gap_scatter({"SVI": gaps})
        squashed = scale < 100
        assert ax.get_yscale() == ("symlog" if squashed else "linear")
        assert ax.get_ylabel() == "amortization gap (nats)" + squashed * f", log scale above {above}"
        assert ax.get_ylim()[1] > 150
        ax.figure.canvas.draw()
        assert "100" in [label.get_text() for label in ax.get_yticklabels()]

    def test_one_datapoint_and_an_error_that_is_not_known(self):
        gaps = make_gaps(1)
        gaps.amortization_gap_se[:] = torch.nan
        ax = plot_gap_scatter({"SVI": gaps})
        ax.figure.canvas.draw()
        assert ax.get_legend().get_title().get_text() == "bars: ± 1 Monte Carlo standard error"

    def test_of_many_no_two_look_alike(self):
        ax = plot_gap_scatter({f"seed {seed}": make_gaps(2) for seed in range(20)})
        assert len({(one.get_color(), one.get_marker()) for one in ax.get_legend().legend_handles}) == 20


@pytest.mark.parametrize("plot", [plot_gap_scatter, plot_gap_histogram, plot_gaps])
def test_long_names_reach_over_no_edge(plot):
    names = [f"{engine} EM, encoder fitted afterwards" for engine in ("variational", "Monte Carlo")]
    ax = plot({name: make_gaps() for name in names})
    ax.figure.canvas.draw()
    legend = ax.get_legend().get_window_extent()
    assert legend.x0 > 0 and legend.x1 < ax.figure.bbox.x1
    left, right = (label.get_window_extent() for label in ax.get_xticklabels()[:2])
    assert left.x1 < right.x0


class TestComparison:
    def test_bars_are_the_squared_errors(self):
        comparison = make_comparison()
        ax = plot_squared_error(comparison)
        assert [label.get_text() for label in ax.get_yticklabels()] == ["PCA", "FA", "VAE"]
        assert ax.get_ylim()[0] > ax.get_ylim()[1], "the first model is at the top"
        (bars,) = (container for container in ax.containers if hasattr(container, "patches"))
        segments = bars.errorbar[2][0].get_segments()
        for model, bar, ((left, _), (right, _)) in zip(comparison.models, bars.patches, segments, strict=True):
            row = model.summary()["squared_error"]
            assert bar.get_width() == pytest.approx(row["mean"])
            assert (right - left) / 2 == pytest.approx(row["se"])
        assert ax.get_xlim()[0] == 0 and ax.get_xlim()[1] > 3.6

    def test_dots_are_log_p_where_there_is_a_density(self):
        comparison = make_comparison()
        ax = plot_log_p(comparison)
        dots = [container for container in ax.containers if hasattr(container, "lines")]
        assert len(dots) == 2
        for position, dot in zip((1, 2), dots, strict=True):
            row = comparison.models[position].summary()["log_p"]
            assert dot.lines[0].get_xdata() == [pytest.approx(row["mean"])]
            assert dot.lines[0].get_ydata() == [position]
            (((left, _), (right, _)),) = dot.lines[2][0].get_segments()
            assert (right - left) / 2 == pytest.approx(row["se"])
        texts = {text.get_text(): text.xy[1] for text in ax.texts}
        assert texts["no density"] == 0 and "−130" in "".join(texts)
        assert [dot.lines[0].get_marker() for dot in dots] == ["s", "o"], "FA's noise is of another form"
        assert legend(ax) == ["linear", "with hidden layers", "noise of another form"]

    def test_networks_are_told_from_linear_models_in_gray_print_too(self):
        comparison = make_comparison()
        assert [bar.get_hatch() or "" for bar in plot_squared_error(comparison).patches] == ["", "", "////"]
        linear, network = (container.lines[0] for container in plot_log_p(comparison).containers)
        assert linear.get_markerfacecolor() != "white" == network.get_markerfacecolor()
        without = dataclasses.replace(comparison, models=comparison.models[:1])
        assert legend(plot_squared_error(without)) == ["linear"] and plot_log_p(without).get_legend() is None

    def test_panels_share_the_models(self):
        left, right = plot_comparison(make_comparison())
        assert left.figure is right.figure and left.get_ylim() == right.get_ylim()
        assert "N = 30" in left.figure.get_suptitle()
        _, axes = plt.subplots(1, 2)
        assert plot_comparison(make_comparison(), axes=axes) == tuple(axes)
        with pytest.raises(ValueError, match="axes: expected two"):
            plot_comparison(make_comparison(), axes=axes[:1])

    def test_one_datapoint_has_no_error(self):
        left, _ = plot_comparison(make_comparison(1))
        left.figure.canvas.draw()


X = np.arange(5 * 6.0).reshape(5, 6)
SURFACE = (np.linspace(-3, 3, 41), -0.5 * np.add.outer(np.linspace(-3, 3, 41) ** 2, np.linspace(-3, 3, 41) ** 2))
PICTURES = {
    "elbo": lambda ax: plot_elbo({"SVI": make_fit()}, ax=ax),
    "gaps": lambda ax: plot_gaps({"SVI": make_gaps()}, ax=ax),
    "gap histogram": lambda ax: plot_gap_histogram({"SVI": make_gaps()}, ax=ax),
    "squared error": lambda ax: plot_squared_error(make_comparison(), ax=ax),
    "log p": lambda ax: plot_log_p(make_comparison(), ax=ax),
    "reconstructions": lambda ax: plot_reconstructions(X, X, (2, 3), ax=ax),
    "reconstructions as lines": lambda ax: plot_reconstructions(X, X, ax=ax),
    "samples": lambda ax: plot_samples(X, (2, 3), ax=ax),
    "samples as lines": lambda ax: plot_samples(X, ax=ax),
    "manifold": lambda ax: plot_manifold(np.ones((2, 2, 6)), (2, 3), ax=ax),
    "manifold as lines": lambda ax: plot_manifold(np.ones((2, 2, 6)), ax=ax),
    "latent": lambda ax: plot_latent(torch.ones(4, 2), [0, 1, 0, 1], ax=ax),
    "latent without labels": lambda ax: plot_latent(torch.ones(4, 2), ax=ax),
    "ELBO terms": lambda ax: plot_elbo_terms(make_tracker(), ax=ax),
    "gap scatter": lambda ax: plot_gap_scatter({"SVI": make_gaps()}, ax=ax),
    "worst": lambda ax: plot_worst(make_gaps(5), X, (2, 3), ax=ax),
    "worst as lines": lambda ax: plot_worst(make_gaps(5), X, ax=ax),
    "Pareto k": lambda ax: plot_pareto_k({"IWAE": make_evidence([0.1, 0.9])}, ax=ax),
    "KL by dimension": lambda ax: plot_kl_per_dim({"SVI": make_surgery()}, ax=ax),
    "posterior": lambda ax: plot_posterior(*SURFACE, {"q": SURFACE[1]}, ax=ax),
    "aggregate": lambda ax: plot_aggregate(X, X, ax=ax),
    "interpolations": lambda ax: plot_interpolations(X[None], (2, 3), ax=ax),
    "interpolations as lines": lambda ax: plot_interpolations(X[None], ax=ax),
    "traversals": lambda ax: plot_traversals(X[None], (2, 3), ax=ax),
    "traversals as lines": lambda ax: plot_traversals(X[None], ax=ax),
    "ranks": lambda ax: plot_ranks(make_calibration(["U"]), "z[0]", ax=ax),
    "differences": lambda ax: plot_differences({"laplace": make_difference()}, ax=ax),
    "rank differences": lambda ax: plot_rank_differences(make_calibration(["U"]), ax=ax),
}


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
def test_draws_on_the_axes_given_or_on_one_new_figure_and_leaves_settings_alone(picture, tmp_path):
    with plt.rc_context({"font.size": 6.5, "axes.grid": False}):
        before = dict(matplotlib.rcParams)
        _, ax = plt.subplots()
        assert picture(ax) is ax and len(plt.get_fignums()) == 1
        new = picture(None)
        assert new is not ax and len(plt.get_fignums()) == 2
        assert dict(matplotlib.rcParams) == before
    new.figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


# Each is of so few that half numbers would fit between, too.
COUNTED = {
    "epochs": lambda: plot_elbo({"SVI": make_fit(3, best_epoch=None)}),
    "epochs of terms": lambda: plot_elbo_terms(make_tracker(3)),
    "datapoints": lambda: plot_pareto_k({"IWAE": make_evidence([0.1, 0.9, 0.3])}),
    "dimensions by rank": lambda: plot_kl_per_dim({"SVI": make_surgery(), "EM": make_surgery()}),
    "ranks": lambda: plot_ranks(make_calibration(["U"]), "z[0]"),
    "values of draws": lambda: plot_samples(X[:, :3]),
    "values of rows": lambda: plot_reconstructions(X[:, :3], X[:, :3]),
    "values along a way": lambda: plot_traversals(X[None, :, :3]),
}


@pytest.mark.parametrize("picture", COUNTED.values(), ids=COUNTED)
def test_what_is_counted_has_ticks_at_whole_numbers(picture):
    ticks = picture().get_xticks()
    assert len(ticks) > 1 and (ticks == ticks.round()).all()


@pytest.mark.parametrize("name", [name for name in plots.__all__ if name.startswith("plot_")])
def test_every_picture_takes_axes_by_keyword_and_is_in_the_tables(name):
    function = getattr(plots, name)
    parameters = inspect.signature(function).parameters
    if function is plot_comparison:
        assert parameters["axes"].default is None
        return
    *_, (last, ax) = parameters.items()
    assert last == "ax" and ax.default is None and ax.kind is inspect.Parameter.KEYWORD_ONLY
    assert inspect.signature(function).return_annotation == "Axes"
    drawn = " ".join(str(picture.__code__.co_names) for picture in PICTURES.values())
    assert f"'{name}'" in drawn
    assert ">>> " in function.__doc__


BAD = {
    "no fits": (lambda: plot_elbo({}), "fits: expected"),
    "a fit without a name": (lambda: plot_elbo(make_fit()), "fits: expected"),
    "no gaps": (lambda: plot_gaps({}), "gaps: expected"),
    "unknown error": (lambda: plot_gaps({"SVI": make_gaps()}, error="sd"), "error: expected"),
    "unknown term": (lambda: plot_gap_histogram({"SVI": make_gaps()}, term="elbo_local"), "term: expected"),
    "no bins": (lambda: plot_gap_histogram({"SVI": make_gaps()}, bins=0), "bins: expected"),
    "nothing but NaN": (lambda: plot_samples(np.full((2, 6), np.nan), (2, 3)), "x: expected values"),
    "no samples": (lambda: plot_samples(np.ones((0, 6)), (2, 3)), "x: expected"),
    "vector": (lambda: plot_samples(np.ones(6), (2, 3)), "x: expected"),
    "image shape": (lambda: plot_samples(np.ones((2, 6)), (2, 2)), "image_shape: expected 6"),
    "no channels": (lambda: plot_samples(np.ones((2, 8)), (2, 4, 0)), "image_shape: expected"),
    "no columns": (lambda: plot_samples(np.ones((2, 6)), (2, 3), num_columns=0), "num_columns: expected"),
    "unequal shapes": (lambda: plot_reconstructions(np.ones((2, 6)), np.ones((3, 6)), (2, 3)), "mean: expected"),
    "manifold not square": (lambda: plot_manifold(np.ones((2, 3, 6)), (2, 3)), "images: expected"),
    "no manifold": (lambda: plot_manifold(np.ones((0, 0, 6)), (2, 3)), "images: expected"),
    "manifold of NaN": (lambda: plot_manifold(np.full((2, 2, 6), np.nan), (2, 3)), "images: expected values"),
    "grid": (lambda: plot_manifold(np.ones((2, 2, 6)), (2, 3), grid=[0.0]), "grid: expected"),
    "three dimensions": (lambda: plot_latent(np.ones((4, 3))), "z: expected"),
    "labels": (lambda: plot_latent(np.ones((4, 2)), [1]), "labels: expected"),
    "a tracker that saw nothing": (lambda: plot_elbo_terms(make_tracker(0)), "tracker: expected"),
    "a tracker without data": (lambda: plot_elbo_terms(make_tracker(names=())), "tracker: expected"),
    "no gaps to scatter": (lambda: plot_gap_scatter({}), "gaps: expected"),
    "unknown term to scatter": (lambda: plot_gap_scatter({"SVI": make_gaps()}, term="elbo"), "term: expected"),
    "worst of other rows": (lambda: plot_worst(make_gaps(4), X, (2, 3)), r"x: expected shape \(4, 6\)"),
    "other means": (lambda: plot_worst(make_gaps(5), X, means={"q": X[:, :4]}), r"means\['q'\]: expected shape"),
    "means of a vector": (lambda: plot_worst(make_gaps(5), X, means={"q": X[0]}), r"means\['q'\]: expected shape"),
    "worst image shape": (lambda: plot_worst(make_gaps(5), X, (3, 3)), "image_shape: expected 6"),
    "worst none": (lambda: plot_worst(make_gaps(5), X, (2, 3), k=0), "k: expected"),
    "no evidence": (lambda: plot_pareto_k({}), "records: expected"),
    "no tail index": (lambda: plot_pareto_k({"SVI": make_gaps()}), "records: expected a tail index; 'SVI' has none"),
    "no surgery": (lambda: plot_kl_per_dim({}), "surgeries: expected"),
    "no KL by dimension": (
        lambda: plot_kl_per_dim({"flow": make_surgery(None)}),
        "surgeries: expected KL by dim.*'flow'",
    ),
    "posterior shapes": (lambda: plot_posterior(SURFACE[0][:5], SURFACE[1], {}), r"log_joint: expected shape \(5, 5\)"),
    "q shapes": (lambda: plot_posterior(*SURFACE, {"q": X}), r"log_q\['q'\]: expected shape"),
    "grid of three": (lambda: plot_posterior(np.ones((3, 5)), SURFACE[1], {}), "grid: expected shape"),
    "uneven grid": (lambda: plot_posterior(np.arange(41.0) ** 2, SURFACE[1], {}), "grid: expected evenly spaced"),
    "falling grid": (lambda: plot_posterior(SURFACE[0][::-1], SURFACE[1], {}), "grid: expected evenly spaced"),
    "no mass": (lambda: plot_posterior(SURFACE[0], SURFACE[1] - np.inf, {}), "log_joint: expected log densities"),
    "not a number": (lambda: plot_posterior(*SURFACE, {"q": SURFACE[1] * np.nan}), "log densities, finite somewhere"),
    "one draw": (lambda: plot_aggregate(X[:1], X), "prior: expected two draws"),
    "another D": (lambda: plot_aggregate(X, X[:, :4]), r"aggregate: expected two draws or more, \(S, 6\)"),
    "infinite draws": (lambda: plot_aggregate(X, np.where(X == 3, np.inf, X)), "aggregate: expected finite"),
    "no such dimension": (lambda: plot_aggregate(X, X, dims=[6]), "dims: expected"),
    "no dimension": (lambda: plot_aggregate(X, X, dims=[]), "dims: expected"),
    "ways of a matrix": (lambda: plot_interpolations(X, (2, 3)), "x: expected shape"),
    "ways of NaN": (lambda: plot_traversals(np.full((1, 2, 6), np.nan)), "x: expected values"),
    "ways image shape": (lambda: plot_interpolations(X[None], (2, 2)), "image_shape: expected 6"),
    "steps": (lambda: plot_traversals(X[None], (2, 3), steps=[0.0]), r"steps: expected shape \(5,\)"),
    "names": (lambda: plot_traversals(X[None], (2, 3), names=["a", "b"]), "names: expected 1"),
    "unknown quantity": (lambda: plot_ranks(make_calibration(["U"]), "z[1]"), r"quantity: expected one of z\[0\]"),
    "no differences": (lambda: plot_differences({}), "differences: expected"),
    "differences without names": (lambda: plot_differences([make_difference()]), "differences: expected.*got list"),
    "bins of ranks": (lambda: plot_ranks(make_calibration(["U"]), "z[0]", bins=21), "bins: expected 1 to 20"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named_in_one_line_and_opens_no_figure(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
    assert not plt.get_fignums()
