"""Recipes, mixtures and runs by the name of the function that makes them."""

import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

Made = TypeVar("Made")


def load_function(name: str, kind: str) -> Any:
    """Imports `package.module:function` or `path/to/file.py:function` and returns the function.

    Raises:
        ValueError: the module or the function does not exist; the message lists what does.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(
            f"{kind} {name!r}: wanted module:function or file.py:function, "
            f"for example my_{kind}.py:{kind}"
        )
    if module_name.endswith(".py"):
        path = Path(module_name)
        if not path.is_file():
            raise ValueError(f"{kind} {name!r}: there is no file {module_name}")
        sys.path.append(str(path.resolve().parent))  # workers get it too, to unpickle its steps
        module = importlib.import_module(path.stem)
        if Path(module.__file__ or "").resolve() != path.resolve():
            raise ValueError(
                f"{kind} {name!r}: Python already has a module {path.stem} at {module.__file__}; "
                f"rename the file"
            )
    else:
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not module_name.startswith(error.name):
                raise
            raise ValueError(f"{kind} {name!r}: there is no module {error.name}") from error
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_") and key.islower()]
        raise ValueError(
            f"{kind} {name!r}: {module_name} has no {attribute!r}; it has: {', '.join(public)}"
        )
    return getattr(module, attribute)


def load(
    name: str, kind: str, wanted: type[Made], arguments: Mapping[str, str] | None = None
) -> Made:
    """Calls the function that `load_function` finds and returns what it makes.

    Raises:
        ValueError: there is none, it takes no such arguments, or it returns something else.
    """
    function = load_function(name, kind)
    if not callable(function):
        raise ValueError(f"{kind} {name!r}: it is of type {type(function).__name__}, no function")
    signature = inspect.signature(function)
    try:
        signature.bind(**(arguments or {}))
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "none"
        raise ValueError(f"{kind} {name!r}: {error}; its arguments are: {takes}") from error
    made = function(**(arguments or {}))
    if not isinstance(made, wanted):
        raise ValueError(
            f"{kind} {name!r}: it returns {type(made).__name__}; wanted {wanted.__name__}"
        )
    return made
