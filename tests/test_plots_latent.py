import numpy as np
import pytest
import torch
from plot_records import legend, make_surgery

from pyro_vae.plots import plot_aggregate, plot_kl_per_dim, plot_latent, plot_posterior


class TestLatent:
    def test_one_collection_a_label(self):
        z = torch.arange(12.0).reshape(6, 2)
        labels = torch.tensor([3, 1, 3, 1, 1, 7])
        ax = plot_latent(z, labels)
        assert [points.get_label() for points in ax.collections] == ["1", "3", "7"] == legend(ax)
        np.testing.assert_array_equal(ax.collections[0].get_offsets(), z[labels == 1])
        colors = {tuple(points.get_facecolor()[0]) for points in ax.collections}
        assert len(colors) == 3

    def test_many_and_long_labels_are_told_apart_by_colour_and_marker(self):
        names = [f"class {index:02d}" for index in range(25)]
        ax = plot_latent(np.zeros((25, 2)), names)
        looks = {
            (tuple(points.get_facecolor()[0]), points.get_paths()[0].vertices.tobytes()) for points in ax.collections
        }
        assert len(looks) == 25

    @pytest.mark.parametrize("label", ["$", "a_b", "-1", "^"])
    def test_labels_that_mathtext_would_read_are_drawn(self, label):
        ax = plot_latent(np.zeros((1, 2)), [label])
        ax.figure.canvas.draw()
        assert ax.collections[0].get_label() == label

    def test_without_labels(self):
        ax = plot_latent(torch.ones(4, 2))
        assert len(ax.collections) == 1 and ax.get_legend() is None


class TestKlPerDim:
    def test_dimensions_by_their_kl_and_which_are_active(self):
        surgery = make_surgery((0.5, 3.0, 0.0, 1.0), (0.2, 0.9, 0.001, 0.5))
        ax = plot_kl_per_dim({"SVI": surgery})
        every, active, idle = ax.get_lines()[:3]
        np.testing.assert_allclose(every.get_ydata(), [3.0, 1.0, 0.5, 0.0], atol=1e-6)
        np.testing.assert_allclose(active.get_ydata(), [3.0, 1.0, 0.5], atol=1e-6)
        np.testing.assert_array_equal(idle.get_xdata(), [4])
        assert idle.get_markerfacecolor() == "white" != active.get_markerfacecolor()
        assert legend(ax) == ["SVI: 3 of 4 active"]
        assert [label.get_text() for label in ax.get_xticklabels()] == ["$z_{2}$", "$z_{4}$", "$z_{1}$", "$z_{3}$"]

    def test_models_compare_by_rank(self):
        ax = plot_kl_per_dim({"SVI": make_surgery(), "EM": make_surgery((0.1, 0.2), (0.0, float("nan")))})
        assert legend(ax) == ["SVI: 3 of 4 active", "EM: 0 of 2 active"]
        np.testing.assert_allclose(ax.get_lines()[3].get_ydata(), [0.2, 0.1], atol=1e-6)
        assert ax.get_lines()[1].get_marker() != ax.get_lines()[4].get_marker()
        ax.figure.canvas.draw()
        assert "$z" not in "".join(label.get_text() for label in ax.get_xticklabels())

    def test_the_legend_lies_on_no_line(self):
        """Where all dimensions are used alike the line does not fall."""
        ax = plot_kl_per_dim({"SVI": make_surgery((2.0, 2.0, 2.0))})
        ax.figure.canvas.draw()
        assert ax.get_legend().get_window_extent().y0 >= ax.bbox.y1

    def test_one_dimension_of_one_datapoint(self):
        ax = plot_kl_per_dim({"SVI": make_surgery((2.0,), (0.5,), num_data=1)})
        np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), [2.0])
        ax.figure.canvas.draw()


def half(ax, index):
    """Values and widths of one half of a dimension."""
    vertices = ax.collections[index].get_paths()[0].vertices
    position = round(float(np.median(vertices[:, 0])))
    width = np.abs(vertices[:, 0] - position)
    return vertices[width > 1e-9, 1], width[width > 1e-9], vertices[:, 0]


