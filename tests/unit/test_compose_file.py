"""docker-compose.yml and Dockerfile as data: what they promise without a container being started."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
SECRET = re.compile(r"password|passwd|secret|token|credential|access_?key|private_?key", re.IGNORECASE)
MASTER, WORKER, TRAINER = SERVICES = ("spark-master", "spark-worker", "trainer")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def stages() -> list[list[str]]:
    """The Dockerfile's stages, each a list of instructions; comments left out, continued lines joined."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    instructions = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    begins = [number for number, line in enumerate(instructions) if line.startswith("FROM ")]
    return [instructions[begin:end] for begin, end in zip(begins, [*begins[1:], len(instructions)], strict=True)]


def test_services_are_a_master_workers_and_a_trainer(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == set(SERVICES)


def test_old_and_new_compose_both_take_the_file(compose: dict[str, Any]) -> None:
    assert set(compose) <= {"services", "networks", "volumes"} | {key for key in compose if key.startswith("x-")}
    for service in compose["services"].values():
        for dependency in service.get("depends_on", {}).values():
            assert set(dependency) == {"condition"}


def test_every_published_port_is_open_to_this_machine_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not re.fullmatch(r"127\.0\.0\.1:[^:]*(:-\d+\})?:\d+", port)] == []


def test_workers_publish_no_port_so_that_more_than_one_can_run(compose: dict[str, Any]) -> None:
    assert not {"ports", "container_name", "hostname"} & set(compose["services"][WORKER])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_rights_over_the_host(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert not {"privileged", "cap_add", "devices", "pid", "ipc", "network_mode", "userns_mode"} & set(service)
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert [mount for mount in service["volumes"] if mount.startswith(("/", ".", "~"))] == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_memory_limit(compose: dict[str, Any], name: str) -> None:
    assert re.fullmatch(r"\d+[mg]", compose["services"][name]["mem_limit"])


def test_memory_of_spark_leaves_room_below_the_limits(compose: dict[str, Any]) -> None:
    for name in (MASTER, WORKER):
        service = compose["services"][name]
        heaps = [value for key, value in service["environment"].items() if key.endswith("_MEMORY")]
        assert 1.5 * sum(map(_bytes, heaps)) <= _bytes(service["mem_limit"])


@pytest.mark.parametrize("name", [MASTER, WORKER])
def test_a_spark_service_has_a_health_check_that_the_next_one_waits_for(compose: dict[str, Any], name: str) -> None:
    assert compose["services"][name]["healthcheck"]["test"][0] == "CMD"
    waiting = {MASTER: (WORKER, TRAINER), WORKER: (TRAINER,)}[name]
    for other in waiting:
        assert compose["services"][other]["depends_on"][name] == {"condition": "service_healthy"}


def test_all_services_run_one_image_that_is_built_once_and_share_the_volume(compose: dict[str, Any]) -> None:
    services = compose["services"].values()
    assert len({service["image"] for service in services}) == 1
    assert sum("build" in service for service in services) == 1
    assert [service["volumes"] for service in services] == [["data:/data"]] * len(SERVICES)
    assert "data" in compose["volumes"]


def test_trainer_runs_the_demo_on_the_master_with_two_ranks(compose: dict[str, Any]) -> None:
    master = compose["services"][MASTER]["command"]
    url = f"spark://{master[master.index('--host') + 1]}:{master[master.index('--port') + 1]}"
    command = compose["services"][TRAINER]["command"]
    assert command == ["headrace", "demo", "--master", url, "--to", "/data/demo", "--ranks", "2"]
    assert compose["services"][WORKER]["command"][-1] == url


def test_containers_carry_no_secrets(compose: dict[str, Any], stages: list[list[str]]) -> None:
    assert "secrets" not in compose
    names = [key for service in compose["services"].values() for key in service.get("environment", {})]
    kept = [line for stage in stages for line in stage if line.startswith(("ENV ", "ARG "))]
    assert [text for text in names + kept if SECRET.search(text)] == []


def test_image_comes_from_the_public_one_and_its_user_is_not_root(stages: list[list[str]]) -> None:
    assert "FROM python:3.11-slim-bookworm AS base" in [stage[0] for stage in stages]
    users = [line.split()[1] for line in stages[-1] if line.startswith("USER ")]
    assert users == ["1000"]


def test_compilers_stay_out_of_the_image_that_runs(stages: list[list[str]]) -> None:
    by_name = {stage[0].split()[-1]: stage for stage in stages}
    final = [*by_name["base"], *stages[-1]]
    assert stages[-1][0] == "FROM base"
    assert [line for line in final if re.search(r"g\+\+|cmake|build-essential|setup\.sh", line)] == []


def test_only_the_lock_and_setup_outdate_the_layer_that_compiles_horovod(stages: list[list[str]]) -> None:
    stage = next(stage for stage in stages if stage[0].endswith(" AS environment"))
    first_build = next(number for number, line in enumerate(stage) if line.startswith("RUN"))
    copied = [line.split()[1] for line in stage[:first_build] if line.startswith("COPY ")]
    assert copied == ["requirements.lock", "setup"]
    assert "setup/setup.sh" in stage[first_build]


def _bytes(size: str) -> int:
    return int(size[:-1]) << {"m": 20, "g": 30}[size[-1]]
