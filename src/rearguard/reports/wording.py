"""The words of a report: names of limits and figures, counted words (R94), text from evidence as one harmless token."""

from __future__ import annotations

import unicodedata

from rearguard.model.breach import Trigger
from rearguard.model.report import Evidence

THRESHOLDS = {
    Trigger.COMPLIANCE: "\u22122 pts",
    Trigger.LATENCY: "> target + 5 ms",
    Trigger.ERRORS: "> 1 %",
}
"""As the specification words them (R60)."""

OBSERVED_NAMES = {
    Trigger.COMPLIANCE: "compliance_score",
    Trigger.LATENCY: "over_latency_ratio",
    Trigger.ERRORS: "error_ratio",
}
"""What `observed` and `limit` of an incident count, per trigger."""

_ACTIVE = "\\`*_[]<>|&~!#"
"""Characters that Markdown may act upon inside a line."""


def count_words(text: str) -> int:
    """Whitespace-separated tokens with at least one letter or digit, backticks removed (R94)."""
    return sum(any(c.isalnum() for c in token) for token in text.replace("`", "").split())


def token(text: str) -> str:
    """Text from evidence as one word: NFC, no white space or control characters, Markdown's own characters escaped."""
    plain = "".join(c if c.isprintable() and not c.isspace() else " " for c in unicodedata.normalize("NFC", text))
    word = "_".join(plain.split()) or "unnamed"
    return "".join(_escape(word, i) for i in range(len(word)))


def _escape(word: str, i: int) -> str:
    c = word[i]
    # An underscore between letters or digits is not emphasis (CommonMark 6.2), so ids stay readable.
    inside = c == "_" and 0 < i < len(word) - 1 and word[i - 1].isalnum() and word[i + 1].isalnum()
    return f"\\{c}" if c in _ACTIVE and not inside else c


def reference(evidence: Evidence) -> str:
    """A reference and its run, as every table cell shows them: `` `rollback_log.json#7` run_x `` (R67)."""
    return f"`{evidence.ref}` {evidence.run_id or chr(0x2014)}"
