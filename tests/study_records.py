"""Records of studies that were never run, for what must be true of any."""

import torch

from inference import Gaps
from pyro_vae.study import ScoredCell, StudyResults
from pyro_vae.study.words import words


def made_up(log_p, se=0.3, **changes):
    """A record of gaps with these values of log p(x)."""
    log_p = torch.as_tensor(log_p, dtype=torch.float64)
    like = {name: torch.zeros_like(log_p) for name in Gaps.__dataclass_fields__ if name in Gaps.TERMS}
    errors = {f"{name}_se": torch.zeros_like(log_p) for name in like}
    fields = {
        **like,
        **errors,
        "log_evidence": log_p,
        "log_evidence_se": torch.full_like(log_p, se),
        "converged": torch.ones(len(log_p), dtype=torch.bool),
        "start_gap": torch.zeros_like(log_p),
        "pareto_k": torch.zeros_like(log_p),
        "ess": None,
        "family": "MeanField(2)",
        "evidence_method": "made up",
    }
    return Gaps(**{**fields, **changes})


def results_of(axes, cells, *, folder=None, failures=(), num_open=0):
    """What a study with these cells would have found: by place, a record of gaps and what is special of its data."""
    config = {
        "parts": {kind: {"part": "x"} for kind in ("prior", "likelihood", "family", "decoder", "encoder")},
        "engine": "svi",
        "sizes": {"num_latents": 2},
        "seed": 0,
        "training": {"epochs": 1},
        "versions": {"torch": "2.0"},
    }
    found = []
    for values, (gaps, changes) in cells.items():
        place = dict(zip(axes, map(words, values), strict=True))
        data = {"load": {"name_or_path": "digits"}, "fingerprint": "a" * 64, "base_measure": "counting", **changes}
        made = {**config, "data": data}
        found.append(ScoredCell(name="-".join(place.values()), place=place, config=made, gaps=gaps, seconds=1.5))
    study = {"data": {"name_or_path": "digits"}, "axes": axes, "parts": {}, "training": {"epochs": 1}, "engine": "svi"}
    study |= {"objective": None, "num_latents": 2, "seed": 0, "num_data": 4, "cells": {}}
    num_cells = len(found) + len(failures) + num_open
    return StudyResults(folder=folder, study=study, cells=found, failures=list(failures), num_cells=num_cells)
