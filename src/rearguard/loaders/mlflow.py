"""MLflow model folders: the file `MLmodel` says which file is the model, and one of our own loaders reads it.

Flavours that are read: `onnx`, and `sklearn` saved as skops. A pickled flavour, cloudpickle included, is refused: MLflow
would run its code. Nothing else of the folder is used, `python_function` and its code least of all.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from rearguard.errors import RefusedError, UsageError
from rearguard.loaders import DeclaresState, Model, get_loader, mlmodel

_PICKLES = ("pickle", "cloudpickle")


def load(path: Path, trusted_types: tuple[str, ...]) -> Model | DeclaresState:
    """The model that the folder `path` declares.

    Raises `RefusedError` `unsafe_format` for a pickled flavour, `UsageError` (`unknown_format`, `model_unreadable`,
    `unsupported_model` for flavours that are not read here), and as the loader of the flavour.
    """
    description = path / "MLmodel"
    if not description.is_file():
        raise UsageError("unknown_format", f"{path} holds no file MLmodel", "give the folder that MLflow wrote")
    flavors = mlmodel.read(description).get("flavors")
    if not isinstance(flavors, dict):
        raise UsageError("model_unreadable", "MLmodel: it names no flavors", "take the folder as MLflow wrote it")
    onnx, sklearn = flavors.get("onnx"), flavors.get("sklearn")
    if isinstance(onnx, dict):
        file = _inside(path, onnx.get("data"))
        return _load_only(file, ".onnx", "onnx", trusted_types)
    if isinstance(sklearn, dict):
        how = sklearn.get("serialization_format")
        if how != "skops":
            raise RefusedError(
                "unsafe_format",
                f"MLmodel: the sklearn flavour is saved as {how}: loading it can run any code",
                "save it with serialization_format='skops'",
            )
        file = _inside(path, sklearn.get("pickled_model"))
        return _load_only(file, ".skops", "sklearn-skops", trusted_types)
    names = ", ".join(sorted(flavors))[:200] or "none"
    raise UsageError(
        "unsupported_model", f"MLmodel: flavours {names}; read here: onnx, sklearn as skops", "log it in one of them"
    )


def _inside(path: Path, named: object) -> Path:
    """The file that MLmodel names; it stays inside the folder by its name, without a link being followed."""
    parts = PurePosixPath(named).parts if isinstance(named, str) and "\0" not in named else ()
    if not parts or parts[0] == "/" or ".." in parts or not path.joinpath(*parts).is_file():
        raise UsageError("model_unreadable", f"MLmodel: {str(named)[:100]!r} is no file of the folder", "copy it whole")
    return path.joinpath(*parts)


def _load_only(file: Path, suffix: str, name: str, trusted_types: tuple[str, ...]) -> Model | DeclaresState:
    if file.suffix != suffix:
        raise UsageError(
            "model_unreadable", f"MLmodel: {file.name} is named for {name} and is no *{suffix}", "log it again"
        )
    return get_loader(name)(file.parent, trusted_types)
