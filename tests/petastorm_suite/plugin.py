"""pytest plugin: makes petastorm's own tests run on today's pytest, pandas and Python, and notes outcomes.

The stand-ins here are for the tests alone. What petastorm itself needs comes from
training/petastorm_on_arrow.py, which this plugin installs unless the variable WITHOUT_ADAPTER is set.
"""

import inspect
import json
import os
import sys
import types
from importlib.util import find_spec
from typing import Any

import pandas.testing
import pytest

POOL_TIMEOUT_S = 120  # petastorm's 20 s are too short on two busy cores


class _Absent:
    """Any name of a package that is not here; using it skips the test."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> "_Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        pytest.skip(f"{self._name} is not installed")

    __eq__ = __call__  # type: ignore[assignment]
    __hash__ = object.__hash__


class _AbsentModule(types.ModuleType):
    __version__ = "2.0.0"

    def __getattr__(self, name: str) -> _Absent:
        return getattr(_Absent(self.__name__), name)

    def __reduce__(self) -> Any:
        return _AbsentModule, (self.__name__,)  # Spark sends test functions with the modules they use


def _stand_in_for_packages() -> None:
    """tensorflow, always; OpenCV, which every test module imports, where the quick part runs without it."""
    for name in ("tensorflow", "tensorflow.compat", "tensorflow.compat.v1"):
        sys.modules[name] = _AbsentModule(name)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, sys.modules[name])
    if not find_spec("cv2"):
        sys.modules["cv2"] = _AbsentModule("cv2")


def _stand_in_for_what_was_dropped() -> None:
    sys.modules.setdefault("pandas.util.testing", pandas.testing)  # pandas 2 dropped it
    if not hasattr(inspect, "getargspec"):  # Python 3.11 dropped it
        inspect.getargspec = inspect.getfullargspec  # type: ignore[attr-defined]


def _install() -> None:
    if not os.environ.get("WITHOUT_ADAPTER"):
        from training.petastorm_on_arrow import install

        install()
    from petastorm.workers_pool import process_pool

    process_pool._KEEP_TRYING_WHILE_ZMQ_AGAIN_IS_RAIZED_TIMEOUT_S = POOL_TIMEOUT_S


_stand_in_for_packages()
_stand_in_for_what_was_dropped()
_install()


class _HooksOfPytestLogger:
    @pytest.hookspec
    def pytest_logger_config(self, logger_config: Any) -> None:
        """petastorm's conftest implements this hook of a plugin that it does not need."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(_HooksOfPytestLogger)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "forked: ignored; pytest-forked does not work with today's pytest")


def _note(test: str, outcome: str, seconds: float, why: str) -> None:
    with open(os.environ["OUTCOMES"], "a") as outcomes:
        outcomes.write(json.dumps({"test": test, "outcome": outcome, "seconds": round(seconds, 2), "why": why}) + "\n")


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        _note(item.nodeid, "left out", 0.0, "")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        _note(report.nodeid, report.outcome, report.duration, report.longreprtext)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.outcome != "passed":
        _note(report.nodeid, report.outcome, 0.0, report.longreprtext)
