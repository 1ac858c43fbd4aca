"""The reference of the command line and of the evidence names everything that there is."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from rearguard.evidence.projection import FILES
from rearguard.interfaces.cli.main import cli
from rearguard.model.time import NS_PER_S, Instant
from rearguard.rules.chain import GENESIS, record_hash

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "rearguard"
REFERENCE = ROOT / "docs" / "reference"


def page(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


def commands(group: click.Group = cli, path: str = "rearguard") -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from commands(found, f"{path} {name}")
        else:
            yield f"{path} {name}", found


COMMANDS = dict(commands())


@pytest.mark.parametrize("words", COMMANDS)
def test_the_reference_names_the_command(words: str) -> None:
    assert re.search(rf"`{words}[` ]", page("cli.md"))


@pytest.mark.parametrize("words", COMMANDS)
def test_the_reference_names_every_option(words: str) -> None:
    options = {o for p in COMMANDS[words].params if isinstance(p, click.Option) for o in p.opts if o.startswith("--")}
    assert {option for option in options if not re.search(rf"`(?:[^`\n]* )?{option}[` ]", page("cli.md"))} == set()


def kinds_written() -> set[str]:
    """Kinds of record in the source: literal `kind=`, and those handed to the small writers."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            named = [k.value for k in node.keywords if k.arg == "kind"]
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            passed = list(node.args) if name in ("_note", "_append") else []
            found |= {
                value.value
                for value in (*named, *passed)
                if isinstance(value, ast.Constant) and isinstance(value.value, str)
            }
    return found


def test_the_reference_names_every_kind_of_record() -> None:
    written = kinds_written() | {"automation_armed", "automation_disarmed", "deployment_active", "deployment_failed"}
    assert len(written) > 25
    assert {kind for kind in written if f"`{kind}`" not in page("evidence.md")} == set()


@pytest.mark.parametrize("name", FILES)
def test_the_reference_names_every_named_file(name: str) -> None:
    assert f"`{name}`" in page("evidence.md")


def example_log(path: Path, length: int) -> None:
    """A log as the page describes it."""
    entries: list[dict[str, object]] = []
    for number in range(1, length + 1):
        now = Instant(wall_ns=1_800_000_000 * NS_PER_S, mono_ns=number, boot_id="boot")
        fields: dict[str, object] = {"id": number, "ts": now.rfc3339(), "kind": "test", "body": {"note": "naïve €"}}
        fields["prev"] = entries[-1]["hash"] if entries else GENESIS
        entries.append({**fields, "hash": record_hash(fields)})
    head = entries[-1]["hash"] if entries else GENESIS
    document = {"format": "rearguard/rollback-log/1", "size": length, "head": head, "entries": entries}
    path.write_text(json.dumps(document), encoding="utf-8")


def strangers_verdict(log: Path, tmp_path: Path) -> tuple[int, str]:
    """Run the page's own program, isolated, so that nothing but the standard library is there."""
    (program,) = re.findall(r"```python\n(.*?)```", page("evidence.md"), re.DOTALL)
    script = tmp_path / "verify.py"
    script.write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(script), str(log)], capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode, (done.stdout + done.stderr).strip()


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_stranger_can_verify_a_log_with_the_program_on_the_page(tmp_path: Path, length: int) -> None:
    example_log(tmp_path / "log.json", length)
    code, said = strangers_verdict(tmp_path / "log.json", tmp_path)
    assert (code, said.partition(",")[0]) == (0, f"{length} records verify")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"id": 2, "ts": "2027', '"id": 2, "ts": "2028', "record 2 is not what was recorded"),
        ('"size": 3', '"size": 4', "size or head is wrong"),
    ],
)
def test_a_stranger_sees_a_change_with_the_program_on_the_page(tmp_path: Path, old: str, new: str, said: str) -> None:
    log = tmp_path / "log.json"
    example_log(log, 3)
    text = log.read_text(encoding="utf-8")
    assert text.count(old) == 1
    log.write_text(text.replace(old, new), encoding="utf-8")
    assert strangers_verdict(log, tmp_path) == (1, said)


def test_the_example_of_the_registry_export_is_yaml_with_the_documented_keys() -> None:
    text = page("checkpoint-registry.md")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    document = yaml.safe_load(example)
    assert {key for row in document["checkpoints"] for key in row if f"`{key}`" not in text} == set()


def test_the_example_message_has_the_documented_fields() -> None:
    text = page("messages.md")
    (example,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert {name for name in json.loads(example)["fields"] if f"`{name}`" not in text} == set()


def test_the_source_cites_only_pages_that_exist() -> None:
    cited = {
        name
        for path in SOURCE.rglob("*.py")
        for name in re.findall(r"docs/reference/([\w-]+\.md)", path.read_text(encoding="utf-8"))
    }
    assert {name for name in cited if not (REFERENCE / name).exists()} == set()
