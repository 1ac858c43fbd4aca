"""Model formats: which loader reads one, and what a loaded model can do.

One module a format, found by its entry-point name in the group `rearguard.loaders`, so that a third party's format
loads exactly as ours. An entry point names a light `ModelFormat`; the loader that it names in turn is imported only
where a model is loaded. The load probe (`rearguard.loaders.probe`) and the model server share these loaders and
nothing else. Heavy libraries are imported by the format's own module only: this one stays light for the officer.
What a folder holds is found out by `rearguard.loaders.detection`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from rearguard.errors import ConfigError, RefusedError, UsageError
from rearguard.model.model_format import ModelFormat

if TYPE_CHECKING:
    import numpy as np

    Tensors = dict[str, "np.ndarray[Any, Any]"]

GROUP = "rearguard.loaders"


@runtime_checkable
class Model(Protocol):
    """A loaded model. Its own exceptions pass through: they are the model's failure, not the client's."""

    def predict(self, inputs: Tensors) -> Tensors:
        """The outputs by name, in the model's order.

        Raises `UsageError` (`bad_tensor`) when the inputs are not those that the model declares.
        """
        ...


@runtime_checkable
class DeclaresInputs(Protocol):
    """A model that knows the shape of its inputs well enough to be warmed up without a request."""

    def example_inputs(self) -> Tensors | None:
        """Zeros of the smallest accepted shape; None when the model does not declare one."""
        ...


@runtime_checkable
class DeclaresState(Protocol):
    """A loaded model that can tell what it holds."""

    def state_sha256(self) -> str:
        """64 hex digits over names, types, shapes and bytes of the whole state, in no particular order of the file.

        Law: two loads give the same digest iff they hold the same state (`rearguard.loaders.state` computes one).
        """
        ...


Loader = Callable[[Path, tuple[str, ...]], Model | DeclaresState]
"""`load(folder, trusted_types)`: what was loaded, or `RefusedError`/`UsageError` with the reason."""


def installed_loaders() -> tuple[str, ...]:
    """Names that `get_format` and `get_loader` accept, sorted."""
    return tuple(sorted({e.name for e in entry_points(group=GROUP)}))


def installed_formats() -> tuple[ModelFormat, ...]:
    """The formats that a folder can be recognised as, by name. Raises as `get_format`."""
    return tuple(f for f in map(get_format, installed_loaders()) if f.suffixes)


def get_format(name: str) -> ModelFormat:
    """The format `name`; nothing of it is loaded.

    Raises `ConfigError`: `unknown_loader` when no installed package, or more than one, provides the name;
    `missing_extra` when the package is there and cannot be imported; `loader_malformed` when what it provides is neither
    a `ModelFormat` of that name nor a function. A bare function is a loader that no folder is recognised as.
    """
    point = _entry_point(name)
    try:
        found = point.load()
    except (ImportError, AttributeError) as error:
        raise _missing(name, "rearguard[demo]", error) from error
    if isinstance(found, ModelFormat) and found.name == name:
        return found
    if callable(found):
        return ModelFormat(name=name, load=point.value, suffixes=(), predicts=True)
    raise ConfigError(
        "loader_malformed",
        f"the entry point {name!r} of {GROUP} is {point.value}, which is no ModelFormat named {name!r}",
        "the package that brings it has to be mended",
        key="format",
        value=name,
    )


def get_loader(name: str) -> Loader:
    """The load function of the format `name`.

    Raises `ConfigError` as `get_format`, and `missing_extra` when the library that the format needs is not installed.
    """
    found = get_format(name)
    module, _, function = found.load.partition(":")
    try:
        return cast(Loader, getattr(import_module(module), function))
    except (ImportError, AttributeError) as error:
        raise _missing(name, found.extra, error) from error


def refuse_unsafe(found: ModelFormat, allowed: tuple[str, ...]) -> None:
    """Nothing, unless loading this format runs code and the policy does not name it: `RefusedError` `unsafe_format`."""
    if found.runs_code and found.name not in allowed:
        raise RefusedError(
            "unsafe_format",
            f"loading {found.name} can run any code, and checkpoints.unsafe_formats does not allow it",
            "save it as skops or ONNX; or allow it in the sandbox: checkpoints.unsafe_formats: " + f"[{found.name}]",
        )


def is_allowed(name: str, allowed: tuple[str, ...]) -> bool:
    """Whether a format is known here and may be loaded under a policy that names the `allowed` unsafe ones."""
    try:
        refuse_unsafe(get_format(name), allowed)
    except (ConfigError, RefusedError):
        return False
    return True


def library_versions(found: ModelFormat) -> dict[str, str]:
    """Versions of the format's libraries that are installed here, by distribution."""
    versions = {}
    for name in found.libraries:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def answer(model: Model, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The V2 `outputs` of `model` for one V2 request, narrowed to the outputs that the request names.

    Raises `UsageError` (`bad_tensor`) for the client's mistakes; whatever else comes out is the model's failure.
    """
    from rearguard.loaders import tensors

    inputs = tensors.decode_inputs(request)
    wanted = tensors.requested_outputs(request)
    outputs = model.predict(inputs)
    if wanted:
        missing = [name for name in wanted if name not in outputs]
        if missing:
            raise UsageError("bad_tensor", f"the model has no output {missing[0]!r}", f"outputs: {', '.join(outputs)}")
        outputs = {name: outputs[name] for name in wanted}
    return tensors.encode_outputs(outputs)


def _entry_point(name: str) -> EntryPoint:
    found = list({e.value: e for e in entry_points(group=GROUP, name=name)}.values())
    if len(found) == 1:
        return found[0]
    installed = ", ".join(installed_loaders()) or "none"
    providers = ", ".join(sorted(f"{e.value} of {e.dist.name if e.dist else '?'}" for e in found))
    why = f"provided more than once: {providers}" if found else "not installed"
    raise ConfigError(
        "unknown_loader",
        f"the model format {name!r} is {why}; installed: {installed}",
        "uninstall all but one of the packages" if found else "use one of the installed formats",
        key="format",
        value=name,
        accepted=installed,
    )


def _missing(name: str, extra: str, error: Exception) -> ConfigError:
    return ConfigError(
        "missing_extra",
        f"the loader {name!r} needs a library that cannot be imported: {error}",
        f"pip install '{extra}'" if extra else "install what the package that brings it needs",
        key="format",
        value=name,
    )
