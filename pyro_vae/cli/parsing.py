"""From words to a verb with its options; what is wrong with them is said in one line."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import tyro

from pyro_vae.cli.applying import EncodeCommand, ImputeCommand, ScoreCommand
from pyro_vae.cli.comparing import CompareCommand, DemoCommand, StudyCommand
from pyro_vae.cli.completion import bash, zsh
from pyro_vae.cli.fitting import EmCommand, FitCommand
from pyro_vae.cli.help import CONFIG, help_of, options_in, parts_in
from pyro_vae.cli.measuring import EvaluateCommand, GapsCommand
from pyro_vae.cli.output import next_command
from pyro_vae.cli.resuming import going_on, said_to_be_whole, typed, words_of
from pyro_vae.cli.showing import GenerateCommand, ListCommand, ReportCommand
from pyro_vae.drawing import draw_run, lacks_draws
from pyro_vae.folders import CONFIG as RUN_CONFIG
from pyro_vae.folders import unfinished
from pyro_vae.run import open_run

__all__ = ["VERBS", "overview", "parse"]


@dataclass(frozen=True, kw_only=True)
class CompletionCommand:
    """Print what a shell has to source to complete verbs, options and parts at the tab key.

    Example: pyro-vae completion bash

    Write it to a file, and source that file where the shell starts: > ~/.pyro-vae.bash; source ~/.pyro-vae.bash

    Attributes:
        shell: which one.
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh"]]

    def __call__(self) -> None:
        """Print."""
        print(bash(VERBS) if self.shell == "bash" else zsh(VERBS))


@dataclass(frozen=True, kw_only=True)
class ResumeCommand:
    """Go on with a fit that was stopped or killed: it ends as if it had not been.

    Of a run that is complete but for draws or pictures it makes those.

    Example: pyro-vae resume runs/digits

    Attributes:
        out: the folder that the run was to be written to.
    """

    out: tyro.conf.Positional[Path]

    def __call__(self) -> None:
        """Type the command again, where it was typed, or make what follows a fit."""
        if not unfinished(self.out).is_dir() and (self.out / RUN_CONFIG).is_file():
            run = open_run(self.out)
            if lacks_draws(run):
                with said_to_be_whole(self.out):
                    draw_run(run)
                print(run.fit)
                print(f"Written to {self.out}.")
                print(next_command("gaps" if run.gaps is None else "report", self.out))
                return
        words, where = words_of(self.out)
        token = going_on.set(True)
        try:
            with contextlib.chdir(where):
                typed.set(words)
                parse(words)()
        finally:
            going_on.reset(token)


_NO_RUNS = (
    "pyro-vae compare fits PCA, autoencoders and VAEs to one data set, --data, and takes no runs. To compare two fits, "
    "make them cells of a study (pyro-vae study FILE); log p(x) of two runs that are measured is compared in Python by "
    "inference.by_one_estimator(open_run(A).gaps, open_run(B).gaps)."
)

VERBS: dict[str, type[Callable[[], None]]] = {
    "demo": DemoCommand,
    "fit": FitCommand,
    "em": EmCommand,
    "resume": ResumeCommand,
    "gaps": GapsCommand,
    "evaluate": EvaluateCommand,
    "score": ScoreCommand,
    "encode": EncodeCommand,
    "impute": ImputeCommand,
    "generate": GenerateCommand,
    "report": ReportCommand,
    "compare": CompareCommand,
    "study": StudyCommand,
    "list": ListCommand,
    "completion": CompletionCommand,
}


def overview() -> str:
    """What there is to type, a line a verb."""
    lines = ["Variational autoencoders as Pyro programs, and what amortization costs them.", ""]
    for name, verb in VERBS.items():
        lines.append(f"  pyro-vae {name:<10} {inspect.cleandoc(verb.__doc__ or '').splitlines()[0]}")
    lines += ["", "Each has --help. A first run: pyro-vae demo."]
    return "\n".join(lines)


