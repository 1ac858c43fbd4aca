"""Every relative link of the documentation leads to a file that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(
    r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|^\[[^\]]+\]:\s+(\S+)|(?:src|href)=\"([^\"]+)\"", re.M
)
CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1\s*$|`[^`\n]+`", re.M | re.S)


def targets(text: str) -> list[str]:
    """Relative targets without their anchors; what stands in code is an example."""
    found = (next(filter(None, match.groups())) for match in LINK.finditer(CODE.sub("", text)))
    return [t.partition("#")[0] for t in found if not re.match(r"[a-z][a-z+.-]*:|#|//", t)]


def test_the_reader_of_links_finds_each_form_of_a_link() -> None:
    text = (
        '[a](one.md) ![b](two.svg "title") [c](three.md#part) <img src="four.png">\n[d]: five.md\n'
        "[e](https://example.org) [f](#here) `[g](code.md)`\n```\n[h](block.md)\n```\n[i](mailto:ops@example.org)\n"
    )
    assert targets(text) == ["one.md", "two.svg", "three.md", "four.png", "five.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    missing = [t for t in targets(page.read_text(encoding="utf-8")) if not (page.parent / t).exists()]
    assert missing == []
