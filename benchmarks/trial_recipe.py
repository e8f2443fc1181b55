"""What the trials train on: the text of installed packages, curated by the published recipe."""

from dataclasses import replace

from flows.recipes.packages import TEXT_FILES, python_packages
from pipelines.recipe import Recipe, Source


def recipe(also: str = "") -> Recipe:
    """Returns the recipe `python_packages` with more folders of packages.

    Args:
        also: such folders, with a comma between each two; empty for none.
    """
    base = python_packages()
    more = (
        Source(f"packages_{number}", folder, files=TEXT_FILES)
        for number, folder in enumerate(filter(None, also.split(",")), 2)
    )
    return replace(base, name="trial_text", sources=(*base.sources, *more))
