"""One table of bad input to the whole public API, and properties of the numerics: an error in words or a right answer.

Run as a script it prints the sizes of both.
"""

import re
import warnings

import bad_input_arguments
import bad_input_engines
import bad_input_models
import pytest
import torch
from bad_input import check
from bad_input_commands import VERBS, commands, files, refused, run
from bad_input_properties import EXAMPLES, PROPERTIES

import inference
import pyro_vae
from pyro_vae.cli.parsing import VERBS as COMMANDS

TABLE = [*bad_input_engines.cases(), *bad_input_arguments.cases(), *bad_input_models.cases()]
GROUPS = sorted({case.of for case in TABLE})
LINES = list(commands())


@pytest.mark.parametrize("of", GROUPS)
def test_cases(of):
    """A test for each public name: thousands of tests would take longer to set up than to run."""
    failed = []
    for case in TABLE:
        if case.of == of:
            torch.manual_seed(0)
            try:
                check(case)
            except (AssertionError, Exception, pytest.fail.Exception) as error:
                failed.append(f"{case}: {type(error).__name__}: {error}")
    assert not failed, "\n\n".join(failed)


@pytest.mark.parametrize("module", [inference, pyro_vae], ids=["inference", "pyro_vae"])
def test_every_public_name_is_in_the_table(module):
    public = {f"{module.__name__}.{name}" for name in module.__all__ if callable(getattr(module, name))}
    assert public <= set(GROUPS), public - set(GROUPS)


class TestCommands:
    @pytest.fixture(autouse=True)
    def _single_precision(self):
        torch.set_default_dtype(torch.float32)

    @pytest.fixture
    def made(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        return files(tmp_path)

    @pytest.mark.parametrize("verb", ["", *VERBS])
    def test_wrong_lines(self, verb, made):
        failed = []
        for line, message in LINES:
            words = [word.format(**made) for word in line.split()]
            if (words[0] if words[0] in VERBS else "") != verb:
                continue
            outcome = run(words)
            try:
                refused(outcome)
                assert re.search(message, outcome.err)
            except AssertionError as error:
                failed.append(f"{line}: {outcome}: {error}")
        assert not failed, "\n\n".join(failed)

    def test_every_verb_is_in_the_table(self):
        assert set(COMMANDS) == set(VERBS) == {line.split()[0] for line, _ in LINES} & set(COMMANDS)


class TestProperties:
    @pytest.fixture(autouse=True)
    def _no_work(self, monkeypatch, tmp_path):
        """Of the command line what is typed is looked at; what fits and draws has tests of its own."""
        monkeypatch.chdir(tmp_path)
        for verb in ("demo", "fit", "em", "compare", "study"):
            monkeypatch.setattr(COMMANDS[verb], "__call__", lambda _: None)

    @pytest.mark.parametrize("name", PROPERTIES)
    def test_holds(self, name):
        PROPERTIES[name].check(name, PROPERTIES[name].quick)
        assert EXAMPLES[name] > PROPERTIES[name].quick // 2

    @pytest.mark.slow
    @pytest.mark.parametrize("name", PROPERTIES)
    def test_holds_of_many(self, name):
        PROPERTIES[name].check(name, PROPERTIES[name].slow)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(f"{len(TABLE)} calls of {len(GROUPS)} public names, and {len(LINES)} command lines")
    print(f"{sum(case.error is not None for case in TABLE)} calls must be errors, the others right answers")
    for kind in ("quick", "slow"):
        total = sum(getattr(each, kind) for each in PROPERTIES.values())
        print(f"{kind}: {total} examples of {len(PROPERTIES)} properties")
