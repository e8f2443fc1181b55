"""Engines: who runs the stages of a recipe, and where."""
