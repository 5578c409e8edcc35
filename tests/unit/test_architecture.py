"""Who may import whom, and the one home of each awkward third party."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
OURS = {"schemas", "spark_jobs", "training", "serving", "pipelines", "benchmarks", "tests", "setup"}
MAY_IMPORT = {
    "schemas": set(),
    "spark_jobs": {"schemas"},
    "training": {"schemas"},
    "serving": {"schemas", "training"},
    "pipelines": {"schemas"},
    "benchmarks": {"schemas", "pipelines", "training", "serving", "spark_jobs"},
}
# Of the Spark jobs, benchmarks take the statistics of drift, which know nothing of Spark.
OF_SPARK_JOBS = ("spark_jobs.drifting.cell_plans", "spark_jobs.drifting.statistics", "spark_jobs.drifting.verdicts")
# Of training, serving takes what a bundle is loaded and scored by.
OF_TRAINING = ("training.models", "training.checkpoint", "training.bundle", "training.batch", "training.recipe")
# Other people's tools, as their users would run them.
PEERS = ("benchmarks/feed_peers/", "benchmarks/spark_peers/", "benchmarks/training_peers/", "benchmarks/serving_peers/")
HOMES = {
    "petastorm": {"training/reader.py", "training/petastorm_on_arrow.py", "training/petastorm_threads.py"},
    # The others are processes of their own: a rendezvous for ranks on Spark, and horovodrun on this machine alone.
    "horovod": {"training/horovod_ranks.py", "training/rendezvous.py", "training/local_horovodrun.py"},
    "mlflow": {"training/mlflow_store.py"},
    "optuna": {"pipelines/tune.py", "pipelines/tune_space.py", "pipelines/tune_report.py", "pipelines/search.py"},
}
ONLY_IN = {
    "pyspark": ("spark_jobs/",),
    "py4j": ("spark_jobs/",),
    "torch": ("training/", "serving/"),
    "fastapi": ("serving/",),
    "faiss": ("serving/",),
}


def imports() -> list[tuple[str, str, int]]:
    """(file, module imported, line) for every import of our packages, those inside functions too."""
    found = []
    for package in MAY_IMPORT:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    names = [node.module]
                else:
                    continue
                found += [(str(path.relative_to(ROOT)), name, node.lineno) for name in names]
    return found


def test_the_search_finds_imports():
    assert any(file == "training/horovod_ranks.py" and name.startswith("horovod") for file, name, _ in imports())


def test_packages_import_only_what_they_may():
    wrong = []
    for file, name, line in imports():
        package, imported = file.split("/")[0], name.split(".")[0]
        if imported in OURS and imported != package and imported not in MAY_IMPORT[package]:
            wrong.append(f"{file}:{line} imports {name}")
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("package", "other", "allowed"),
    [
        pytest.param("serving", "training", OF_TRAINING, id="serving takes of training only what a bundle needs"),
        pytest.param("benchmarks", "spark_jobs", OF_SPARK_JOBS, id="benchmarks take only what knows nothing of Spark"),
    ],
)
def test_a_package_takes_of_another_only_what_it_may(package, other, allowed):
    wrong = [
        f"{file}:{line} imports {name}"
        for file, name, line in imports()
        if file.startswith(f"{package}/") and name.startswith(other) and not name.startswith(allowed)
    ]
    assert not wrong, wrong


def test_awkward_third_parties_have_one_home():
    wrong = [
        f"{file}:{line} imports {name}"
        for file, name, line in imports()
        if file not in HOMES.get(name.split(".")[0], {file}) and not file.startswith(PEERS)
    ]
    assert not wrong, wrong


def test_spark_and_torch_stay_in_their_packages():
    wrong = [
        f"{file}:{line} imports {name}"
        for file, name, line in imports()
        if (owners := ONLY_IN.get(name.split(".")[0])) is not None and not file.startswith((*owners, *PEERS))
    ]
    assert not wrong, wrong


def test_only_one_file_makes_a_spark_session():
    makers = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "spark_jobs").rglob("*.py")
        if "SparkSession.builder" in path.read_text(encoding="utf-8")
    ]
    assert makers == ["spark_jobs/session.py"]


def test_nothing_is_unpickled():
    """torch.load without weights_only, pickle and cloudpickle would run what a file tells them to."""
    wrong = []
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
                    wrong += [] if safe else [f"{path}:{node.lineno}"]
                if isinstance(node, ast.Import | ast.ImportFrom) and "pickle" in ast.unparse(node):
                    wrong.append(f"{path}:{node.lineno}")
    assert not wrong, wrong
