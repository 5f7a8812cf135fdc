import dataclasses

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from inference.results import Evidence, Fit, Gaps
from pyro_vae.comparison import Compared, Comparison
from pyro_vae.plots import (
    plot_comparison,
    plot_elbo,
    plot_gap_histogram,
    plot_gaps,
    plot_latent,
    plot_log_p,
    plot_manifold,
    plot_reconstructions,
    plot_samples,
    plot_squared_error,
)


def make_fit(num_epochs=30, *, level=0.0, validation=True, best_epoch=20):
    elbo = level - 100 - 300 * torch.exp(-torch.arange(num_epochs) / 1.5)
    held_out = elbo - 5 if validation else None
    return Fit(
        elbo=elbo,
        elbo_validation=held_out,
        seconds=1.0,
        num_steps=10,
        stopped_because="epochs",
        best_epoch=best_epoch,
    )


def make_gaps(num_data=50, *, approximation=0.5, amortization=1.5):
    generator = torch.Generator().manual_seed(num_data)
    noise = torch.rand(2, num_data, generator=generator)
    evidence, error = -90 - 10 * noise[0], 0.01 + 0.01 * noise[1]
    first, second = approximation * 2 * noise[0], amortization * 2 * noise[1]
    values = {
        "log_evidence": evidence,
        "elbo_local": evidence - first,
        "elbo_amortized": evidence - first - second,
        "approximation_gap": first,
        "amortization_gap": second,
        "inference_gap": first + second,
    }
    errors = {f"{term}_se": error for term in values}
    nothing = torch.zeros(num_data)
    return Gaps(
        **values,
        **errors,
        converged=torch.ones(num_data, dtype=torch.bool),
        start_gap=nothing,
        pareto_k=None,
        ess=None,
        family="MeanField(2)",
        evidence_method="IWAE",
    )


def make_comparison(num_data=30):
    generator = torch.Generator().manual_seed(num_data)

    def model(name, level, *, dense=True, mark=None):
        error = level + torch.rand(num_data, generator=generator)
        value = -100 - 10 * level + torch.randn(num_data, generator=generator)
        log_p = Evidence(value=value, se=torch.full((num_data,), 0.01), method="IWAE") if dense else None
        return Compared(name=name, squared_error=error, log_p=log_p, seconds=1.0, how="ended", mark=mark)

    models = [model("PCA", 2.0, dense=False), model("FA", 3.0, mark="its own noise"), model("VAE", 1.0)]
    return Comparison(models=models, data="digits", fingerprint="f", num_data=num_data, num_latents=8, settings={})


def line(ax, label):
    (found,) = [line for line in ax.get_lines() if line.get_label() == label]
    return found


def shown_image(ax):
    (image,) = ax.get_images()
    return np.ma.filled(image.get_array(), np.nan)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


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

    def test_a_later_collapse_stays_on_the_axis(self):
        fit = make_fit(best_epoch=None)
        fit.elbo[25] = -900.0
        assert plot_elbo({"SVI": fit}).get_ylim()[0] < -900

    @pytest.mark.parametrize("num_epochs", [1, 3])
    def test_a_short_run_is_shown_whole(self, num_epochs):
        fit = make_fit(num_epochs, best_epoch=0)
        ax = plot_elbo({"SVI": fit})
        assert ax.get_ylim()[0] < fit.elbo_validation.min() and not ax.texts


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
        assert plot_gap_histogram({"SVI": gaps}).patches


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
        assert ax.get_images()[0].get_clim() == (1, 29)

    def test_samples_fill_a_square(self):
        image = shown_image(plot_samples(self.x, (2, 3)))
        assert image.shape == (2 * 3 - 1, 3 * 4 - 1)
        np.testing.assert_array_equal(image[3:5, 4:7].ravel(), self.x[4])

    def test_data_that_are_not_images_are_lines(self):
        ax = plot_samples(torch.as_tensor(self.x))
        (lines,) = ax.collections
        np.testing.assert_array_equal([segment[:, 1] for segment in lines.get_segments()], self.x)
        ax = plot_reconstructions(self.x, self.x / 2)
        dots, fitted = line(ax, "original").get_ydata(), line(ax, "reconstruction").get_ydata()
        np.testing.assert_array_equal(dots, self.x[0])
        np.testing.assert_array_equal(fitted, self.x[0] / 2)
        np.testing.assert_allclose(ax.get_lines()[2].get_ydata() - ax.get_yticks()[1], self.x[1])

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
        images = np.zeros((2, 2, 5))
        images[1, 0, -1] = 1.0
        (lines,) = plot_manifold(images).collections
        highest = max((segment[-1] for segment in lines.get_segments()), key=lambda point: point[1] % 1)
        assert 1 < highest[0] < 2 and highest[1] < 1


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
        assert legend(ax) == ["noise of another form: see the table"]

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


