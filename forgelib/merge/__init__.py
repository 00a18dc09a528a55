"""Floor 2: six techniques that make one model of several, the recipes that compose them, the checks around them."""

from .check import check_parents
from .child import Report, check_child
from .genes import Genes
from .recipe import PAIRS, RECIPES, Recipe, dare, dfs, frankenmerge, linear, recipe, slerp, ties
from .weights import LazyWeights, MergeRefused, read_lazily

__all__ = [
    "PAIRS",
    "RECIPES",
    "Genes",
    "LazyWeights",
    "MergeRefused",
    "Recipe",
    "Report",
    "check_child",
    "check_parents",
    "dare",
    "dfs",
    "frankenmerge",
    "linear",
    "read_lazily",
    "recipe",
    "slerp",
    "ties",
]
