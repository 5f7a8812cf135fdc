"""What a user of ArviZ does with a saved tree, under either of its majors, from the file alone.

`python tests/arviz_reading.py results.nc` says what each call returned; it needs ArviZ, h5netcdf and matplotlib only.
"""

import sys

import arviz
import numpy as np
import xarray as xr

# 0.2x reads a file into its own InferenceData, 1.x into xarray's DataTree.
MAJOR = int(arviz.__version__.split(".")[0])


def groups(opened):
    """Names of the groups of an opened file."""
    return {name.strip("/") for name in (opened.groups() if MAJOR == 0 else opened.groups)} - {""}


def summary(opened, name, **options):
    """Means, spreads and diagnostics of each latent value, as numbers: 1.x rounds to text."""
    return arviz.summary(opened, var_names=[name], round_to="none", **options)


def plot_posterior(opened, name, **options):
    """The marginal posteriors: `plot_posterior` is called `plot_dist` in 1.x."""
    draw = arviz.plot_posterior if MAJOR == 0 else arviz.plot_dist
    return draw(opened, var_names=[name], **options)


def plot_dist(opened, name, **options):
    """A marginal distribution: `plot_dist` takes an array in 0.2x."""
    if MAJOR == 0:
        values = opened.posterior[name].sel(options.get("coords", {}))
        return arviz.plot_dist(values.values.ravel())
    return arviz.plot_dist(opened, var_names=[name], **options)


def plot_forest(opened, name, **options):
    """Intervals side by side."""
    return arviz.plot_forest(opened, var_names=[name], **options)


def plot_ppc(opened, name):
    """Observed against predicted values: 0.2x tells counts from real numbers by their type, 1.x has a plot for each."""
    if MAJOR == 0:
        return arviz.plot_ppc(opened, var_names=[name], num_pp_samples=20, random_seed=0)
    observed = opened["observed_data"][name]
    if observed.dtype.kind != "i":
        return arviz.plot_ppc_dist(opened, var_names=[name], num_samples=20)
    # Both plots of integers take a vector: all values of all datapoints, one after another.
    draw = arviz.plot_ppc_rootogram if observed.max() > 1 else arviz.plot_ppc_pava
    flat = {}
    for group in ("observed_data", "posterior_predictive"):
        values = opened[group].to_dataset()[[name]].drop_vars("label", errors="ignore")
        flat[group] = values.stack(value=observed.dims).reset_index("value", drop=True)
    return draw(xr.DataTree.from_dict(flat), var_names=[name])


def compare(elpds):
    """Models in order, in columns of one name under both: `elpd_diff` is positive, what the best one is ahead."""
    if MAJOR == 0:
        table = arviz.compare(elpds).rename(columns={"elpd_loo": "elpd"})
        return table.assign(doubtful=table["warning"])
    table = arviz.compare(elpds, round_to="none")
    return table.assign(elpd_diff=table["elpd_diff"].abs(), doubtful=table["diag_elpd"].fillna("") != "")


def psis(opened):
    """Pareto smoothed importance sampling of `lp - log_q`.

    Returns:
        log p(x) of the raw weights, of the smoothed ones, and k, each (obs_id,).
    """
    log_w = (opened["sample_stats"]["lp"] - opened["sample_stats"]["log_q"]).transpose("obs_id", "chain", "draw")
    num_data = log_w.sizes["obs_id"]
    if MAJOR == 0:
        smoothed, k = arviz.psislw(log_w.stack(__sample__=("chain", "draw")))
    else:
        # There it takes log likelihoods to be left out, and turns their sign.
        smoothed, k = (-log_w).azstats.psislw(dim=["chain", "draw"])
        smoothed = smoothed.transpose("obs_id", "chain", "draw")
    raw, smoothed = log_w.values.reshape(num_data, -1), smoothed.values.reshape(num_data, -1)
    # Smoothed weights come normalised. The smallest one is never smoothed: it says by how much.
    rows, smallest = np.arange(num_data), raw.argmin(-1)
    scale = (raw - smoothed)[rows, smallest]
    return _log_mean_exp(raw), _log_mean_exp(smoothed) + scale, k.values


def _log_mean_exp(values):
    return np.logaddexp.reduce(values, axis=-1) - np.log(values.shape[-1])


def main(path):
    import matplotlib

    matplotlib.use("Agg")
    opened = arviz.from_netcdf(path)
    print(f"ArviZ {arviz.__version__}: {type(opened).__name__} of {', '.join(sorted(groups(opened)))}")
    print("attributes:", dict(opened.attrs))
    site = opened.attrs["site"]
    few = {"obs_id": opened["posterior"]["obs_id"].values[:3]}
    print(summary(opened, site, kind="stats").head(4))
    for draw in (plot_posterior, plot_dist, plot_forest):
        print(draw.__name__, type(draw(opened, site, coords=few)).__name__)
    for name in opened["observed_data"].data_vars:
        print("plot_ppc", name, dict(opened["observed_data"][name].sizes), type(plot_ppc(opened, name)).__name__)
    raw, smoothed, k = psis(opened)
    print(f"log p(x): raw {raw.mean():.6f}, smoothed {smoothed.mean():.6f}, k {k.min():.3f} to {k.max():.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
