"""Pictures that say how far to trust a number."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
import torch
from plot_records import legend, line, make_calibration, make_difference, make_evidence, make_gaps

from pyro_vae.plots import plot_differences, plot_pareto_k, plot_rank_differences, plot_ranks
from pyro_vae.plots.calibration import _quantile


class TestParetoK:
    def test_points_are_the_record_and_those_above_the_limit_are_counted(self):
        k = [0.1, 0.75, float("nan"), 0.6, 1.2]
        gaps = dataclasses.replace(make_gaps(4), pareto_k=torch.tensor([0.2, 0.3, 0.4, 0.7]))
        ax = plot_pareto_k({"IWAE": make_evidence(k), "EM": gaps})
        first = line(ax, "IWAE: 2 of 5 above 0.7, 1 without a tail")
        second = line(ax, "EM: 0 of 4 above 0.7")
        np.testing.assert_allclose(first.get_ydata(), k)
        np.testing.assert_array_equal(first.get_xdata(), np.arange(5))
        np.testing.assert_allclose(second.get_ydata(), gaps.pareto_k)
        assert first.get_linestyle() == "None" and first.get_marker() != second.get_marker()

    def test_limits_are_drawn_and_said(self):
        ax = plot_pareto_k({"IWAE": make_evidence([0.05, 0.1])})
        for limit, says in ((0.5, "above 0.5 the standard error is unreliable"), (0.7, "above 0.7 so is log p(x)")):
            np.testing.assert_array_equal(line(ax, says).get_ydata(), [limit, limit])
        assert ax.get_ylim()[1] > 0.7

    @pytest.mark.parametrize("k", [[0.3], [float("nan")] * 3])
    def test_one_datapoint_and_none_with_a_tail(self, k):
        plot_pareto_k({"IWAE": make_evidence(k)}).figure.canvas.draw()


class TestRanks:
    def test_bars_are_shares_of_the_uniform_share(self):
        calibration = make_calibration(["U", "low"], num_draws=19)
        ax = plot_ranks(calibration, "z[1]")
        counts = np.bincount(calibration.ranks[:, 1], minlength=20)
        np.testing.assert_allclose([bar.get_height() for bar in ax.patches], counts / (400 / 20))
        np.testing.assert_allclose([bar.get_x() + bar.get_width() / 2 for bar in ax.patches], np.arange(20))
        assert ax.get_xlabel() == "rank of the true z[1] among 19 draws"
        np.testing.assert_array_equal(line(ax, "uniform").get_ydata(), [1, 1])

    @pytest.mark.parametrize("bins", [1, 3, 7])
    def test_bins_that_hold_different_numbers_of_ranks(self, bins):
        calibration = make_calibration(["uniform"], num_draws=19)
        ax = plot_ranks(calibration, "z[0]", bins=bins)
        ends = np.cumsum([round(bar.get_width() / 0.94) for bar in ax.patches])
        assert len(ends) == bins and ends[-1] == 20
        shares = np.diff(ends, prepend=0) / 20
        below = [(calibration.ranks < end).double().mean() for end in ends]
        np.testing.assert_allclose([bar.get_height() for bar in ax.patches], np.diff(below, prepend=0) / shares)

    def test_the_band_is_the_binomial_one(self):
        ax = plot_ranks(make_calibration(["uniform"], num_draws=19), "z[0]", bins=10)
        heights = np.unique(ax.collections[0].get_paths()[0].vertices[:, 1])
        expected = scipy.stats.binom.ppf([0.005, 0.995], 400, 0.1) / 40
        np.testing.assert_allclose(heights, expected)

    @pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
    def test_quantiles_of_the_binomial_distribution(self, share):
        for tail in (0.005, 0.5, 0.995):
            assert _quantile(tail, 1000, share) == scipy.stats.binom.ppf(tail, 1000, share)

    def test_few_draws(self):
        assert len(plot_ranks(make_calibration(["uniform"], num_draws=1), "z[0]").patches) == 2


class TestRankDifferences:
    def test_lines_and_band_are_the_record(self):
        calibration = make_calibration(["uniform", "U", "low"])
        ax = plot_rank_differences(calibration)
        for t, says in enumerate(("uniform", "the guide is too narrow", "the guide is shifted up")):
            drawn = line(ax, f"z[{t}]: {says}")
            np.testing.assert_allclose(drawn.get_ydata(), calibration.difference[t])
            np.testing.assert_allclose(drawn.get_xdata(), np.arange(1, 20) / 20)
        band = ax.collections[0].get_paths()[0].vertices[:, 1]
        assert band.min() == pytest.approx(float(calibration.lower.min()))
        assert band.max() == pytest.approx(float(calibration.upper.max()))
        assert ax.get_legend().get_title().get_text() == ""
        assert legend(ax)[0] == "where all lines of an exact guide lie, with probability 0.95"

    def test_of_many_the_furthest_from_uniform(self):
        ax = plot_rank_differences(make_calibration(["uniform"] * 3 + ["low"] + ["uniform"] * 3 + ["U"]))
        names = [name.split(":")[0] for name in legend(ax)[1:]]
        assert ax.get_legend().get_title().get_text() == "the 6 of 8 quantities that are furthest from uniform"
        assert len(names) == 6 and {"z[3]", "z[7]"} < set(names) and names == sorted(names)
        looks = {(drawn.get_color(), str(drawn.get_linestyle())) for drawn in ax.get_lines()[:6]}
        assert len(looks) == 6


class TestDifferences:
    def bars(self, ax):
        """Ends of the bars of each kind, and the height at which each lies, by label."""
        return {bars.get_label(): bars.lines[2][0].get_segments() for bars in ax.containers}

    def test_rows_are_the_records_the_first_at_the_top(self):
        first, second = make_difference(), make_difference("flow", (-0.6, -0.4), mean=-0.5, se=0.2, seed_se=np.nan)
        ax = plot_differences({one.title: one for one in (first, second)})
        means = ax.get_lines()[-1]
        np.testing.assert_allclose(means.get_xdata(), [0.3, -0.5])
        top, bottom = means.get_ydata()
        assert top < bottom and ax.get_ylim()[0] > bottom > top > ax.get_ylim()[1]
        names = {text.get_text(): text.xy[1] for text in ax.texts}
        assert names["prior: laplace - normal"] < top < names["prior: flow - normal"] < bottom
        drawn = self.bars(ax)
        over_data = drawn["± se, datapoints"]
        np.testing.assert_allclose([bar[:, 0] for bar in over_data], [[0.2, 0.4], [-0.7, -0.3]])
        np.testing.assert_allclose([bar[:, 1] for bar in over_data], [[top, top], [bottom, bottom]])
        (over_seeds,) = drawn["± seed_se, training seeds"]
        np.testing.assert_allclose(over_seeds[:, 0], [0.18, 0.42])
        rings = line(ax, "one seed")
        np.testing.assert_allclose(rings.get_xdata(), [0.1, 0.3, 0.5, -0.6, -0.4])
        # Three of the first row, then two of the second; beside its bars, not on them.
        shifts = rings.get_ydata() - np.repeat([top, bottom], [3, 2])
        assert len(set(shifts.round(9))) == 1 and shifts[0] < 0 < over_seeds[0, 1] - top

    def test_one_seed_has_no_rings_and_no_error_over_seeds(self):
        ax = plot_differences({"laplace": make_difference(by_seed=(0.3,), seed_se=np.nan)})
        assert legend(ax) == ["± se, datapoints"]
        nothing = plot_differences({"one datapoint": make_difference(by_seed=(0.3,), se=np.nan, seed_se=np.nan)})
        assert nothing.get_legend() is None
        nothing.figure.canvas.draw()

    def test_a_long_name_is_broken_and_has_room_above_its_row(self):
        place = {"likelihood": "zero-inflated negative binomial", "decoder": "mlp(hidden=64-32)", "seed": "0"}
        long, short = make_difference(elsewhere=place), make_difference()
        ax = plot_differences({one.title: one for one in (long, short)})
        broken, whole = ax.texts
        assert broken.get_text().replace("\n", " ") == long.title and broken.get_text().count("\n") == 1
        assert "\n" not in whole.get_text()
        ax.figure.canvas.draw()
        first, second = ax.get_lines()[-1].get_ydata()
        highest_rings = line(ax, "one seed").get_ydata().min()
        edges = [ax.transData.inverted().transform(text.get_window_extent())[:, 1] for text in ax.texts]
        assert max(edges[0]) < highest_rings < first < min(edges[1]) and max(edges[1]) < second
