"""What recipes come to, as JSON for other programs: the settings in full, and how their epochs are compared.

Reads from standard input {"recipe": name or path, "candidates": [overrides, ...]}, each as `--set` takes them; prints
one object a candidate. Imports no torch, so that a whole space of settings is checked in the blink of an eye.
"""

from __future__ import annotations

import json
import sys

from schemas.programs import answering_mistakes
from training.recipe import CHOOSING, read_recipe


def resolve() -> None:
    """Raises UserError for the first candidate that is no recipe."""
    asked = json.load(sys.stdin)
    for overrides in asked["candidates"]:
        recipe = read_recipe(asked["recipe"], overrides)
        # Of a retriever's metrics more is always better.
        more = CHOOSING.get(recipe.chosen_by, True)
        found = {"recipe": recipe.model_dump(mode="json"), "chosen_by": recipe.chosen_by, "more_is_better": more}
        print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(answering_mistakes("resolve", resolve))
