"""Model formats: which one a folder holds, which loader reads it, and what a loaded model can do.

One module a format, found by its entry-point name in the group `rearguard.loaders`, so that a third party's format
loads exactly as ours. The load probe (`rearguard.loaders.probe`) and the model server share these loaders and
nothing else. Heavy libraries are imported by the format's own module only: this one stays light for the officer.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rearguard.errors import ConfigError, RefusedError, UsageError

if TYPE_CHECKING:
    import numpy as np

    Tensors = dict[str, "np.ndarray[Any, Any]"]

GROUP = "rearguard.loaders"

_FORMAT_BY_SUFFIX = {".onnx": "onnx", ".skops": "sklearn-skops"}
_UNSAFE_SUFFIXES = frozenset({".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin", ".dill", ".cloudpickle"})
_PICKLED_SUFFIXES = _UNSAFE_SUFFIXES - {".bin"}
_ZIP_MAGIC = b"PK\x03\x04"
# Protocols 0 and 1 have no magic number: a global of a module, or a marked dict, list or instance.
_PICKLED_MODULES = ("posix", "nt", "os", "builtins", "__builtin__", "copy_reg")
_TEXT_PICKLE_STARTS = (*(f"c{module}\n".encode() for module in _PICKLED_MODULES), b"(dp", b"(lp")


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


Loader = Callable[[Path, tuple[str, ...]], Model]
"""`load(folder, trusted_types)`: the model, or `RefusedError`/`UsageError` with the reason."""


def installed_loaders() -> tuple[str, ...]:
    """Names that `get_loader` accepts, sorted."""
    return tuple(sorted({e.name for e in entry_points(group=GROUP)}))


def get_loader(name: str) -> Loader:
    """The load function of the format `name`.

    Raises `ConfigError`: `unknown_loader` when no installed package, or more than one, provides the name;
    `missing_extra` when the package is there and the library it needs is not.
    """
    found = list({e.value: e for e in entry_points(group=GROUP, name=name)}.values())
    installed = ", ".join(installed_loaders()) or "none"
    if len(found) != 1:
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
    try:
        loader: Loader = found[0].load()
    except ImportError as error:
        raise ConfigError(
            "missing_extra",
            f"the loader {name!r} needs a library that cannot be imported: {error}",
            "pip install 'rearguard[demo]', or the one extra of the format: onnx, sklearn",
            key="format",
            value=name,
        ) from error
    return loader


def detect(path: Path) -> str:
    """The format name of the model folder (or single file) `path`, read from names and first bytes.

    Raises `RefusedError` (`unsafe_format`) for anything that is unpickled when it is loaded, whatever its name,
    and `UsageError` (`unknown_format`, `no_such_path`) otherwise. Law: no file is ever loaded to find out.
    """
    if not path.exists():
        raise UsageError("no_such_path", f"there is no {path}", "give the folder that holds the model's files")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    beside_onnx = any(f.suffix.lower() == ".onnx" for f in files)
    for file in files:
        # External weights of an ONNX model are raw numbers and are often called .bin; their content still counts.
        banned = _PICKLED_SUFFIXES if beside_onnx else _UNSAFE_SUFFIXES
        if file.suffix.lower() in banned or _starts_like_a_pickle(file):
            raise RefusedError(
                "unsafe_format",
                f"{file.name} is a pickle or may hold one: loading it can run any code",
                "save it as skops or ONNX: skops.io.dump(model, 'model.skops') for scikit-learn, "
                "or export to model.onnx",
            )
    formats = {_FORMAT_BY_SUFFIX[f.suffix.lower()] for f in files if f.suffix.lower() in _FORMAT_BY_SUFFIX}
    if len(formats) != 1:
        names = ", ".join(f.name for f in files[:8]) or "nothing"
        raise UsageError(
            "unknown_format",
            f"{path} holds {names}: {'more than one format' if formats else 'no known format'}",
            "accepted: one *.onnx (onnx) or one *.skops (sklearn-skops)",
        )
    return formats.pop()


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


def _starts_like_a_pickle(file: Path) -> bool:
    with file.open("rb") as stream:
        head = stream.read(16)
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5:  # PROTO opcode: pickle protocol 2 to 5
        return True
    if head.startswith(_TEXT_PICKLE_STARTS):
        return True
    if not head.startswith(_ZIP_MAGIC):
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            return any(Path(name).suffix.lower() in _PICKLED_SUFFIXES for name in archive.namelist())
    except zipfile.BadZipFile:
        return False
