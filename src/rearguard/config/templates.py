"""The two commented files that `rearguard init` writes.

Owns their words only: they are read back by `settings` and `playbook` like any other file. A first file explains
itself, and says that automation starts in `observe` mode.
"""

from __future__ import annotations

import re
from decimal import Decimal

from rearguard.config.document import Scalar, reads_as_text
from rearguard.config.reader import MAX_TEXT_CHARACTERS, plain_number
from rearguard.config.refusal import shown
from rearguard.config.settings import NAME
from rearguard.errors import UsageError

_MARK = re.compile(r"@([A-Z_]+)@")

_SETTINGS = """\
# rearguard.yaml: what Rearguard watches, and when it rolls back.
# Reference: docs/reference/rearguard-yaml.md.
#
# Automation starts in `observe` mode: Rearguard judges and records, and touches nothing. It rolls back by itself only
# after you arm it:
#
#     rearguard arm @SERVICE_WORD@ --env @ENV_WORD@
#
# Durations carry their unit (500 ms, 60 s, 10 min, 12 h); plain quantities carry it in the name of their key.
# An unknown key is an error, never ignored.
version: 1

# The declared steps of a rollback, relative to this file.
playbook: rollback_playbook.yaml

# Recovery objectives: service restored within `rto`, and at most `rpo` of data lost.
objectives:
  rto: 10 min
  rpo: 5 min

# When a checkpoint is proven well enough to roll back to.
checkpoints:
  max_age: 24 h            # since its last verification
  reverify_every: 12 h     # Rearguard verifies each candidate by itself at least this often
  max_load: 30 s           # a cold load must take less
  receipt_above_mib: 256   # larger checkpoints are not hashed in full while a rollback waits
  golden:                  # a repeated golden prediction must agree: |a - b| <= atol + rtol * |b|
    rtol: 0.00001
    atol: 0.000001
  trusted_types: []        # extra type names that a scikit-learn checkpoint may contain
  unsafe_formats: []       # formats that run code when loaded, allowed in the sandbox: [sklearn-joblib]
  scrub_mib_s: 200         # pace of the background verification
  # mirror: /mnt/other-disk/rearguard    # a second copy of the store, on another disk, kept in step
  retention:               # what `checkpoint gc` keeps beside what is needed
    keep_last: 10
    keep: 720 h

# Where messages to people go. The playbook names these channels as contacts.
channels:
  oncall:
    kind: file
    path: rearguard-messages.jsonl
  # A webhook instead. Keep its secret address in the environment of the officer; other commands do not need it:
  # oncall:
  #   kind: webhook
  #   url: ${ONCALL_WEBHOOK_URL}
  #   secret: ${ONCALL_WEBHOOK_SECRET}   # signs each message (Standard Webhooks): whsec_ and base64

# A sign of life to somebody who alarms when none arrives, so that the silence of this host is noticed.
# heartbeat:
#   kind: webhook
#   url: ${HEARTBEAT_URL}
#   secret: ${HEARTBEAT_SECRET}          # if its receiver checks signatures
#   every: 60 s

services:
  @SERVICE@:
    environments:
      @ENV@:
        # true: there is no mutable state beside the model, so no data can be lost (RPO 0.0).
        # Set it to false when a rollback could lose data.
        stateless: true

        # What serves the checkpoint and can be told to serve another.
        target:
          adapter: oip
          url: @URL@
          model: @MODEL@

        # Where observations come from.
        telemetry:
          adapter: jsonl
          requests: @REQUESTS@
@SCORES@
        # When to roll back. A trigger is switched off with the word off, for example `errors: off`.
        triggers:
          latency:
            target_p95_ms: @TARGET@
            margin_ms: 5           # breached when p95 > target + margin
          errors:
            limit_percent: 1       # breached when failures / requests is above it
@COMPLIANCE@
        # How long a breach must last, and on how many samples it must stand.
        rule:
          profile: literal
          window: 60 s
          step: 60 s
          for_windows: 2
          min_samples: 100

        # Silence longer than this is no proof of health: the judgement becomes inconclusive.
        no_data_after: 120 s

        # When a rollback counts as complete: all limits and golden predictions hold for one window.
        recovery:
          window: 60 s
          min_samples: 100         # with fewer requests, golden probes decide
          probe_every: 500 ms
          min_probes: 10
          deadline: 10 min

        # What keeps automation from doing harm. A rollback by hand is held back by none of it.
        brakes:
          cool_down: 30 min        # after an automatic rollback, before the next one
          max_rollbacks: 3         # automatic rollbacks ...
          per: 24 h                # ... in any period of this length
          # Times in which nobody wants changes (UTC). `holds`: both, deployments or rollbacks.
          # freeze:
          #   - {weekly: "fri 16:00", for: 64 h, reason: weekend, holds: deployments}
          #   - {from: 2026-12-24T00:00:00Z, to: 2026-12-27T00:00:00Z, reason: year end}

        # true: a second person must approve before a rollback touches anything.
        approval:
          required: false
          expires: 15 min
"""

