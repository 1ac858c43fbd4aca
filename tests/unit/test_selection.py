"""Which checkpoint is the target of a rollback: one table (R10, R15, R28, R29)."""

from __future__ import annotations

import pytest

from rearguard.model.checkpoint import Checkpoint, CheckpointPolicy
from rearguard.model.service import Digest
from rearguard.model.time import Instant
from rearguard.rules.selection import Selection, select

DAY_S = 86_400
NOW = Instant(wall_ns=10 * DAY_S * 10**9, mono_ns=5 * DAY_S * 10**9, boot_id="boot")


def digest(version: str) -> Digest:
    return Digest(f"sha256:{version}")


def checkpoint(version: str, *, age_ns: int | None = 0, failure: str = "", boot: str = "boot") -> Checkpoint:
    """Verified `age_ns` before NOW; None: never."""
    proven = None
    if age_ns is not None:
        proven = Instant(wall_ns=NOW.wall_ns - age_ns, mono_ns=NOW.mono_ns - age_ns, boot_id=boot)
    return Checkpoint(
        digest=digest(version),
        service="fraud",
        version=version,
        format="onnx",
        files=(),
        golden_sha256="",
        added_at=NOW,
        verified_at=proven,
        load_ms=None,
        failure=failure,
    )


def choose(
    *checkpoints: Checkpoint,
    active: str | None = None,
    quarantined: tuple[str, ...] = (),
    served: tuple[str, ...] = (),
    wanted: str | None = None,
) -> Selection:
    return select(
        checkpoints=checkpoints,
        active=digest(active) if active else None,
        quarantined=frozenset(digest(v) for v in quarantined),
        served=[digest(v) for v in served],
        wanted=digest(wanted) if wanted else None,
        policy=CheckpointPolicy(),
        now=NOW,
    )


def ladder(selection: Selection) -> list[str]:
    return [c.checkpoint.version for c in selection.candidates]


V1, V2, V3 = checkpoint("v1"), checkpoint("v2"), checkpoint("v3")


@pytest.mark.parametrize(
    ("served", "active", "expected"),
    [
        (("v1", "v2", "v3"), "v3", ["v2", "v1"]),  # what served most recently comes first
        (("v1", "v2", "v1", "v3"), "v3", ["v1", "v2"]),  # by its last time, not its first
        (("v3",), "v3", []),  # v1 and v2 never served here: going to them would be a rollout
        (("v1", "v3"), "v3", ["v1"]),
        ((), None, []),
    ],
)
def test_candidates_are_ordered_by_when_they_served_last(
    served: tuple[str, ...], active: str | None, expected: list[str]
) -> None:
    assert ladder(choose(V1, V2, V3, served=served, active=active)) == expected


@pytest.mark.parametrize(
    ("candidate", "options", "reason"),
    [
        (V1, {"active": "v1"}, "active"),
        (V1, {"quarantined": ("v1",)}, "quarantined"),
        (checkpoint("v1", age_ns=None), {}, "never_verified"),
        (checkpoint("v1", age_ns=None, failure="blob_altered"), {}, "verification_failed"),
        (checkpoint("v1", failure="blob_altered"), {}, "verification_failed"),
        (V1, {"wanted": "v2"}, "not_asked_for"),
        (V1, {"served": ()}, "never_served"),
        (V1, {"wanted": "v1", "quarantined": ("v1",)}, "quarantined"),  # asking does not lift a quarantine
        (checkpoint("v1", age_ns=None), {"wanted": "v1"}, "never_verified"),
    ],
)
def test_a_checkpoint_that_is_no_target_has_its_reason(
    candidate: Checkpoint, options: dict[str, object], reason: str
) -> None:
    selection = choose(candidate, **{"served": ("v1",), **options})  # type: ignore[arg-type]
    assert selection.candidates == ()
    assert [(r.version, r.reason) for r in selection.rejected] == [("v1", reason)]


def test_every_checkpoint_is_either_a_candidate_or_rejected() -> None:
    selection = choose(V1, V2, V3, active="v3", quarantined=("v2",), served=("v1",))
    assert (ladder(selection), {r.version for r in selection.rejected}) == (["v1"], {"v2", "v3"})


def test_the_one_that_was_asked_for_is_the_only_candidate() -> None:
    assert ladder(choose(V1, V2, V3, served=("v1", "v2", "v3"), active="v3", wanted="v1")) == ["v1"]


def test_no_checkpoints_give_no_candidates() -> None:
    assert choose() == Selection(candidates=(), rejected=())


@pytest.mark.parametrize(
    ("age_ns", "stale"),
    [
        (0, False),
        (DAY_S * 10**9, False),  # R15: 24 h, inclusive
        (DAY_S * 10**9 + 1, True),
        ((DAY_S + 1) * 10**9, True),
        (-(10**9), True),  # proven in the future: its age is not known, so it is proven again
    ],
)
def test_a_proof_is_stale_after_24_h(age_ns: int, stale: bool) -> None:
    selection = choose(checkpoint("v1", age_ns=age_ns, boot="another boot"), served=("v1",))
    assert [c.stale for c in selection.candidates] == [stale]


def test_age_alone_never_rejects() -> None:
    """It is verified inline instead."""
    assert ladder(choose(checkpoint("v1", age_ns=365 * DAY_S * 10**9), served=("v1",))) == ["v1"]


def test_a_candidate_says_whether_it_served_here() -> None:
    asked = {v: choose(V1, V2, served=("v1",), wanted=v).candidates[0].served_before for v in ("v1", "v2")}
    assert asked == {"v1": True, "v2": False}


def test_a_person_may_ask_for_one_that_never_served_here() -> None:
    assert ladder(choose(V1, V2, active="v1", served=("v1",), wanted="v2")) == ["v2"]
