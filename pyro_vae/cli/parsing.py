"""From words to a verb with its options; what is wrong with them is said in one line."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from pyro_vae.cli.comparing import CompareCommand, DemoCommand, StudyCommand
from pyro_vae.cli.fitting import EmCommand, FitCommand
from pyro_vae.cli.measuring import EvaluateCommand, GapsCommand
from pyro_vae.cli.showing import GenerateCommand, ListCommand, ReportCommand

__all__ = ["VERBS", "overview", "parse"]

VERBS: dict[str, type[Callable[[], None]]] = {
    "demo": DemoCommand,
    "fit": FitCommand,
    "em": EmCommand,
    "gaps": GapsCommand,
    "evaluate": EvaluateCommand,
    "generate": GenerateCommand,
    "report": ReportCommand,
    "compare": CompareCommand,
    "study": StudyCommand,
    "list": ListCommand,
}
SHELLS = ("bash", "zsh", "tcsh")


def overview() -> str:
    """What there is to type, a line a verb."""
    lines = ["Variational autoencoders as Pyro programs, and what amortization costs them.", ""]
    for name, verb in VERBS.items():
        lines.append(f"  pyro-vae {name:<9} {inspect.cleandoc(verb.__doc__ or '').splitlines()[0]}")
    lines += [
        "",
        "Each has --help. A first run: pyro-vae demo. Tab completion: pyro-vae completion bash (or zsh, tcsh).",
    ]
    return "\n".join(lines)


def parse(words: list[str]) -> Callable[[], None]:
    """The command that these words ask for.

    Args:
        words: of the command line.

    Raises:
        ValueError: a verb, part, option or value is unknown; the message names what is near.
        FileNotFoundError: a configuration is not there.
        SystemExit: help was asked for and printed.
    """
    verb, *rest = words
    if verb == "completion":
        return _completion(rest)
    if verb not in VERBS:
        close = get_close_matches(verb, VERBS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"expected one of {', '.join(VERBS)}; got {verb!r}.{hint} See pyro-vae --help.")
    command = VERBS[verb]
    rest, config = _config(rest)
    default: Any = None
    if config is not None:
        from_config = getattr(command, "from_config", None)
        if from_config is None:
            raise ValueError(f"--config: expected by fit and em; {verb} has none.")
        default = from_config(config)
    return _tyro(command, verb, rest, default)


def _tyro(command: Any, verb: str, words: list[str], default: Any) -> Callable[[], None]:  # noqa: ANN401
    said = io.StringIO()
    options = {} if default is None else {"default": default}
    try:
        # tyro draws its errors as boxes of several lines.
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                command, prog=f"pyro-vae {verb}", args=words, config=(tyro.conf.CascadeSubcommandArgs,), **options
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        said_wrong = _one_line(said.getvalue())
        unknown = _UNKNOWN.search(said_wrong)
        text = (
            said_wrong if unknown is None else _did_you_mean(unknown.group(1).rstrip("."), said_wrong, command, words)
        )
        raise ValueError(f"{text} See pyro-vae {verb} --help.") from stop


def _config(words: list[str]) -> tuple[list[str], Path | None]:
    """The words without --config, and what it names: a configuration is where the other options start from."""
    for position, word in enumerate(words):
        if word == "--config":
            if position + 1 == len(words):
                raise ValueError("--config: expected a run's config.json or its folder after it.")
            return words[:position] + words[position + 2 :], Path(words[position + 1])
        if word.startswith("--config="):
            return words[:position] + words[position + 1 :], Path(word.removeprefix("--config="))
    return words, None


def _completion(words: list[str]) -> Callable[[], None]:
    if len(words) != 1 or words[0] not in SHELLS:
        raise ValueError(f"completion: expected one of {', '.join(SHELLS)}.")
    verbs = [Annotated[verb, tyro.conf.subcommand(name=name)] for name, verb in VERBS.items()]

    def show() -> None:
        with contextlib.suppress(SystemExit):
            command: Any = Union[tuple(verbs)]  # noqa: UP007 (the verbs are known at run time)
            tyro.cli(command, prog="pyro-vae", args=["--tyro-print-completion", words[0]])

    return show


def _one_line(box: str) -> str:
    """A box of tyro's as one line: what is wrong, without the frame and the argument's whole help."""
    rule = "──"
    first = box.split(f"│ {rule}")[0] if f"│ {rule}" in box else box
    rest = box.split(f"│ {rule}")[1:]
    lines = [line.strip("│╭╰╮╯─ ") for line in first.splitlines()[1:]]
    text = " ".join(line for line in lines if line).replace("__tyro-dummy-inner__.", "--")
    known = next((part for part in rest if "Available subcommands" in part), "")
    choices = " ".join(line.strip("│╭╰╮╯─ ") for line in known.splitlines())
    return f"{text.rstrip('.')}.{' ' + choices.strip() + '.' if choices else ''}"


_UNKNOWN = re.compile(r"Unrecognized options: ([^\s,]+)")


def _did_you_mean(unknown: str, said: str, command: Any, words: list[str]) -> str:  # noqa: ANN401
    """The word that is unknown, and what is near it: of a part the others of its kind, of an option the nearest."""
    if unknown.startswith("--"):
        unknown = unknown.split("=")[0]
        known = _options_of(command, words)
        close = get_close_matches(unknown, known, n=2, cutoff=0.75)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        owner = unknown.removeprefix("--").split(".")[0]
        # The options of a part are there where the part is named.
        if not close and "." in unknown and (parts := [word for word in words if word.startswith(f"{owner}:")]):
            hint = f" {parts[0]} has {', '.join(o for o in known if o.startswith(f'--{owner}.')) or 'none'}."
        return f"Unknown option {unknown}.{hint}"
    known = re.findall(r"[\w.-]+:[\w-]+", said.split("Available subcommands:")[-1])
    kind, _, _ = unknown.partition(":")
    same = [word for word in known if word.startswith(f"{kind}:")]
    close = get_close_matches(unknown, same or known, n=2, cutoff=0.75)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    if same:
        return f"Unknown part {unknown}.{hint} Expected one of {', '.join(same)}."
    kinds = list(dict.fromkeys(word.partition(":")[0] for word in known))
    expected = f" Expected a part, as KIND:NAME with KIND one of {', '.join(kinds)}." if kinds else ""
    return f"Unknown word {unknown}.{hint}{expected}"


def _options_of(command: Any, words: list[str]) -> list[str]:  # noqa: ANN401
    """The options that a verb has beside these parts, read off its help."""
    parts = [word for word in words if re.fullmatch(r"[\w.-]+:[\w-]+", word)]
    found = io.StringIO()
    with contextlib.redirect_stdout(found), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        tyro.cli(command, args=[*parts, "--help"], config=(tyro.conf.CascadeSubcommandArgs,))
    return list(dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][\w.-]*", found.getvalue())))
