"""The Airflow DAG and the turn are the same steps; Airflow itself is not imported (`make test-airflow` runs it)."""

from __future__ import annotations

import ast
from pathlib import Path

from pipelines.turning.steps import STEPS
from pipelines.turning.work import NOT_UNDER_WAY

DAG = Path(__file__).parents[2] / "pipelines" / "airflow" / "headrace_dag.py"


def constants() -> dict[str, object]:
    """Assignments of plain values in the DAG's file."""
    found = {}
    for node in ast.parse(DAG.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return found


def test_the_dag_has_the_steps_of_a_turn_in_their_order():
    assert constants()["STEPS"] == tuple(STEPS)


def test_the_dag_skips_what_a_turn_says_is_not_under_way():
    assert constants()["NOT_UNDER_WAY"] == NOT_UNDER_WAY


def test_the_dag_imports_nothing_of_ours_so_that_it_can_be_copied():
    tree = ast.parse(DAG.read_text(encoding="utf-8"))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {module.split(".")[0] for module in modules} == {"__future__", "airflow", "datetime"}
