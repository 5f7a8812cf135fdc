"""Pictures: a record or arrays in, matplotlib `Axes` out. Nothing is computed beyond binning, and nothing is shown.

Every function draws on the `ax` it is given, or on a new figure, and returns the Axes: `ax.figure.savefig("gaps.png")`.
The style is local: the caller's matplotlib settings stay as they are. `COLORS` and `STYLE` (for `plt.rc_context`) are
for pictures that go beside these.
"""

from pyro_vae.plots._style import COLORS, STYLE
from pyro_vae.plots.calibration import plot_rank_differences, plot_ranks
from pyro_vae.plots.comparison import plot_comparison, plot_log_p, plot_squared_error
from pyro_vae.plots.differences import plot_differences
from pyro_vae.plots.evidence import plot_pareto_k
from pyro_vae.plots.gaps import plot_gap_histogram, plot_gap_scatter, plot_gaps, plot_worst
from pyro_vae.plots.images import plot_manifold, plot_reconstructions, plot_samples
from pyro_vae.plots.latent import plot_aggregate, plot_latent
from pyro_vae.plots.paths import plot_interpolations, plot_traversals
from pyro_vae.plots.posterior import plot_posterior
from pyro_vae.plots.surgery import plot_kl_per_dim
from pyro_vae.plots.training import plot_elbo, plot_elbo_terms

__all__ = [
    "COLORS",
    "STYLE",
    "plot_aggregate",
    "plot_comparison",
    "plot_differences",
    "plot_elbo",
    "plot_elbo_terms",
    "plot_gap_histogram",
    "plot_gap_scatter",
    "plot_gaps",
    "plot_interpolations",
    "plot_kl_per_dim",
    "plot_latent",
    "plot_log_p",
    "plot_manifold",
    "plot_pareto_k",
    "plot_posterior",
    "plot_rank_differences",
    "plot_ranks",
    "plot_reconstructions",
    "plot_samples",
    "plot_squared_error",
    "plot_traversals",
    "plot_worst",
]