class TestAggregate:
    def draws(self, *scales, num_draws=4000, loc=0.0):
        noise = torch.randn(num_draws, len(scales), generator=torch.Generator().manual_seed(0))
        return loc + torch.tensor(scales) * noise

    def test_prior_on_the_left_and_aggregate_on_the_right_of_each_dimension(self):
        ax = plot_aggregate(self.draws(1.0, 1.0, 1.0), self.draws(0.5, 1.0, 2.0))
        assert len(ax.collections) == 6 and legend(ax) == ["prior", "aggregate posterior"]
        for position in range(3):
            (_, _, left), (_, _, right) = half(ax, 2 * position), half(ax, 2 * position + 1)
            assert position - 0.5 < left.min() < left.max() <= position <= right.min() < right.max() < position + 0.5
        np.testing.assert_array_equal(ax.get_xticks(), [0, 1, 2])

    def test_widths_are_densities(self):
        """Half the spread is twice the density, within the noise of 4000 draws in bins of about 180."""
        ax = plot_aggregate(self.draws(1.0), self.draws(0.5, loc=1.0))
        (_, prior, _), (z, aggregate, _) = half(ax, 0), half(ax, 1)
        assert aggregate.max() == pytest.approx(0.44) and prior.max() == pytest.approx(0.22, rel=0.15)
        assert np.average(z, weights=aggregate) == pytest.approx(1.0, abs=0.05)

    def test_heavy_tails_do_not_stretch_the_axis_and_are_counted(self):
        prior = np.random.default_rng(0).standard_cauchy((2000, 2))
        ax = plot_aggregate(prior, self.draws(1.0, 1.0))
        low, high = ax.get_ylim()
        assert -20 < low < -5 and 5 < high < 20
        beyond = max(((prior < low) | (prior > high)).mean(0))
        title = ax.get_legend().get_title().get_text()
        assert f"{100 * beyond:.0f} % of the prior, 0 % of the aggregate posterior" in title and beyond > 0.03
        for collection in ax.collections:
            assert low <= collection.get_paths()[0].vertices[:, 1].min()
            assert collection.get_paths()[0].vertices[:, 1].max() <= high

    def test_normal_draws_lie_on_the_axis(self):
        ax = plot_aggregate(self.draws(1.0), self.draws(0.1))
        assert ax.get_legend().get_title().get_text() == "" and ax.get_ylim()[1] > 3

    def test_a_collapsed_dimension_is_drawn(self):
        ax = plot_aggregate(self.draws(1.0), torch.zeros(50, 1))
        z, width, _ = half(ax, 1)
        assert np.abs(z).max() < 0.05 and width.max() == pytest.approx(0.44)
        plot_aggregate(torch.ones(2, 1), torch.ones(2, 1)).figure.canvas.draw()

    def test_dimensions_are_chosen(self):
        many = self.draws(*[1.0] * 30, num_draws=50)
        assert len(plot_aggregate(many, many).get_xticks()) == 12
        ax = plot_aggregate(many, 3 * many, dims=[20, 4])
        assert [label.get_text() for label in ax.get_xticklabels()] == ["$z_{21}$", "$z_{5}$"]