def parse(words: list[str]) -> Callable[[], None]:
    """The command that these words ask for.

    Args:
        words: of the command line, a verb first.

    Raises:
        ValueError: a verb, part, option or value is unknown; the message names what is near.
        FileNotFoundError: a configuration is not there.
        SystemExit: help was asked for and printed.
    """
    verb, *rest = words
    if verb not in VERBS:
        raise ValueError(
            f"expected one of {', '.join(VERBS)}; got {verb!r}.{_near(verb, list(VERBS))} See pyro-vae --help."
        )
    command: Any = VERBS[verb]
    # A configuration is where the other options start from, so it is read before them.
    config = _config(rest) if hasattr(command, "from_config") else None
    options = {} if config is None else {"default": command.from_config(config)}
    said = io.StringIO()
    try:
        # tyro draws its errors as boxes of several lines.
        with contextlib.redirect_stderr(said):
            return tyro.cli(command, prog=f"pyro-vae {verb}", args=rest, config=CONFIG, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{_explain(said.getvalue(), command, rest)} See pyro-vae {verb} --help.") from stop


def _config(words: list[str]) -> Path | None:
    """What the last --config names."""
    config = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--config" or word.startswith("--config="):
            name = following if word == "--config" else word.removeprefix("--config=")
            if not name or name.startswith("-"):
                raise ValueError("--config: expected a run's config.json or its folder after it.")
            config = Path(name)
    return config


def _explain(box: str, command: Any, words: list[str]) -> str:  # noqa: ANN401
    """A box of tyro's as one line: what is wrong, without the frame and the argument's whole help."""
    lines = [line.strip("│╭╰╮╯ ") for line in box.splitlines()]
    # Under a heading there are sections with a rule between them, of one character or the other.
    sections = "\n".join("" if re.fullmatch("[─-]{3,}", line) else line or " " for line in lines[1:]).split("\n\n")
    first, *rest = [" ".join(section.split()) for section in sections if section.strip()]
    known = next((part for part in rest if part.startswith("Available subcommands")), "")
    unknown = re.match(r"Unrecognized (?:or misplaced )?options: ([^\s,]+)", first)
    swallowed = re.match(r"Error parsing (--[\w.-]+): Could not find valid parse .*'([\w.-]+:[\w-]+)'", first)
    if swallowed is not None:
        option, part = swallowed.groups()
        return f"{option} takes {part} for one of its values. Put {_said(option, words)} after {part}."
    if unknown is None:
        return f"{first.removesuffix('.').replace('__tyro-dummy-inner__.', '--')}.{f' {known}.' if known else ''}"
    name = unknown.group(1).removesuffix(".")
    if name.startswith("--"):
        return _unknown_option(name, command, words)
    if command is CompareCommand and ":" not in name:
        return f"Unknown word {name}. {_NO_RUNS}"
    return _unknown_word(name, known)


def _unknown_option(word: str, command: Any, words: list[str]) -> str:  # noqa: ANN401
    option = word.split("=")[0]
    parts = [word for word in words if re.fullmatch(r"[\w.-]+:[\w-]+", word)]
    text = help_of(command, parts)
    known = options_in(text)
    if option == "--data" and command in (EvaluateCommand, GapsCommand):
        return "Unknown option --data: the run's own splits are measured. Rows of a file: pyro-vae score RUN FILE."
    kind = option.removeprefix("--").rpartition(".")[0]
    named = next((part for part in parts if part.startswith(f"{kind}:")), None)
    if named and option in known:
        return f"Unknown option {option} before {named}. Put {_said(option, words)} after {named}."
    hint = _near(option, known)
    if not hint and (named or kind in parts_in(text)):
        # The options of a part are there where the part is named.
        owned = ", ".join(known_one for known_one in known if known_one.startswith(f"--{kind}."))
        hint = f" {named or f'The default {kind}'} has {owned or 'none'}."
        hint += "" if named else f" Name the part whose option it is, {kind}:NAME."
    return f"Unknown option {option}.{hint}"


def _said(option: str, words: list[str]) -> str:
    """An option with the values that follow it."""
    at = next(at for at, word in enumerate(words) if word.split("=")[0] == option)
    values = takewhile(lambda word: not re.match(r"--|[\w.-]+:[\w-]+$", word), words[at + 1 :])
    return words[at] if "=" in words[at] else " ".join([option, *values])


def _unknown_word(word: str, listed: str) -> str:
    known = re.findall(r"[\w.-]+:[\w-]+", listed)
    kind = word.partition(":")[0]
    same = [part for part in known if part.startswith(f"{kind}:")]
    hint = _near(word, same or known)
    if same:
        return f"Unknown part {word}.{hint} Expected one of {', '.join(same)}."
    kinds = ", ".join(dict.fromkeys(part.partition(":")[0] for part in known))
    return f"Unknown word {word}.{hint}" + (
        f" Expected a part, as KIND:NAME with KIND one of {kinds}." if kinds else ""
    )


def _near(word: str, known: list[str]) -> str:
    """A question after what is near to a word; nothing where nothing is."""
    close = get_close_matches(word, known, n=2, cutoff=0.75 if word.startswith("-") or ":" in word else 0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""
