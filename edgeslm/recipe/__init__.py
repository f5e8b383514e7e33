"""What a run is told: `load` reads a recipe, a class of its own file stands behind every section of it."""

from edgeslm.recipe.whole import ASSETS, Recipe, expand, load

__all__ = ["ASSETS", "Recipe", "expand", "load"]
