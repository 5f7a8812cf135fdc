"""Bars where somebody watches, and silence elsewhere."""

import io
import sys

import pytest
import torch

from inference import Amortized, Annealing, MeanField, Training, ais, fit_svi, iwae, progress, sample_posterior
from inference.estep import refine
from inference.progress import progress_bar, track
from pyro_vae.linear import LinearGaussian


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def watched(monkeypatch):
    """Makes standard error a terminal; pytest puts its own stream there between fixtures and test."""

    def watch():
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        return terminal

    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    return watch


def programs():
    torch.manual_seed(0)
    exact = LinearGaussian(torch.randn(4, 2), torch.zeros(4), 1.0)
    return exact.model, Amortized(MeanField(2), torch.nn.Linear(4, 4).double()), torch.randn(300, 4)


def _fit(model, guide, x):
    fit_svi(model, guide, x, training=Training(epochs=2), seed=0)


LONG = {
    "SVI": _fit,
    "search for q*": lambda model, guide, x: refine(model, MeanField(2), x[:5], seed=0),
    "importance sampling": lambda model, guide, x: iwae(model, guide, x, num_draws=50, seed=0),
    "annealing": lambda model, guide, x: ais(
        model, x[:5], start=guide, annealing=Annealing(num_temperatures=10, num_chains=2), seed=0
    ),
    "sampling": lambda model, guide, x: sample_posterior(model, x[:3], num_warmup=4, num_draws=4, seed=0),
}


@pytest.mark.parametrize("label", LONG)
def test_what_takes_long_shows_how_far_it_is(label, watched):
    terminal = watched()
    LONG[label](*programs())
    said = terminal.getvalue()
    assert f"{label}:" in said and "/s" in said
    assert said.endswith("\r")  # The line is cleared when all is done.


@pytest.mark.parametrize("label", LONG)
def test_nobody_watches(label, monkeypatch, capsys):
    monkeypatch.setattr(progress, "DELAY", 0.0)
    LONG[label](*programs())
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_the_environment_may_turn_it_off(watched, monkeypatch):
    terminal = watched()
    monkeypatch.setenv("TQDM_DISABLE", "1")
    _fit(*programs())
    assert terminal.getvalue() == ""


def test_what_is_soon_over_shows_none(watched, monkeypatch):
    terminal = watched()
    monkeypatch.setattr(progress, "DELAY", 60.0)
    _fit(*programs())
    assert terminal.getvalue() == ""


def test_a_loop_that_is_left_closes_its_bar(watched):
    terminal = watched()
    for item in track(range(10), 10, "counting", "number"):
        if item == 3:
            break
    assert "counting" in terminal.getvalue() and terminal.getvalue().endswith("\r")


def test_a_notebook_is_watched(monkeypatch):
    """Its streams are no terminals, and its bars are widgets."""

    class Widget(progress.tqdm):
        pass

    Widget.__module__ = "tqdm.notebook"
    monkeypatch.setattr(progress, "tqdm", Widget)
    with progress_bar(3, "counting", "number") as bar:
        assert not bar.disable
