import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from plot_records import legend, line, make_gaps, shown_image

from pyro_vae.plots import (
    plot_interpolations,
    plot_manifold,
    plot_reconstructions,
    plot_samples,
    plot_traversals,
    plot_worst,
)
from pyro_vae.plots._mosaic import MISSING, as_images


class TestImages:
    x = np.arange(5 * 6.0).reshape(5, 6)

    def test_reconstructions_lie_under_their_originals(self):
        ax = plot_reconstructions(self.x, self.x / 2, (2, 3), num_columns=3)
        image = shown_image(ax)
        # Columns: 3 pixels and a gap of 1. Rows: 2 pixels and a gap of 1, and 3 between pairs.
        for index in range(5):
            row, column = (index // 3) * 8, (index % 3) * 4
            np.testing.assert_array_equal(image[row : row + 2, column : column + 3].ravel(), self.x[index])
            np.testing.assert_array_equal(image[row + 3 : row + 5, column : column + 3].ravel(), self.x[index] / 2)
        assert np.isnan(image[8:, 8:]).all() and np.isnan(image[2]).all()
        assert [label.get_text() for label in ax.get_yticklabels()] == ["original", "reconstruction"] * 2
        np.testing.assert_allclose(ax.get_yticks(), [0.5, 3.5, 8.5, 11.5])

    def test_originals_and_reconstructions_share_the_scale_of_the_originals(self):
        ax = plot_reconstructions(self.x, self.x - 3, (2, 3))
        assert ax.get_images()[0].get_clim() == (0, 29)
        assert ax.get_xlabel() == "0 (white) to 29 (black)"

    def test_one_channel_is_gray_and_three_are_colour(self):
        gray = plot_samples(self.x, (2, 3, 1))
        assert shown_image(gray).ndim == 2
        colour = np.linspace(0, 1, 12).reshape(1, 12)
        image = shown_image(plot_samples(colour, (2, 2, 3)))
        np.testing.assert_allclose(image[:2, :2], colour.reshape(2, 2, 3))

    def test_light_and_ink(self):
        """The largest value is black on paper, and white on a screen; a value that was not observed is neither."""
        ink, light = plot_samples(self.x, (2, 3)), plot_samples(self.x, (2, 3), ink=False)
        for ax, shade, note in ((ink, 0.0, "0 (white) to 29 (black)"), (light, 1.0, "0 (black) to 29 (white)")):
            image = ax.get_images()[0]
            np.testing.assert_allclose(image.cmap(image.norm(29.0))[:3], shade)
            assert ax.get_xlabel() == note
        gappy = self.x.astype(float)
        gappy[0, 0] = np.nan
        ax = plot_reconstructions(gappy, self.x, (2, 3))
        assert ax.get_images()[0].get_clim() == (1, 29) and ax.get_xlabel().endswith("; pale blue: missing")
        assert plot_reconstructions(self.x, gappy, (2, 3)).get_xlabel().endswith("; pale blue: missing")

    def test_samples_fill_a_square(self):
        image = shown_image(plot_samples(self.x, (2, 3)))
        assert image.shape == (2 * 3 - 1, 3 * 4 - 1)
        np.testing.assert_array_equal(image[3:5, 4:7].ravel(), self.x[4])

    def test_data_that_are_not_images_are_lines(self):
        wide = np.arange(5 * 41.0).reshape(5, 41)
        ax = plot_samples(torch.as_tensor(wide))
        (lines,) = ax.collections
        np.testing.assert_array_equal([segment[:, 1] for segment in lines.get_segments()], wide)
        assert ax.get_xlabel() == "index of the data value" and ax.get_title() == "5 draws, one line each"
        ax = plot_reconstructions(wide, wide / 2)
        assert line(ax, "original").get_linestyle() == "None" != line(ax, "reconstruction").get_linestyle()

    def test_a_few_values_are_variables_that_no_line_joins(self):
        ax = plot_samples(torch.as_tensor(self.x))
        (dots,) = ax.collections
        places = dots.get_offsets().reshape(5, 6, 2)
        np.testing.assert_array_equal(places[..., 1], self.x)
        np.testing.assert_array_equal(places[..., 0].round(), np.broadcast_to(np.arange(6), (5, 6)))
        assert ax.get_xlabel() == "variable (index)" and "dot" in ax.get_title() and not ax.lines
        ax = plot_reconstructions(self.x, self.x / 2)
        dots, fitted = line(ax, "original"), line(ax, "reconstruction")
        np.testing.assert_array_equal(dots.get_ydata(), self.x[0])
        np.testing.assert_array_equal(fitted.get_ydata(), self.x[0] / 2)
        np.testing.assert_allclose(ax.get_lines()[2].get_ydata() - ax.get_yticks()[1], self.x[1])
        assert dots.get_linestyle() == fitted.get_linestyle() == "None" and dots.get_marker() != fitted.get_marker()
        assert ax.get_xlabel() == "variable (index)"

    @pytest.mark.parametrize("shift", [-200.0, 100.0])
    def test_ticks_of_values_far_from_zero_lie_at_their_rows(self, shift):
        x = self.x + shift
        for ax in (plot_reconstructions(x, x), plot_traversals(x[:, None])):
            lowest = f"{x.min():.3g}".replace("-", "\N{MINUS SIGN}")
            assert ax.get_ylabel().endswith(f"\n(at its value {lowest}; 33.3 apart)")
            np.testing.assert_allclose(ax.get_yticks(), x.min() - 33.35 * np.arange(5))
            low, high = ax.get_ylim()
            assert low > x.min() - 5 * 33.35 and high < x.max() + 33.35

    def test_manifold_lies_like_the_plane(self):
        # Three images per side, each constant: 10 i + j.
        values = 10 * np.arange(3)[:, None] + np.arange(3)
        images = np.repeat(values[:, :, None], 4, axis=2)
        ax = plot_manifold(images, (2, 2), grid=[-1.5, 0.0, 1.5])
        image, extent = shown_image(ax), ax.get_images()[0].get_extent()
        left, right, bottom, top = extent
        assert left < right and bottom < top
        for i in range(3):
            for j in range(3):
                # The pixel drawn at data coordinates (i + 1/2, j + 1/2); array rows run from the top.
                assert image[int((3 - j - 0.5) * 2), int((i + 0.5) * 2)] == values[i, j]
        np.testing.assert_allclose(ax.get_xticks(), [0.5, 1.5, 2.5])
        assert [label.get_text() for label in ax.get_yticklabels()] == ["−1.5", "0", "1.5"]
        assert ax.get_xlabel() == "$z_1$" and ax.get_ylabel() == "$z_2$"

    def test_manifold_of_data_that_are_not_images(self):
        images = np.zeros((2, 2, 41))
        images[1, 0, -1] = 1.0
        (lines,) = plot_manifold(images).collections
        highest = max((segment[-1] for segment in lines.get_segments()), key=lambda point: point[1] % 1)
        assert 1 < highest[0] < 2 and highest[1] < 1
        ax = plot_manifold(images[..., 36:])
        (dots,) = [one for one in ax.lines if one.get_marker() == "o"]
        assert dots.get_linestyle() == "None" and len(dots.get_xdata()) == 20 and not ax.collections
        outside = (dots.get_ydata() % 1).argmax()
        assert 1 < dots.get_xdata()[outside] < 2 and dots.get_ydata()[outside] < 1


class TestPaths:
    # Two ways of three steps, images of 2 x 3.
    x = np.arange(36.0).reshape(2, 3, 6)

    @pytest.mark.parametrize("plot", [plot_interpolations, plot_traversals])
    def test_steps_run_to_the_right_and_ways_downwards(self, plot):
        image = shown_image(plot(torch.as_tensor(self.x), (2, 3)))
        for way in range(2):
            for step in range(3):
                # An image is 2 x 3, and a pixel lies between two.
                found = image[way * 3 : way * 3 + 2, step * 4 : step * 4 + 3]
                np.testing.assert_array_equal(found.ravel(), self.x[way, step])
        assert np.isnan(image[2]).all() and np.isnan(image[:, 3]).all()

    def test_ends_are_named(self):
        ax = plot_interpolations(self.x, (2, 3))
        np.testing.assert_allclose(ax.get_xticks(), [1, 9])
        assert [label.get_text() for label in ax.get_xticklabels()] == ["start", "end"]
        assert [label.get_text() for label in ax.get_yticklabels()] == ["1", "2"] and ax.get_ylabel() == "pair"
        assert ax.get_xlabel() == "0 (white) to 35 (black)"

    def test_dimensions_and_steps_are_named(self):
        ax = plot_traversals(self.x, (2, 3), steps=torch.tensor([-1.5, 0.0, 1.5]), names=["$z_3$", "$z_7$"])
        np.testing.assert_allclose(ax.get_xticks(), [1, 5, 9])
        assert [label.get_text() for label in ax.get_xticklabels()] == ["−1.5", "0", "1.5"]
        assert [label.get_text() for label in ax.get_yticklabels()] == ["$z_3$", "$z_7$"]
        np.testing.assert_allclose(ax.get_yticks(), [0.5, 3.5])
        ax = plot_traversals(self.x, (2, 3))
        assert [label.get_text() for label in ax.get_xticklabels()] == ["low", "high"]
        assert [label.get_text() for label in ax.get_yticklabels()] == ["$z_{1}$", "$z_{2}$"]

    def test_three_channels_are_colour(self):
        x = np.linspace(0, 1, 24).reshape(1, 2, 12)
        image = shown_image(plot_interpolations(x, (2, 2, 3)))
        np.testing.assert_allclose(image[:2, :2], x[0, 0].reshape(2, 2, 3))
        np.testing.assert_allclose(image[:2, 3:5], x[0, 1].reshape(2, 2, 3))

    def test_one_way_of_one_step(self):
        ax = plot_interpolations(self.x[:1, :1], (2, 3))
        np.testing.assert_array_equal(shown_image(ax).ravel(), self.x[0, 0])

    def test_data_that_are_not_images_are_lines_from_dark_to_light(self):
        wide = np.arange(2 * 3 * 41.0).reshape(2, 3, 41)
        ax = plot_traversals(wide, steps=[0.0, 1.0, 2.0])
        assert len(ax.collections) == 2
        for way, lines in enumerate(ax.collections):
            for values, segment in zip(wide[way], lines.get_segments(), strict=True):
                np.testing.assert_allclose(segment[:, 1] - ax.get_yticks()[way], values)
            assert (np.diff(lines.get_colors()[:, 3]) < 0).all()
        assert ax.get_xlabel() == "index of the data value; dark: 0, light: 2"

    def test_a_few_values_are_variables_along_each_of_which_the_way_runs(self):
        ax = plot_interpolations(self.x)
        assert len(ax.collections) == 2 and not ax.lines
        for way, dots in enumerate(ax.collections):
            places = dots.get_offsets().reshape(3, 6, 2)
            np.testing.assert_allclose(places[..., 1] - ax.get_yticks()[way], self.x[way])
            np.testing.assert_array_equal(places[..., 0].round(), np.broadcast_to(np.arange(6), (3, 6)))
            assert (np.diff(places[..., 0], axis=0) > 0).all(), "the start is on the left"
            shades = dots.get_facecolors()[:, 3].reshape(3, 6)
            assert (np.diff(shades, axis=0) < 0).all(), "the start is dark"
        assert ax.get_xlabel() == "variable (index); in each, left (dark) to right (light): start to end"
        (dots,) = plot_interpolations(self.x[:1, :1]).collections
        np.testing.assert_array_equal(dots.get_offsets()[:, 0], np.arange(6))


class TestWorst:
    x = np.arange(24.0).reshape(4, 6)

    def gaps(self, *values):
        gaps = make_gaps(len(values))
        gaps.amortization_gap[:] = torch.tensor(values)
        return gaps

    def test_largest_gaps_first_with_what_q_makes_of_them(self):
        ax = plot_worst(self.gaps(0.1, 2.5, -0.2, 1.25), self.x, (2, 3), means={"from q": self.x / 2}, k=3)
        image = shown_image(ax)
        for column, index in enumerate((1, 3, 0)):
            columns = slice(column * 4, column * 4 + 3)
            np.testing.assert_array_equal(image[:2, columns].ravel(), self.x[index])
            np.testing.assert_array_equal(image[3:5, columns].ravel(), self.x[index] / 2)
        assert image.shape == (5, 11)
        assert [label.get_text() for label in ax.get_xticklabels()] == ["2.50", "1.25", "0.10"]
        assert [label.get_text() for label in ax.get_yticklabels()] == ["x", "from q"]
        np.testing.assert_allclose(ax.get_xticks(), [1, 5, 9])
        np.testing.assert_allclose(ax.get_yticks(), [0.5, 3.5])

    def test_the_gray_scale_is_that_of_all_datapoints(self):
        ax = plot_worst(self.gaps(3.0, 0.0, 0.0, 0.0), self.x, (2, 3), k=1)
        assert ax.get_images()[0].get_clim() == (0, 23)
        assert ax.get_xlabel() == "amortization gap (nats)\n0 (white) to 23 (black)"

    def test_more_than_there_are_and_one_datapoint(self):
        assert len(plot_worst(self.gaps(1.0, 2.0, 3.0, 4.0), self.x, (2, 3), k=9).get_xticks()) == 4
        ax = plot_worst(self.gaps(1.0), self.x[:1], (2, 3))
        np.testing.assert_array_equal(shown_image(ax).ravel(), self.x[0])
        ax.figure.canvas.draw()

    def test_values_that_are_missing_are_no_shade_of_gray(self):
        x = self.x.copy()
        x[0, 1] = np.nan
        ax = plot_worst(self.gaps(3.0, 0.0, 0.0, 0.0), x, (2, 3), means={"from q": self.x}, k=1)
        image = shown_image(ax)
        drawn = ax.get_images()[0]
        assert image[3, 1] == 1 and drawn.get_clim() == (0, 23)
        blue, between = (drawn.cmap(drawn.norm(image[at]))[:3] for at in ((0, 1), (2, 0)))
        assert to_hex(blue) == MISSING and len(set(between)) == 1
        assert ax.get_xlabel().endswith("; pale blue: missing")

    def test_three_channels_are_colour(self):
        x = np.linspace(0, 1, 24).reshape(2, 12)
        image = shown_image(plot_worst(self.gaps(0.0, 1.0), x, (2, 2, 3)))
        np.testing.assert_allclose(image[:2, :2], x[1].reshape(2, 2, 3))
        x[1, 0] = np.nan
        image = shown_image(plot_worst(self.gaps(0.0, 1.0), x, (2, 2, 3)))
        assert to_hex(image[0, 0]) == MISSING

    def test_data_that_are_not_images_are_dots_and_lines(self):
        ax = plot_worst(self.gaps(0.1, 2.5, -0.2, 1.25), self.x, means={"x": self.x / 2, "q*": self.x / 3}, k=2)
        dots, first, second = ax.get_lines()[:3]
        np.testing.assert_array_equal(dots.get_ydata(), self.x[1])
        np.testing.assert_array_equal(first.get_ydata(), self.x[1] / 2)
        np.testing.assert_array_equal(second.get_ydata(), self.x[1] / 3)
        np.testing.assert_allclose(ax.get_lines()[3].get_ydata() - ax.get_yticks()[1], self.x[3])
        np.testing.assert_allclose(ax.get_lines()[5].get_ydata() - ax.get_yticks()[1], self.x[3] / 3)
        assert [label.get_text() for label in ax.get_yticklabels()] == ["2.50", "1.25"]
        assert legend(ax) == ["x", "x", "q*"]


@pytest.mark.parametrize(("channels", "rows"), [(2, 1), (4, 2), (5, 1), (6, 2), (12, 3)])
def test_other_numbers_of_channels_lie_beside_each_other(channels, rows):
    x = np.random.default_rng(0).random((3, 4 * 5 * channels))
    images = as_images("x", x, (4, 5, channels))
    across = channels // rows
    assert images.shape == (3, rows * 4, across * 5)
    apart = x.reshape(3, 4, 5, channels)
    for channel in range(channels):
        down, right = divmod(channel, across)
        block = images[:, 4 * down : 4 * down + 4, 5 * right : 5 * right + 5]
        np.testing.assert_array_equal(block, apart[..., channel])
    for ax in (
        plot_samples(x, (4, 5, channels)),
        plot_reconstructions(x, x, (4, 5, channels)),
        plot_manifold(np.stack([x, x, x]), (4, 5, channels)),
    ):
        ax.figure.canvas.draw()
    assert f"the {channels} channels of each" in plot_samples(x, (4, 5, channels)).get_xlabel()


@pytest.mark.parametrize("shape", [None, (2, 21), (2, 7, 3), (1, 42), (3, 7, 2)])
@pytest.mark.parametrize("bad", ["one", "some", "constant", "large"])
def test_values_that_are_not_finite_are_beyond_the_scale(shape, bad):
    """A decoder may overflow at a draw from the prior; the picture of the others is drawn."""
    x = np.random.default_rng(0).random((9, 42))
    finite = x[1:]
    if bad == "constant":
        finite = x = np.full((9, 42), 7.0)
    elif bad == "large":
        finite = x = 1e12 * x
    else:
        x[0, : 1 if bad == "one" else 30] = np.inf
        x[1, 0], x[2, 0] = -np.inf, np.nan
        finite = x[np.isfinite(x)]
    axes = [
        plot_samples(x, shape),
        plot_reconstructions(x, x[::-1], shape),
        plot_manifold(x.reshape(3, 3, 42), shape),
        plot_interpolations(x.reshape(3, 3, 42), shape),
        plot_traversals(x.reshape(3, 3, 42), shape),
        plot_worst(make_gaps(9), x, shape, means={"mean": x}, k=3),
    ]
    for ax in axes:
        ax.figure.canvas.draw()
        for image in ax.get_images():
            if image.get_array().ndim == 2:
                assert image.get_clim() == (finite.min(), finite.max())