_COMPLIANCE_ON = """\
          compliance:
            drop_points: 2         # breached when baseline - current reaches it
            baseline: measured     # median before the rollout, frozen at its start; or a number such as 95.0
            period: 1 h            # how long before the rollout the median is taken
"""

_COMPLIANCE_OFF = """\
          compliance: off          # no log of scores was given
"""

_PLAYBOOK = """\
# rollback_playbook.yaml: the steps of a rollback, their order and who answers for each.
# Reference: docs/reference/rollback-playbook-yaml.md. The sha256 of this file stands in every rollback run.
#
# Declaring a rollback does not start one. Automation is in `observe` mode (it judges and records, and touches nothing)
# until `rearguard arm SERVICE --env ENV`.
version: 1

# Which channel of rearguard.yaml reaches whom.
contacts:
  ops_commander: oncall
  infra_guardian: oncall
  compliance_monitor: oncall

# Each step stands once, in this order: an activated checkpoint was selected and verified before.
# `owner` is whoever answers for the step; `timeout` is when the step has failed.
steps:
  - name: lock         # one rollback at a time for a service in an environment
    owner: ops_commander
    timeout: 10 s
  - name: freeze       # no other deployment goes on
    owner: ops_commander
    timeout: 10 s
  - name: select       # the newest proven checkpoint that is not to blame
    owner: infra_guardian
    timeout: 10 s
  - name: verify       # its bytes are what was recorded
    owner: infra_guardian
    timeout: 2 min
  - name: activate     # the target serves it
    owner: infra_guardian
    timeout: 2 min
  - name: probe        # golden predictions answer as they did when it was verified
    owner: infra_guardian
    timeout: 1 min
  - name: window       # every limit holds for one whole recovery window
    owner: compliance_monitor
    timeout: 10 min
  - name: record       # the measured RTO and RPO are written as evidence
    owner: ops_commander
    timeout: 30 s
  - name: close        # the incident is closed, the lock is released, people are told
    owner: ops_commander
    timeout: 30 s
"""


def settings_template(
    *,
    service: str,
    env: str,
    url: str,
    model: str,
    requests_log: str,
    scores_log: str | None,
    target_p95_ms: Decimal,
) -> str:
    """A commented `rearguard.yaml` for one service in one environment, which reads back without error.

    Without `scores_log` the compliance trigger is off. UsageError when a value cannot stand in the file.
    """
    for what, name in (("service", service), ("environment", env)):
        if NAME.fullmatch(name) is None:
            message = f"{shown(name)} is not a name of a {what}"
            raise UsageError("name_not_accepted", message, f"a name matches {NAME.pattern}")
    target = f"{target_p95_ms:f}"
    if plain_number(Scalar(target, 1, False)) is None or target_p95_ms <= 0:
        message = f"{shown(target)} is not a p95 target in milliseconds"
        raise UsageError("target_not_accepted", message, "give a number of milliseconds > 0, for example 120")
    scores = "" if scores_log is None else f"          scores: {_quoted('scores log', scores_log)}\n"
    values = {
        "SERVICE_WORD": service,
        "ENV_WORD": env,
        "SERVICE": _key(service),
        "ENV": _key(env),
        "URL": _quoted("url", url),
        "MODEL": _quoted("model", model),
        "REQUESTS": _quoted("requests log", requests_log),
        "SCORES": scores,
        "TARGET": target,
        "COMPLIANCE": _COMPLIANCE_OFF if scores_log is None else _COMPLIANCE_ON,
    }
    # In one pass, so that a value that looks like a mark stays as it is.
    return _MARK.sub(lambda mark: values[mark[1]], _SETTINGS)


def playbook_template() -> str:
    """A commented `rollback_playbook.yaml` with every step, which reads back without error."""
    return _PLAYBOOK


def _key(name: str) -> str:
    """`name` as a key: in quotes where it would not read as text, such as `no` or `1`."""
    return name if reads_as_text(name) else f'"{name}"'


def _quoted(what: str, text: str) -> str:
    """`text` as a double-quoted scalar."""
    if not text or not text.isprintable() or len(text) > MAX_TEXT_CHARACTERS or "${" in text:
        hint = f"give one printable line of at most {MAX_TEXT_CHARACTERS} characters without ${{"
        raise UsageError("text_not_accepted", f"{shown(text)} cannot stand in the file as {what}", hint)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
