"""Records to draw, and what is read off a picture."""

import numpy as np
import torch

from inference.diagnostics.calibration import judge
from inference.results import Evidence, Fit, Gaps, Surgery
from inference.tracking import TermTracker
from pyro_vae.comparison import Compared, Comparison
from pyro_vae.study import Difference


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
    errors = {f"{term}_se": error * (1 + index) for index, term in enumerate(values)}
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


def make_tracker(num_epochs=30, *, names=("training", "held-out")):
    tracker = TermTracker(None, None, {name: torch.zeros(2, 2) for name in names})
    tracker.epochs = list(range(1, num_epochs + 1))
    for shift, name in enumerate(names):
        epochs = np.arange(num_epochs)
        tracker.reconstruction[name] = list(-90 - 300 * np.exp(-epochs / 1.5) - 3.0 * shift)
        tracker.kl[name] = list(12 - 10 * np.exp(-epochs / 5) + shift)
    return tracker


def make_evidence(pareto_k):
    k = torch.as_tensor(pareto_k)
    return Evidence(value=torch.zeros(len(k)), se=torch.zeros(len(k)), method="IWAE", pareto_k=k)


def make_surgery(kl=(0.5, 3.0, 0.0, 1.0), activity=(0.2, 0.9, 0.001, 0.5), *, num_data=20):
    generator = torch.Generator().manual_seed(num_data)
    kl_per_dim = None
    if kl is not None:
        noise = torch.rand(num_data, len(kl), generator=generator)
        kl_per_dim = torch.tensor(kl) + 0.1 * (noise - noise.mean(0))
    nothing = torch.zeros(num_data)
    terms = ("elbo", "reconstruction", "kl", "mutual_information", "marginal_kl")
    return Surgery(
        **{name: nothing for term in terms for name in (term, f"{term}_se")},
        kl_per_dim=kl_per_dim,
        kl_per_dim_method="the coordinates of q have no marginals" if kl is None else "closed form",
        activity=torch.tensor(activity),
        threshold=0.01,
    )


def make_calibration(shapes, *, num_ranks=400, num_draws=19):
    """Ranks of one quantity a shape: "uniform", "U" or "low"."""
    generator = torch.Generator().manual_seed(1)
    columns = []
    for shape in shapes:
        u = torch.rand(num_ranks, generator=generator)
        u = {"uniform": u, "U": torch.sin(torch.pi * (u - 0.5)) / 2 + 0.5, "low": u**2}[shape]
        columns.append((u * (num_draws + 1)).long().clamp_max(num_draws))
    names = tuple(f"z[{index}]" for index in range(len(shapes)))
    return judge(torch.stack(columns, 1), names=names, num_draws=num_draws)


def make_difference(value="laplace", by_seed=(0.1, 0.3, 0.5), *, mean=0.3, se=0.1, seed_se=0.12, elsewhere=None):
    return Difference(
        axis="prior",
        value=value,
        baseline="normal",
        elsewhere=elsewhere or {},
        mean=mean,
        se=se,
        mc_se=0.01,
        seed_se=seed_se,
        by_seed={str(seed): one for seed, one in enumerate(by_seed)},
    )
