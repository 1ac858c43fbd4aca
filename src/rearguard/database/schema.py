"""The tables, and how an older state directory becomes one of today's.

Version 1 is written whole; each later version is a list of statements that only add, so that the release before it can
still read and write beside a newer one while both are in use.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from rearguard.errors import ConflictError, IntegrityError

_FIRST = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE evidence (
        id INTEGER PRIMARY KEY, ts TEXT NOT NULL, monotonic_ns TEXT NOT NULL, boot_id TEXT NOT NULL,
        run_id TEXT, service TEXT, env TEXT, kind TEXT NOT NULL, body TEXT NOT NULL, prev TEXT NOT NULL, hash TEXT NOT NULL)""",
    "CREATE INDEX evidence_run ON evidence (run_id)",
    """CREATE TABLE places (
        service TEXT NOT NULL, env TEXT NOT NULL, epoch INTEGER NOT NULL DEFAULT 0, open_run_id TEXT,
        armed INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (service, env))""",
    """CREATE TABLE checkpoints (
        digest TEXT PRIMARY KEY, service TEXT NOT NULL, version TEXT NOT NULL, format TEXT NOT NULL, manifest TEXT NOT NULL,
        golden_sha256 TEXT NOT NULL, added_at TEXT NOT NULL, verified_at TEXT, load_ms INTEGER, failure TEXT NOT NULL DEFAULT '',
        receipt TEXT NOT NULL DEFAULT '', verified_record INTEGER, UNIQUE (service, version))""",
    """CREATE TABLE deployments (
        id INTEGER PRIMARY KEY, service TEXT NOT NULL, env TEXT NOT NULL, digest TEXT NOT NULL, version TEXT NOT NULL,
        source TEXT NOT NULL, state TEXT NOT NULL, started_at TEXT NOT NULL, baseline TEXT)""",
    "CREATE INDEX deployments_place ON deployments (service, env, id)",
    """CREATE TABLE incidents (
        n INTEGER PRIMARY KEY, service TEXT NOT NULL, env TEXT NOT NULL, trigger_name TEXT NOT NULL, digest TEXT NOT NULL,
        state TEXT NOT NULL, t0 TEXT NOT NULL, t1 TEXT NOT NULL, run_id TEXT, acked_by TEXT NOT NULL DEFAULT '',
        false_positive INTEGER NOT NULL DEFAULT 0, attached TEXT NOT NULL DEFAULT '[]')""",
    "CREATE UNIQUE INDEX incidents_one_open ON incidents (service, env) WHERE state = 'open'",
    """CREATE TABLE runs (
        id TEXT PRIMARY KEY, service TEXT NOT NULL, env TEXT NOT NULL, incident_id TEXT, from_digest TEXT, to_digest TEXT,
        wanted_digest TEXT, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', requested_by TEXT NOT NULL,
        requested_at TEXT NOT NULL, cancel_requested INTEGER NOT NULL DEFAULT 0)""",
    "CREATE INDEX runs_state ON runs (state)",
    """CREATE TABLE quarantine (
        service TEXT NOT NULL, env TEXT NOT NULL, digest TEXT NOT NULL, run_id TEXT NOT NULL, since TEXT NOT NULL,
        PRIMARY KEY (service, env, digest))""",
    """CREATE TABLE outbox (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, title TEXT NOT NULL, fields TEXT NOT NULL, delivered TEXT NOT NULL
        DEFAULT '[]', state TEXT NOT NULL DEFAULT 'open', attempts INTEGER NOT NULL DEFAULT 0, last_error TEXT NOT NULL DEFAULT '')""",
)

