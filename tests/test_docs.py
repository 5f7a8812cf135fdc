"""The documentation: its code runs, its links lead somewhere, and what it states is so.

Pages with code cells are run whenever `make docs` builds them; here they run among the slow tests.
"""

import importlib
import itertools
import math
import pkgutil
import re
import shlex
from pathlib import Path

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearOracle
from torch.distributions import kl_divergence

import inference
import pyro_vae.likelihoods
import pyro_vae.plots
import pyro_vae.priors
import pyro_vae.study
from inference import MeanField, Training, fit_svi
from inference.densities import densities
from inference.weights import log_mean_exp
from pyro_vae import MLP, VAE, LinearGaussian
from pyro_vae.likelihoods import Gaussian
from pyro_vae.plots._style import drawing
from pyro_vae.priors import StandardNormal

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {str(page.relative_to(DOCS)): page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts}

FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


def fences(name):
    return [(match["info"].split(" ")[0], match["body"]) for match in FENCE.finditer(PAGES[name].read_text())]


def prose(name):
    """A page without its code."""
    return FENCE.sub("", PAGES[name].read_text())


def is_notebook(name):
    return any(kind == "{code-cell}" for kind, _ in fences(name))


def run(blocks, name):
    """One after the other, in one namespace."""
    torch.set_default_dtype(torch.float32)
    namespace = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)  # noqa: S102
    return namespace


# Code -----------------------------------------------------------------------------------------------------------------


# Run by other tests, which look at what is printed as well.
ELSEWHERE = {
    "arviz.md": "test_draws_arviz.py",
    "full-bayes.md": "test_bayes.py",
    "linear-vae.md": "test_comparison.py",
}
WITH_BLOCKS = [name for name in PAGES if any(kind == "python" for kind, _ in fences(name))]


@pytest.mark.parametrize("name", [name for name in WITH_BLOCKS if name not in ELSEWHERE])
def test_blocks_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run([body for kind, body in fences(name) if kind == "python"], name)


def test_other_tests_run_the_rest():
    for name, file in ELSEWHERE.items():
        assert name in WITH_BLOCKS
        assert name in (ROOT / "tests" / file).read_text()


def cell(body):
    """The code of a cell without the options above it."""
    return re.sub(r"\A(---\n.*?^---\n|(:[\w-]+:[^\n]*\n)+)", "", body, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PAGES if is_notebook(name)])
def test_cells_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run([cell(body) for kind, body in fences(name) if kind == "{code-cell}"], name)


@pytest.mark.slow
def test_two_runs_compare_as_the_page_says(tmp_path, monkeypatch, capsys):
    """The commands of the section make the runs, only smaller; its code, and that of the first page, opens them."""
    from pyro_vae.cli.parsing import parse

    monkeypatch.chdir(tmp_path)
    text = PAGES["grid.md"].read_text()
    section = text[text.index("## Two runs you have already") :]
    (typed,), (code,) = ([m["body"] for m in FENCE.finditer(section) if m["info"] == kind] for kind in ("sh", "py"))
    for line in typed.splitlines():
        words = shlex.split(line.replace("--num-data 200", "--num-data 4"))
        if words[1] == "fit":
            words += ["--training.epochs", "1", "--num-latents", "2"]
        parse(words[1:])()
    difference = run([code.replace("print(", "said = (")], "grid.md")["said"]
    assert difference.keys() == {"mean", "se", "mc_se"} and all(map(math.isfinite, difference.values()))
    a, b = (pyro_vae.open_run(f"runs/{name}").gaps.log_evidence.mean().item() for name in "ab")
    assert difference["mean"] == pytest.approx(b - a, abs=0.5)

    (opened,) = [body for kind, body in fences("first-gap.md") if kind == "py"]
    capsys.readouterr()
    run([opened.replace("runs/mine", "runs/a")], "first-gap.md")
    assert "amortization gap" in capsys.readouterr().out


@pytest.mark.parametrize("name", PAGES)
def test_no_code_is_left_out(name):
    """A block of Python in a notebook would be run by nobody, and so would one of an unknown language."""
    kinds = {kind for kind, _ in fences(name)}
    assert kinds <= {"", "python", "py", "sh", "text", "yaml", "{code-cell}", "{toctree}", "{eval-rst}"}
    assert not {"python", "{code-cell}"} <= kinds
    # "py" is Python that needs what is not here, another version or a cluster.
    for body in (body for kind, body in fences(name) if kind == "py"):
        compile(body, name, "exec")


def test_notebooks_say_that_they_are():
    """Without the header MyST-NB shows code cells and runs none."""
    notebooks = [name for name in PAGES if is_notebook(name)]
    assert len(notebooks) >= 6
    for name in notebooks:
        header = PAGES[name].read_text().split("---")[1]
        assert "format_name: myst" in header and "kernelspec" in header, name


