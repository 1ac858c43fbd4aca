"""The section `checkpoints` of the settings: when a checkpoint is proven well enough, and what is kept of it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

from rearguard.config.reader import Fields
from rearguard.model.checkpoint import CheckpointPolicy, GoldenPolicy, ProofPolicy

CHECKPOINT_KEYS = (
    "max_age",
    "reverify_every",
    "max_load",
    "proof",
    "receipt_above_mib",
    "golden",
    "trusted_types",
    "unsafe_formats",
    "sandbox_memory_mib",
    "scrub_mib_s",
    "mirror",
    "retention",
)
LEAST_REVERIFY_S = 120
"""What is due is looked at every 60 s, so a shorter interval could not be kept. Chosen: two looks."""
GOLDEN_KEYS = ("rtol", "atol")
RETENTION_KEYS = ("keep_last", "keep")

_BYTES_PER_MIB = 1_048_576
_ZERO = Decimal(0)


def read_checkpoints(root: Fields, folder: Path) -> CheckpointPolicy:
    """The policy that the section says, relative paths seen from `folder`; the defaults where it says nothing.

    ConfigError for a value that is not accepted.
    """
    section = root.section("checkpoints", CHECKPOINT_KEYS)
    default = CheckpointPolicy()
    max_age_s = section.duration_s("max_age", default.max_age_s, at_least_s=2, example="24 h")
    # Half the age by default, also of an age that the file chose: one verification may fail and be repeated in time.
    reverify_every_s = section.duration_s("reverify_every", max_age_s // 2, at_least_s=LEAST_REVERIFY_S, example="12 h")
    if reverify_every_s >= max_age_s:
        accepted = f"a duration shorter than checkpoints.max_age ({max_age_s} s)"
        raise section.refuse("reverify_every", accepted, code="config_conflict")
    proof = ProofPolicy(
        section.choice("proof", tuple(policy.value for policy in ProofPolicy), default=default.proof.value)
    )
    if proof is ProofPolicy.FULL_HASH and section.has("receipt_above_mib"):
        accepted = "no receipt_above_mib beside `proof: full_hash`: every byte is hashed, whatever the size"
        raise section.refuse("receipt_above_mib", accepted, code="config_conflict")
    mirror = section.text("mirror", "the path of a folder on another disk", "")
    retention = section.section("retention", RETENTION_KEYS)
    return CheckpointPolicy(
        max_age_s=max_age_s,
        reverify_every_s=reverify_every_s,
        max_load_s=section.duration_s("max_load", default.max_load_s, example="30 s"),
        proof=proof,
        receipt_above_bytes=_mib(section, "receipt_above_mib", default.receipt_above_bytes, at_least=0, example="256"),
        golden=_golden(section),
        trusted_types=section.texts("trusted_types", "a list of type names, for example [numpy.dtype]", ()),
        unsafe_formats=section.texts("unsafe_formats", "a list of formats, for example [sklearn-joblib]", ()),
        sandbox_memory_bytes=_mib(
            section, "sandbox_memory_mib", default.sandbox_memory_bytes, at_least=64, example="4096"
        ),
        scrub_bytes_s=_mib(section, "scrub_mib_s", default.scrub_bytes_s, at_least=1, example="200"),
        mirror=str(folder / mirror) if mirror else "",
        keep_last=retention.integer(
            "keep_last", "checkpoints", default.keep_last, at_least=1, at_most=1_000_000, example="10"
        ),
        keep_s=retention.duration_s("keep", default.keep_s, example="720 h"),
    )


def _mib(section: Fields, key: str, default_bytes: int, *, at_least: int, example: str) -> int:
    """A whole number of MiB, in bytes."""
    default = default_bytes // _BYTES_PER_MIB
    return section.integer(key, "MiB", default, at_least=at_least, at_most=1_048_576, example=example) * _BYTES_PER_MIB


def _golden(checkpoints: Fields) -> GoldenPolicy:
    section = checkpoints.section("golden", GOLDEN_KEYS)
    default = GoldenPolicy()
    rtol = section.number(
        "rtol", "relative tolerance", Decimal(str(default.rtol)), at_least=_ZERO, at_most=Decimal(1), example="0.00001"
    )
    atol = section.number("atol", "absolute tolerance", Decimal(str(default.atol)), at_least=_ZERO, example="0.000001")
    return GoldenPolicy(rtol=float(rtol), atol=float(atol))
