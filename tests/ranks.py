"""What several processes do together, in a script of its own: `torchrun --nproc-per-node=2 ranks.py FOLDER PHASE`.

The first process writes what was found to FOLDER/found.pt. Started alone it does all by itself.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from inference import (
    Adam,
    Amortized,
    Annealing,
    MeanField,
    Resume,
    Search,
    Training,
    ais,
    fit_em,
    fit_svi,
    iwae,
    measure_gaps,
)
from inference.checkpoint import save_checkpoint
from inference.processes import LostProcessError, is_first, process_group, rank
from pyro_vae.linear import LinearGaussian


def problem():
    torch.manual_seed(0)
    exact = LinearGaussian(torch.randn(3, 2), torch.zeros(3), 1.0)
    return exact, Amortized(MeanField(2), nn.Linear(3, 4)), torch.randn(200, 3)


class Death:
    """A callback that kills the last process after an epoch."""

    def __call__(self, state):
        if state.epoch == 2 and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def die_in(module, name):
    """Kill the last process where it would call this."""
    if rank() == 1:
        setattr(module, name, lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL))


def main(folder: Path, phase: str) -> None:
    training = Training(epochs=4, batch_size=40, optimizer=Adam(lr=0.01), shards=4)
    if phase in ("svi dies", "em dies"):
        training = Training(epochs=4, batch_size=40, optimizer=Adam(lr=0.01), shards=4, callbacks=[Death()])
    found = {}
    if phase in ("all", "svi dies", "resume"):
        exact, guide, x = problem()
        resume = Resume(folder / "svi", every=0)
        fit = fit_svi(exact.model, guide, x, training=training, validation=x[:30], resume=resume, seed=0)
        found |= {"svi elbo": fit.elbo, "svi held-out": fit.elbo_validation, "svi weight": exact.weight.detach()}
    if phase in ("all", "em dies", "resume em"):
        exact, guide, x = problem()
        resume = Resume(folder / "em", every=0)
        fit = fit_em(exact.model, MeanField(2), x, training=training, validation=x[:30], resume=resume, seed=0)
        found |= {"em elbo": fit.elbo, "em held-out": fit.elbo_validation}
        found |= {"em rows": fit.params, "em best": fit.elbo_best}
    exact, guide, x = problem()
    if phase == "gaps die":
        import inference.search

        die_in(inference.search.Problem, "search")
    if phase in ("all", "gaps die"):
        options = {"num_draws": 50, "num_evidence_draws": 100, "search": Search(max_rounds=2), "seed": 0}
        options["annealing"] = Annealing(num_temperatures=20)
        gaps = measure_gaps(exact.model, guide, x, **options)
        found |= {f"gaps {name}": getattr(gaps, name) for name in (*gaps.GAPS, "log_evidence_se", "pareto_k")}
    if phase in ("all", "ais dies"):
        if phase == "ais dies":
            import inference.evidence.path

            die_in(inference.evidence.path.Path, "forward")
        evidence = ais(exact.model, x, annealing=Annealing(num_temperatures=20), seed=0)
        found |= {"ais": evidence.value, "ais se": evidence.se}
    if phase in ("all", "iwae dies"):
        if phase == "iwae dies":
            import inference.evidence.importance

            die_in(inference.evidence.importance, "_weigh")
        evidence = iwae(exact.model, guide, x, num_draws=100, seed=0)
        found |= {"iwae": evidence.value, "iwae ess": evidence.ess}
    if is_first():
        save_checkpoint(folder / "found.pt", found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group():
        try:
            main(Path(sys.argv[1]), sys.argv[2])
        except LostProcessError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
