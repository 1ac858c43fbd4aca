"""Does the best rollback target lie where the service's own storage cannot take it along (R18)? A warning, no refusal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rearguard.model.outcome import Outcome

SAME_STORAGE_DOMAIN = "same_storage_domain"
STORAGE_UNKNOWN = "storage_domain_unknown"
WARNED = (SAME_STORAGE_DOMAIN, STORAGE_UNKNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where the copies of a checkpoint lie, beside where its service lies."""

    outcome: Outcome
    """PASS: one failed storage leaves a copy. INCONCLUSIVE: it does not, or nobody knows."""
    code: str
    """`same_storage_domain`, `storage_domain_unknown`, or empty."""
    service_domain: str
    """Empty: not known."""
    domains: tuple[str, ...]
    """Of the copies that hold, each once, sorted."""


def judge(copies: Iterable[str], service_domain: str) -> Standing:
    """Judge the domains of the copies of one checkpoint; an empty one is not known and counts for nothing.

    Law: PASS iff, whichever single domain fails, of those that may hold the service, a copy is left elsewhere.
    """
    domains = tuple(sorted({domain for domain in copies if domain}))
    apart = [domain for domain in domains if domain != service_domain]
    # Where the service lies is not known: of two domains at most one can be the service's.
    left, otherwise = (apart, SAME_STORAGE_DOMAIN) if service_domain else (domains[1:], STORAGE_UNKNOWN)
    code = "" if left else otherwise
    return Standing(
        outcome=Outcome.INCONCLUSIVE if code else Outcome.PASS,
        code=code,
        service_domain=service_domain,
        domains=domains,
    )
