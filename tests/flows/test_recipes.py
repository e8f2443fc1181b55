"""Every published recipe can be made; runs of them are tested elsewhere."""

import importlib
import inspect
import pkgutil

import pytest

import flows.recipes


def published() -> list[str]:
    names = []
    for module in pkgutil.iter_modules(flows.recipes.__path__, "flows.recipes."):
        loaded = importlib.import_module(module.name)
        for name, function in inspect.getmembers(loaded, inspect.isfunction):
            if function.__module__ == module.name and not name.startswith("_"):
                names.append(f"{module.name}:{name}")
    return names


@pytest.mark.parametrize("recipe", published())
def test_published_recipe_can_be_made(recipe):
    module, _, function = recipe.partition(":")
    assert getattr(importlib.import_module(module), function)().name
