"""Tab completion: what a shell offers after each verb, read off the verb's help."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from itertools import zip_longest
from shlex import quote
from typing import Annotated, Any, Union

import tyro

from pyro_vae.cli.help import CONFIG, choices_in, help_of, options_in, parts_in

__all__ = ["bash", "zsh"]

_FUNCTION = r"""_pyro_vae() {
    local line=${COMP_LINE:0:COMP_POINT} known="" word
    local -a words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    local number=${#words[@]} verb=${words[1]} current=${words[number-1]}
    if (( number == 2 )); then
        known=@VERBS@
    else
        case "$verb" in
@WORDS@
        esac
        for word in "${words[@]:2:number-3}"; do
            case "$verb $word" in
@PARTS@
            esac
        done
        case "$verb ${words[number-2]}" in
@CHOICES@
        esac
    fi
    COMPREPLY=($(compgen -W "$known" -- "$current"))
    # To bash a colon begins a new word, and what it replaces is what follows the last one.
    if [[ $current == *:* && $COMP_WORDBREAKS == *:* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${current%"${current##*:}"}"}")
    fi
}
complete -o default -F _pyro_vae pyro-vae
"""


def bash(verbs: Mapping[str, type]) -> str:
    """The script to source in bash: verbs, options, parts, options of the parts that are named, and choices.

    tyro's own loses what follows the colon of a part after a verb. Where nothing is known, bash offers files.

    Args:
        verbs: the commands by name.
    """
    words: dict[str, list[str]] = {}
    further: dict[str, list[str]] = {}
    choices: dict[str, list[str]] = {}
    for verb, command in verbs.items():
        text = help_of(command, [])
        kinds = parts_in(text)
        plain = options_in(text)
        values = choices_in(text)
        words[verb] = [*values.pop("", []), *plain, *(part for parts in kinds.values() for part in parts)]
        # One of each kind at a time: fewer helps to make than one for each part.
        for row in zip_longest(*kinds.values()):
            named = [part for part in row if part is not None]
            text = help_of(command, named)
            for part in named:
                owned = [option for option in options_in(text) if option.startswith(f"--{part.partition(':')[0]}.")]
                further[f"{verb} {part}"] = [option for option in owned if option not in plain]
            values |= choices_in(text)
        choices |= {f"{verb} {option}": known for option, known in values.items()}
    script = _FUNCTION.replace("@VERBS@", quote(" ".join(verbs)))
    further = {part: ["", *options] for part, options in further.items() if options}
    for name, assignment, cases in (("WORDS", "=", words), ("PARTS", "+=", further), ("CHOICES", "=", choices)):
        lines = [f"{quote(pattern)}) known{assignment}{quote(' '.join(known))} ;;" for pattern, known in cases.items()]
        script = script.replace(f"@{name}@", "\n".join(f"            {line}" for line in lines))
    return script


def zsh(verbs: Mapping[str, type]) -> str:
    """The script to source in zsh, as tyro writes it.

    Args:
        verbs: the commands by name.
    """
    named = [Annotated[verb, tyro.conf.subcommand(name=name)] for name, verb in verbs.items()]
    command: Any = Union[tuple(named)]  # noqa: UP007 (the verbs are known at run time)
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        tyro.cli(command, prog="pyro-vae", args=["--tyro-print-completion", "zsh"], config=CONFIG)
    return script.getvalue()