PICTURES = {
    "elbo": lambda ax: plot_elbo({"SVI": make_fit()}, ax=ax),
    "gaps": lambda ax: plot_gaps({"SVI": make_gaps()}, ax=ax),
    "gap histogram": lambda ax: plot_gap_histogram({"SVI": make_gaps()}, ax=ax),
    "squared error": lambda ax: plot_squared_error(make_comparison(), ax=ax),
    "log p": lambda ax: plot_log_p(make_comparison(), ax=ax),
    "reconstructions": lambda ax: plot_reconstructions(TestImages.x, TestImages.x, (2, 3), ax=ax),
    "reconstructions as lines": lambda ax: plot_reconstructions(TestImages.x, TestImages.x, ax=ax),
    "samples": lambda ax: plot_samples(TestImages.x, (2, 3), ax=ax),
    "samples as lines": lambda ax: plot_samples(TestImages.x, ax=ax),
    "manifold": lambda ax: plot_manifold(np.ones((2, 2, 6)), (2, 3), ax=ax),
    "manifold as lines": lambda ax: plot_manifold(np.ones((2, 2, 6)), ax=ax),
    "latent": lambda ax: plot_latent(torch.ones(4, 2), [0, 1, 0, 1], ax=ax),
}


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
def test_draws_on_the_axes_given_or_on_one_new_figure_and_leaves_settings_alone(picture, tmp_path):
    before = dict(matplotlib.rcParams)
    _, ax = plt.subplots()
    assert picture(ax) is ax and len(plt.get_fignums()) == 1
    new = picture(None)
    assert new is not ax and len(plt.get_fignums()) == 2
    new.figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
    assert dict(matplotlib.rcParams) == before


BAD = {
    "no fits": (lambda: plot_elbo({}), "fits: expected"),
    "a fit without a name": (lambda: plot_elbo(make_fit()), "fits: expected"),
    "no gaps": (lambda: plot_gaps({}), "gaps: expected"),
    "unknown error": (lambda: plot_gaps({"SVI": make_gaps()}, error="sd"), "error: expected"),
    "unknown term": (lambda: plot_gap_histogram({"SVI": make_gaps()}, term="elbo_local"), "term: expected"),
    "no bins": (lambda: plot_gap_histogram({"SVI": make_gaps()}, bins=0), "bins: expected"),
    "no samples": (lambda: plot_samples(np.ones((0, 6)), (2, 3)), "x: expected"),
    "vector": (lambda: plot_samples(np.ones(6), (2, 3)), "x: expected"),
    "image shape": (lambda: plot_samples(np.ones((2, 6)), (2, 2)), "image_shape: expected 6"),
    "two channels": (lambda: plot_samples(np.ones((2, 8)), (2, 2, 2)), "image_shape: expected"),
    "no columns": (lambda: plot_samples(np.ones((2, 6)), (2, 3), num_columns=0), "num_columns: expected"),
    "unequal shapes": (lambda: plot_reconstructions(np.ones((2, 6)), np.ones((3, 6)), (2, 3)), "mean: expected"),
    "manifold not square": (lambda: plot_manifold(np.ones((2, 3, 6)), (2, 3)), "images: expected"),
    "grid": (lambda: plot_manifold(np.ones((2, 2, 6)), (2, 3), grid=[0.0]), "grid: expected"),
    "three dimensions": (lambda: plot_latent(np.ones((4, 3))), "z: expected"),
    "labels": (lambda: plot_latent(np.ones((4, 2)), [1]), "labels: expected"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named_in_one_line_and_opens_no_figure(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
    assert not plt.get_fignums()