_MIGRATIONS: dict[int, tuple[str, ...]] = {
    2: (
        "ALTER TABLE runs ADD COLUMN ended_at TEXT",
        "ALTER TABLE runs ADD COLUMN approval TEXT NOT NULL DEFAULT ''",  # '', 'needed', 'given'
        "ALTER TABLE runs ADD COLUMN plan TEXT NOT NULL DEFAULT ''",  # canonical JSON of what an approval is bound to
        "ALTER TABLE runs ADD COLUMN approval_expires_at TEXT",
        """CREATE TABLE officer (
            id INTEGER PRIMARY KEY CHECK (id = 1), generation INTEGER NOT NULL, pid INTEGER NOT NULL,
            boot_id TEXT NOT NULL, since TEXT NOT NULL,
            settings_sha256 TEXT NOT NULL DEFAULT '', playbook_sha256 TEXT NOT NULL DEFAULT '')""",
        """CREATE TABLE attempts (
            run_id TEXT NOT NULL, step TEXT NOT NULL, tries INTEGER NOT NULL, first_at TEXT NOT NULL, last_at TEXT NOT NULL,
            last_error TEXT NOT NULL DEFAULT '', PRIMARY KEY (run_id, step))""",
        # '*' in service and env: everywhere.
        """CREATE TABLE pauses (
            service TEXT NOT NULL, env TEXT NOT NULL, paused_by TEXT NOT NULL, reason TEXT NOT NULL, since TEXT NOT NULL,
            PRIMARY KEY (service, env))""",
        """CREATE TABLE keys (
            name TEXT PRIMARY KEY, public_key TEXT NOT NULL, enrolled_by TEXT NOT NULL, enrolled_at TEXT NOT NULL,
            revoked_at TEXT)""",
        """CREATE TABLE approvals (
            run_id TEXT PRIMARY KEY, key_name TEXT NOT NULL, envelope TEXT NOT NULL, given_at TEXT NOT NULL)""",
        "ALTER TABLE outbox ADD COLUMN cause TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE outbox ADD COLUMN severity TEXT NOT NULL DEFAULT 'info'",
        "ALTER TABLE outbox ADD COLUMN action TEXT NOT NULL DEFAULT 'open'",
        "ALTER TABLE outbox ADD COLUMN posted_at TEXT",
        "ALTER TABLE outbox ADD COLUMN acked_by TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE outbox ADD COLUMN acked_at TEXT",
        "UPDATE outbox SET cause = key WHERE cause = ''",
        # Not of an empty cause: the release before this one, writing beside it, knows none.
        "CREATE UNIQUE INDEX outbox_one_open ON outbox (cause) WHERE state = 'open' AND cause <> ''",
        """CREATE TABLE channels (
            name TEXT PRIMARY KEY, failures INTEGER NOT NULL DEFAULT 0, retry_at TEXT, last_error TEXT NOT NULL DEFAULT '')""",
        """CREATE TABLE counts (
            service TEXT NOT NULL, env TEXT NOT NULL, digest TEXT NOT NULL, wall_s INTEGER NOT NULL, mono_s INTEGER NOT NULL,
            boot_id TEXT NOT NULL, requests INTEGER NOT NULL, failures INTEGER NOT NULL, timed INTEGER NOT NULL,
            over_latency INTEGER NOT NULL, first_failure_ns INTEGER, first_over_latency_ns INTEGER, scores INTEGER NOT NULL,
            score_sum TEXT NOT NULL, first_low_score_ns INTEGER, PRIMARY KEY (service, env, digest, wall_s)) WITHOUT ROWID""",
        """CREATE TABLE watches (
            service TEXT NOT NULL, env TEXT NOT NULL, body TEXT NOT NULL, saved_at TEXT NOT NULL,
            PRIMARY KEY (service, env))""",
    ),
    3: (
        # Digest of the OCI image manifest in the layout; '' for what an older release registered.
        "ALTER TABLE checkpoints ADD COLUMN oci_manifest TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE checkpoints ADD COLUMN oci_manifest_bytes INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE checkpoints ADD COLUMN peak_rss_bytes INTEGER",
        "ALTER TABLE checkpoints ADD COLUMN state_sha256 TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE checkpoints ADD COLUMN reproducible TEXT NOT NULL DEFAULT ''",  # '', 'bitwise', 'tolerance'
        # A version label that retention took away stays taken.
        """CREATE TABLE retired (
            service TEXT NOT NULL, version TEXT NOT NULL, digest TEXT NOT NULL, retired_at TEXT NOT NULL,
            blobs TEXT NOT NULL DEFAULT '[]', PRIMARY KEY (service, version))""",  # blobs: those not swept yet
        "CREATE INDEX retired_digest ON retired (digest)",
        # Folders that hold a second copy, and how the last look at each ended.
        """CREATE TABLE mirrors (
            folder TEXT PRIMARY KEY, domain TEXT NOT NULL DEFAULT '', marked_at TEXT, in_step_at TEXT,
            failure TEXT NOT NULL DEFAULT '', message TEXT NOT NULL DEFAULT '')""",
        """CREATE TABLE copies (
            digest TEXT NOT NULL, folder TEXT NOT NULL, domain TEXT NOT NULL, verified_at TEXT, failure TEXT NOT NULL DEFAULT '',
            PRIMARY KEY (digest, folder))""",
        # state: 'standing', 'lost', 'none' (there is nothing to hold warm), 'unsupported' (the target cannot)
        """CREATE TABLE standbys (
            service TEXT NOT NULL, env TEXT NOT NULL, digest TEXT, version TEXT NOT NULL DEFAULT '', state TEXT NOT NULL,
            reason TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '', since TEXT NOT NULL,
            PRIMARY KEY (service, env))""",
        # So that the best target is found in the same time among ten checkpoints and among ten thousand.
        "CREATE INDEX checkpoints_of_service ON checkpoints (service)",
        "CREATE INDEX deployments_of_digest ON deployments (service, env, digest, id)",
    ),
}

SCHEMA_VERSION = max(_MIGRATIONS)


def migrate(raw: sqlite3.Connection, path: Path) -> None:
    """Bring the database to this release's schema, all of it or nothing. Raises `IntegrityError` `schema_newer`."""
    raw.isolation_level = None
    raw.execute("BEGIN IMMEDIATE")
    try:
        known = raw.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'meta'").fetchone()
        if known is None:
            for statement in _FIRST:
                raw.execute(statement)
            raw.execute("INSERT INTO meta VALUES ('schema_version', '1')")
        written = raw.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()[0]
        _refuse_newer(int(written), path)
        for version in range(int(written) + 1, SCHEMA_VERSION + 1):
            for statement in _MIGRATIONS[version]:
                raw.execute(statement)
        if int(written) != SCHEMA_VERSION:
            raw.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (str(SCHEMA_VERSION),))
        raw.execute("COMMIT")
    except BaseException:
        raw.execute("ROLLBACK")
        raise


def refuse_other(version: int, path: Path) -> None:
    """A reader brings nothing up to date. Raises `IntegrityError` `schema_newer`, `ConflictError` `schema_older`."""
    _refuse_newer(version, path)
    if version < SCHEMA_VERSION:
        raise ConflictError(
            "schema_older",
            f"{path} has schema {version}, of an older release; this one reads {SCHEMA_VERSION}",
            "start `rearguard run` once: it brings the state up to date",
        )


def _refuse_newer(version: int, path: Path) -> None:
    if version > SCHEMA_VERSION:
        raise IntegrityError(
            "schema_newer",
            f"{path} has schema {version}; this release knows up to {SCHEMA_VERSION}",
            "run the release that wrote it, or a newer one",
        )