def commands(program):
    """The words of every command of the README and the pages, without comments and `VARIABLE=value` before it."""
    pages = [ROOT / "README.md", *PAGES.values()]
    bodies = [match["body"] for page in pages for match in FENCE.finditer(page.read_text()) if match["info"] == "sh"]
    lines = [shlex.split(line, comments=True) for body in bodies for line in body.splitlines()]
    lines = [list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words)) for words in lines]
    return [words for words in lines if words[:1] == [program]]


# Repeating a run needs the run; test_cli.py makes one.
COMMANDS = [words for words in commands("pyro-vae") if "--config" not in words]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_are_understood(words):
    """Parsed, not run: every verb, part and option is there."""
    from pyro_vae.cli.parsing import parse

    assert callable(parse(words[1:]))


def test_targets_and_scripts_are_there():
    makefile = (ROOT / "Makefile").read_text()
    targets = {words[1] for words in commands("make")}
    assert {"demo", "test", "bench"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    scripts = [words for words in commands("python") if words[1].endswith(".py")]
    assert len(scripts) >= 3
    sources = "".join(path.read_text() for path in (ROOT / "benchmarks").rglob("*.py"))
    for words in scripts:
        assert (ROOT / words[1]).is_file(), words
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in sources, words


def test_a_notebook_shows_more_than_its_first_picture(monkeypatch):
    """A notebook's backend turns interactive mode on when the first figure wakes it; without it nothing is shown."""
    subplots = matplotlib.pyplot.subplots

    def waking(*args, **options):
        matplotlib.interactive(True)
        return subplots(*args, **options)

    monkeypatch.setattr("matplotlib.pyplot.subplots", waking)
    try:
        with drawing(None, (1.0, 1.0)):
            pass
        assert matplotlib.is_interactive()
    finally:
        matplotlib.interactive(False)


# Links and names ------------------------------------------------------------------------------------------------------


def anchors(page):
    """What a heading is called in a link."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    page, broken = PAGES[name], []
    for match in LINK.finditer(prose(name)):
        target, _, anchor = match["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            broken.append(match["target"])
    assert not broken


def test_tests_that_are_named_exist():
    """`[`test_posterior`](../tests/test_linear.py)`: the file holds a test of that name."""
    found = []
    for name in PAGES:
        for match in LINK.finditer(prose(name)):
            if "/tests/" not in match["target"]:
                continue
            source = (PAGES[name].parent / match["target"]).read_text()
            test = re.fullmatch(r"`(?:(\w+)\.)?(test_\w+)`", match["text"])
            assert test, f"{name}: {match['text']} names no test"
            assert re.search(rf"^\s*def {test[2]}\(", source, flags=re.MULTILINE), f"{name}: {match['text']}"
            assert test[1] is None or f"class {test[1]}" in source, f"{name}: {match['text']}"
            found.append(test[2])
    assert len(found) > 20


def test_names_on_the_pages_exist():
    """`inference.conditioned`, `pyro_vae.plots.plot_aggregate`: whatever is named in full."""
    for name in PAGES:
        for dotted in set(re.findall(r"`((?:inference|pyro_vae)(?:\.\w+)+)", prose(name))):
            module, _, attribute = dotted.rpartition(".")
            try:
                found = hasattr(importlib.import_module(module), attribute)
            except ImportError:
                # A method: the name before the last is a class.
                module, _, owner = module.rpartition(".")
                found = hasattr(getattr(importlib.import_module(module), owner, None), attribute)
            assert found or pkgutil.resolve_name(dotted), f"{name}: {dotted}"


def test_files_on_the_pages_exist():
    for name in PAGES:
        text = PAGES[name].read_text()
        for path in set(re.findall(r"\b((?:inference|pyro_vae|tests|benchmarks)/[\w/]+\.py)", text)):
            assert (ROOT / path).is_file(), f"{name}: {path}"


def test_every_page_is_in_one_table_of_contents():
    listed = [line for kind, body in fences("index.md") if kind == "{toctree}" for line in body.splitlines()]
    listed = [line for line in listed if line and not line.startswith(":")]
    assert sorted(listed) == sorted(name.removesuffix(".md") for name in PAGES if name != "index.md")


def named(dotted):
    """The object of that name, not a module beside it that is called the same."""
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def documented():
    """Full names in the reference."""
    names = set()
    for name in PAGES:
        for kind, body in fences(name):
            module = ""
            for line in body.splitlines() if kind == "{eval-rst}" else []:
                if line.startswith(".. currentmodule:: "):
                    module = line.split(":: ")[1]
                elif line.startswith(".. auto"):
                    names.add(f"{module}.{line.split(':: ')[1]}")
    return names


@pytest.mark.parametrize(
    "module",
    [inference, pyro_vae, pyro_vae.priors, pyro_vae.likelihoods, pyro_vae.plots, pyro_vae.study],
    ids=lambda module: module.__name__,
)
def test_the_reference_is_complete(module):
    """Under whichever of its names: a callback is in `inference` and in `inference.callbacks`."""
    public = {name: getattr(module, name) for name in module.__all__}
    known = [named(dotted) for dotted in documented()]
    missing = [name for name, what in public.items() if callable(what) and not any(what is one for one in known)]
    assert not missing


def test_the_reference_names_nothing_that_is_not_there():
    for name in documented():
        assert callable(named(name))


# What the pages state and no other test checks ------------------------------------------------------------------------


def test_divergence_of_two_normals_in_one_dimension():
    """log(s / sigma) + (sigma^2 + (mu - m)^2) / (2 s^2) - 1/2, against quadrature and against what the library uses."""
    mu, sigma, m, s = 1.5, 0.4, -0.3, 0.9
    z = np.linspace(mu - 12 * sigma, mu + 12 * sigma, 20_001)
    log_q = -0.5 * ((z - mu) / sigma) ** 2 - math.log(sigma) - 0.5 * math.log(2 * math.pi)
    log_p = -0.5 * ((z - m) / s) ** 2 - math.log(s) - 0.5 * math.log(2 * math.pi)
    truth = np.sum(np.exp(log_q) * (log_q - log_p)) * (z[1] - z[0])
    assert math.log(s / sigma) + (sigma**2 + (mu - m) ** 2) / (2 * s**2) - 0.5 == pytest.approx(truth, rel=1e-9)
    family = MeanField(1)
    q = family(family.params_from(dist.Normal(torch.tensor([mu]), sigma).to_event(1)))
    assert kl_divergence(q, dist.Normal(torch.tensor([m]), s).to_event(1)).item() == pytest.approx(truth, rel=1e-9)


def test_minus_the_divergence_from_the_prior_has_that_sign():
    """-KL(q || N(0, I)) = 1/2 sum(1 + log sigma^2 - mu^2 - sigma^2): not positive, and 0 at the prior alone."""
    mu, sigma = torch.randn(50, 3), torch.rand(50, 3) + 0.1
    minus = 0.5 * (1 + sigma.square().log() - mu.square() - sigma.square()).sum(-1)
    prior = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    family = MeanField(3)
    q = family(family.params_from(dist.Normal(mu, sigma).to_event(1)))
    torch.testing.assert_close(-kl_divergence(q, prior), minus)
    assert (minus < 0).all()
    at_the_prior = family(family.params_from(prior.expand([1])))
    torch.testing.assert_close(kl_divergence(at_the_prior, prior), torch.zeros(1))


def test_p_of_x_is_the_mean_over_prior_draws_of_the_likelihood():
    """Of p(x | z), within four errors; the mean of p(x, z) is another number."""
    oracle = LinearOracle.random(4, 1, scale=1.0)
    model = LinearGaussian(torch.tensor(oracle.weight), torch.tensor(oracle.bias), oracle.scale).model
    x = torch.tensor(oracle.draw(16))
    truth = torch.tensor(oracle.log_evidence(x))
    terms = densities(model, x, torch.randn(20_000, 16, 1))
    value, se = log_mean_exp(terms.log_likelihood)
    assert ((value - truth).abs() < 4 * se).all() and se.max() < 0.05
    wrong, se = log_mean_exp(terms.log_joint)
    assert ((wrong - truth).abs() > 20 * se).all()


def small_vae():
    torch.manual_seed(0)
    family = MeanField(2)
    parts = {"family": family, "encoder": MLP(5, 8, family.num_params), "decoder": MLP(2, 8, 5)}
    return VAE(prior=StandardNormal(2), likelihood=Gaussian(scale=0.5), **parts)


def test_weight_decay_is_a_normal_prior():
    """L2 in the loss, lambda = 1 / (N tau^2) for a mean over N, and log N(theta; 0, tau^2) in the model: one fit."""
    x, tau = torch.randn(60, 5), 0.3
    fitted = {}
    for how in ("prior", "decay", "neither"):
        vae = small_vae()
        decoder = {id(weight) for weight in vae.decoder.parameters()}

        def with_prior(x, vae=vae):
            vae.model(x)
            weights = torch.cat([weight.flatten() for weight in vae.decoder.parameters()])
            pyro.factor("prior", dist.Normal(0.0, tau).log_prob(weights).sum() * len(x) / 60)

        def decaying(leaves, decoder=decoder, decay=1 / (60 * tau**2) if how == "decay" else 0.0):
            leaves = list(leaves)
            others = [leaf for leaf in leaves if id(leaf) not in decoder]
            mine = [leaf for leaf in leaves if id(leaf) in decoder]
            return torch.optim.Adam([{"params": others}, {"params": mine, "weight_decay": decay}], lr=0.01)

        training = Training(epochs=20, batch_size=20, optimizer=decaying)
        fit_svi(with_prior if how == "prior" else vae.model, vae.guide, x, training=training, seed=0)
        fitted[how] = torch.cat([weight.detach().flatten() for weight in vae.decoder.parameters()])
    torch.testing.assert_close(fitted["prior"], fitted["decay"], rtol=1e-8, atol=1e-8)
    assert (fitted["prior"] - fitted["neither"]).abs().max() > 0.01
