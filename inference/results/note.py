"""What a reader of numbers must know, as a record: how much it matters, and the sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Note"]


@dataclass(frozen=True, kw_only=True)
class Note:
    """A sentence for the reader of a table of numbers. `str` gives it as it is printed under the table.

    Attributes:
        severity: "remark": how to read the numbers; "caution": some are less certain than they look; "warning": some
            are not to be trusted.
        text: the sentence; where there is a share, `{}` stands for it.
        share: how many datapoints it speaks of, and of how many; or None.

    Example:
        >>> note = Note(severity="warning", text="Pareto k > 0.7 {}: do not trust log p(x) there.", share=(12, 1000))
        >>> print(note)
        Warning: Pareto k > 0.7 at 12 of 1000: do not trust log p(x) there.
        >>> print(note.in_full)
        Pareto k > 0.7 for 12 of 1000 datapoints: do not trust log p(x) there.
    """

    severity: Literal["remark", "caution", "warning"] = "remark"
    text: str
    share: tuple[int, int] | None = None

    @property
    def is_grave(self) -> bool:
        """Whether it says where not to rely on a number, more than how to read it."""
        return self.severity != "remark"

    @property
    def in_full(self) -> str:
        """The sentence for a page that marks what is grave by itself."""
        text = self._filled("for {} of {} datapoints")
        return text[:1].upper() + text[1:]

    def __str__(self) -> str:
        """A line under a table."""
        text = self._filled("at {} of {}")
        return f"Warning: {text}" if self.severity == "warning" else text

    def _filled(self, share: str) -> str:
        # Not by `format`: names of families in the sentence may hold braces of their own.
        return self.text if self.share is None else self.text.replace("{}", share.format(*self.share), 1)
