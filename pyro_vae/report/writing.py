"""From a folder to the page of what it holds."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote

from inference.checkpoint import atomic_write
from pyro_vae.folders import CONFIG, listed, no_folder, runs_in
from pyro_vae.report.run import run_page
from pyro_vae.report.study import study_page
from pyro_vae.run import Run, open_run
from pyro_vae.study import STUDY, StudyResults

__all__ = ["open_folder", "write_report"]


def open_folder(folder: str | Path) -> Run | StudyResults:
    """What a folder holds: a run, or a study.

    Args:
        folder: what `pyro-vae fit`, `em` or `study` wrote.

    Raises:
        FileNotFoundError: it holds neither, or a run without its checkpoint; the message has the command that makes it.
        ValueError: a file of it is damaged, or was written by a verb that makes no run.
    """
    folder = Path(folder)
    if (folder / STUDY).is_file():
        return StudyResults.read(folder)
    runs = runs_in(folder)
    if not (folder / CONFIG).is_file():
        if not folder.exists():
            raise FileNotFoundError(f"{folder}: expected a run or a study; {no_folder(folder)}")
        if runs:
            raise FileNotFoundError(f"{folder}: it holds {listed(runs)}: pyro-vae report {quote(str(runs[0]))}")
        raise FileNotFoundError(
            f"{folder}: expected a run, with {CONFIG}, or a study, with {STUDY}; it holds neither. Make one: pyro-vae "
            f"fit --out {quote(str(folder))}, or pyro-vae study FILE --out {quote(str(folder))}"
        )
    try:
        config = json.loads((folder / CONFIG).read_text())
    except ValueError:
        config = None
    if not isinstance(config, dict):
        return open_run(folder)  # which says what is wrong with it
    verb = config.get("command", "fit")
    if verb != "fit":
        reports = ", ".join(f"pyro-vae report {quote(str(run))}" for run in runs)
        hint = f"The runs in it have: {reports}" if runs else "Look at its pictures and its JSON."
        raise ValueError(f"{folder}: expected a run or a study; pyro-vae {verb} wrote it, and it has no report. {hint}")
    return open_run(folder)


def write_report(source: Run | StudyResults | str | Path, path: str | Path | None = None) -> Path:
    """Write the page of a run or of a study.

    Args:
        source: the run, the study, or the folder of either. What a run's folder lacks is named on the page, with the
            command that makes it.
        path: the file; by default `report.html` in the folder.

    Returns:
        The file.

    Raises:
        FileNotFoundError: the folder holds neither, or a run without its checkpoint.
        ValueError: the file cannot be written there.
    """
    opened = open_folder(source) if isinstance(source, str | Path) else source
    path = opened.folder / "report.html" if path is None else Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"--out {path}: expected a file in an existing folder; there is no {path.parent}. Make it.")
    if path.is_dir():
        raise ValueError(f"--out {path}: expected a file; it is a folder. Add a name, such as {path / 'report.html'}.")
    if path.suffix not in (".html", ".htm"):
        # A report replaces an older one; whatever else there is must not be lost to a slip.
        raise ValueError(f"--out {path}: expected a file that ends in .html.")
    text = study_page(opened) if isinstance(opened, StudyResults) else run_page(opened)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