class TestPosterior:
    grid = np.linspace(-5, 5, 201)
    z1, z2 = np.meshgrid(grid, grid, indexing="ij")

    def normal(self, loc=(0.0, 0.0), scale=(1.0, 1.0)):
        squares = ((self.z1 - loc[0]) / scale[0]) ** 2 + ((self.z2 - loc[1]) / scale[1]) ** 2
        return -0.5 * squares - np.log(2 * np.pi * scale[0] * scale[1])

    def lines(self, ax, index):
        """Of one contour plot the points of each level; shades are the first."""
        return [path.vertices for path in ax.collections[index].get_paths()]

    def test_contours_enclose_half_and_nine_tenths_of_the_mass(self):
        """Of a standard normal the rings at sqrt(-2 log(1 - mass)), within a cell of 0.05."""
        ax = plot_posterior(self.grid, self.normal(), {"q": self.normal()})
        outer, inner = self.lines(ax, 1)
        for points, mass in ((outer, 0.9), (inner, 0.5)):
            radius = np.hypot(*points.T)
            np.testing.assert_allclose(radius, np.sqrt(-2 * np.log(1 - mass)), atol=0.05)
        shades = self.lines(ax, 0)
        assert np.hypot(*shades[0].T).max() == pytest.approx(np.sqrt(-2 * np.log(0.1)), abs=0.05)

    def test_first_dimension_to_the_right(self):
        q = self.normal(loc=(1.0, -1.0), scale=(0.8, 0.2))
        ax = plot_posterior(torch.tensor(self.grid), torch.tensor(self.normal()), {"q": torch.tensor(q)})
        points = self.lines(ax, 1)[0]
        np.testing.assert_allclose(points.mean(0), [1.0, -1.0], atol=0.1)
        assert np.ptp(points[:, 0]) == pytest.approx(4 * np.ptp(points[:, 1]), rel=0.1)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("$z_1$", "$z_2$") and ax.get_aspect() == 1

    def test_approximations_are_told_apart_by_colour_and_dash(self):
        ax = plot_posterior(self.grid, self.normal(), {"q": self.normal(), "q*": self.normal(scale=(0.5, 1.0))})
        assert legend(ax) == ["posterior", "q", "q*"]
        _, first, second = ax.get_legend().legend_handles
        assert first.get_color() != second.get_color() and first.get_linestyle() != second.get_linestyle()

    def test_what_lies_off_the_grid_is_said(self):
        """Half of q, less half of the cells at the edge of the grid."""
        q = {"half": self.normal(loc=(5.0, 0.0)), "none": self.normal()}
        assert legend(plot_posterior(self.grid, self.normal(), q)) == ["posterior", "half (49 % off the grid)", "none"]

    def test_two_modes_are_two_regions(self):
        two = np.log(0.5) + np.logaddexp(
            self.normal(loc=(-2, 0), scale=(0.3, 0.3)), self.normal(loc=(2, 0), scale=(0.3, 0.3))
        )
        outer = self.lines(plot_posterior(self.grid, two, {"q": two}), 1)[0]
        assert (np.abs(np.abs(outer[:, 0]) - 2) < 1).all() and (outer[:, 0] > 0).any() and (outer[:, 0] < 0).any()

    def test_the_axes_show_what_is_drawn_and_no_more(self):
        q = self.normal(loc=(1.5, 0.0), scale=(0.2, 0.2))
        ax = plot_posterior(self.grid, self.normal(scale=(0.3, 0.3)), {"q": q})
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        # The rings end at 2.15 standard deviations: from -0.64 to 1.93, with 0.15 of that on each side.
        assert (left, right) == pytest.approx((-0.64 - 0.39, 1.93 + 0.39), abs=0.1)
        assert right - left == pytest.approx(top - bottom)
        far = plot_posterior(self.grid, self.normal(loc=(4.5, 4.5)), {})
        assert far.get_xlim()[1] == far.get_ylim()[1] == 5
        wide = plot_posterior(self.grid, self.normal(scale=(9.0, 9.0)), {})
        assert wide.get_xlim() == wide.get_ylim() == (-5, 5)

    def test_a_grid_for_each_dimension(self):
        ax = plot_posterior(np.stack([self.grid + 20, self.grid / 2]), self.normal(), {"q": self.normal()})
        points = self.lines(ax, 1)[0]
        np.testing.assert_allclose(points.mean(0), [20, 0], atol=0.1)
        assert np.ptp(points[:, 0]) == pytest.approx(2 * np.ptp(points[:, 1]), rel=0.05)

    @pytest.mark.parametrize("surface", ["flat", "one cell", "outside"])
    def test_surfaces_without_two_levels_are_drawn(self, surface):
        log_density = np.full((5, 5), 0.0 if surface == "flat" else -np.inf)
        if surface == "one cell":
            log_density[2, 2] = 0.0
        elif surface == "outside":
            log_density[0] = 0.0
        ax = plot_posterior(np.linspace(-1, 1, 5), log_density, {"q": log_density})
        ax.figure.canvas.draw()
