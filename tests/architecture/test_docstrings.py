"""Every public name says what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "rearguard"


def undocumented(path: Path) -> Iterator[str]:
    """Names of public modules, classes, functions and methods without a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    label = str(path.relative_to(SOURCE))
    if ast.get_docstring(tree) is None and tree.body:
        yield label
    pending: list[tuple[str, ast.AST]] = [(label, tree)]
    while pending:
        prefix, parent = pending.pop()
        for node in ast.iter_child_nodes(parent):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if node.name.startswith("_"):
                continue
            name = f"{prefix}:{node.name}"
            if ast.get_docstring(node) is None:
                yield name
            if isinstance(node, ast.ClassDef):
                pending.append((name, node))


def test_every_public_name_has_a_docstring() -> None:
    missing = sorted(name for path in SOURCE.rglob("*.py") for name in undocumented(path))
    assert missing == []
