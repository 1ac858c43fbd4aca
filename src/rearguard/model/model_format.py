"""A model format: which files it is made of, who loads it, and what a loaded model can tell."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFormat:
    """What an entry point of the group `rearguard.loaders` names. The module that holds it must import nothing heavy."""

    name: str
    """The entry point's name."""
    load: str
    """`module:function` of the loader, imported only where a model is loaded."""
    suffixes: tuple[str, ...]
    """Lower-case endings of the files that make a folder this format; a whole name, such as `MLmodel`, is one too."""
    predicts: bool
    """True when a loaded model answers requests, so that a golden set can be recorded and repeated."""
    tells_state: bool = False
    """True when a loaded model tells the digest of its state; a checkpoint then needs no golden set (R17)."""
    runs_code: bool = False
    """True when loading runs code that the file names: refused unless the policy allows it, and then sandboxed."""
    libraries: tuple[str, ...] = ()
    """Distributions whose versions are recorded with each proof."""
    extra: str = ""
    """What to install when a library is missing, as for pip; empty: nothing beside the product is needed."""
