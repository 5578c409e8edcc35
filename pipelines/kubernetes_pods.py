"""The pods of a training job: image, resources, mounts, and no rights that training has no need of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from schemas.errors import UserError

USER = 1000
"""Of the image (Dockerfile); claims get its group, so that it can write."""
_QUANTITY = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>m|[kMGTPE]|[KMGTPE]i)?")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A claim or a secret, and where its files are seen."""

    kind: Literal["claim", "secret"]
    name: str
    path: str

    @classmethod
    def parse(cls, option: str, text: str, kind: Literal["claim", "secret"]) -> Mount:
        name, _, path = text.partition(":")
        if not _NAME.fullmatch(name) or not path.startswith("/") or ":" in path:
            raise UserError(f"{option} takes NAME:PATH, for example data:/data, not {text}.")
        return cls(kind=kind, name=name, path=path)

    def volume(self, name: str) -> dict[str, Any]:
        if self.kind == "claim":
            return {"name": name, "persistentVolumeClaim": {"claimName": self.name}}
        return {"name": name, "secret": {"secretName": self.name}}

    def volume_mount(self, name: str) -> dict[str, Any]:
        read_only = {"readOnly": True} if self.kind == "secret" else {}
        return {"name": name, "mountPath": self.path, **read_only}


@dataclass(frozen=True, kw_only=True)
class PodSettings:
    image: str
    cpu: str
    memory: str
    gpus: int
    threads: int
    """Of a rank: torch would take a thread for each core of the node."""
    mounts: tuple[Mount, ...]
    secret_env: tuple[str, ...]

    def of_launcher(self) -> PodSettings:
        """Of a pod that starts ranks elsewhere, to which it hands its variables on."""
        return replace(self, cpu="500m", memory="1Gi", gpus=0)


def quantity(option: str, text: str) -> str:
    """A quantity as Kubernetes writes them, above 0; UserError for any other."""
    found = _QUANTITY.fullmatch(text)
    if found is None or float(found["number"]) == 0:
        raise UserError(f"{option} takes a quantity of Kubernetes's, such as 4, 500m or 16Gi, not {text}.")
    return text


def cores(quantity: str) -> int:
    """The whole cores of a quantity, at least one."""
    found = _QUANTITY.fullmatch(quantity)
    assert found is not None
    return max(1, int(float(found["number"]) / (1000 if found["unit"] == "m" else 1)))


def pod(name: str, settings: PodSettings, command: Sequence[str], **more: Any) -> dict[str, Any]:
    """A pod's template with one container. `more` are fields of the container."""
    names = [f"{mount.kind}-{number}" for number, mount in enumerate(settings.mounts)]
    pairs = [*zip(names, settings.mounts, strict=True)]
    container: dict[str, Any] = {"name": name, "image": settings.image, "command": [*command]}
    container["env"] = [{"name": "OMP_NUM_THREADS", "value": str(settings.threads)}]
    if settings.secret_env:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in settings.secret_env]
    container["resources"] = _resources(settings)
    container["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    if pairs:
        container["volumeMounts"] = [mount.volume_mount(volume) for volume, mount in pairs]
    container |= more
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    if pairs:
        spec["volumes"] = [mount.volume(volume) for volume, mount in pairs]
    return {"spec": spec}


def _resources(settings: PodSettings) -> dict[str, Any]:
    """No limit on cores: a rank that is throttled holds up all the others."""
    limits: dict[str, Any] = {"memory": settings.memory}
    if settings.gpus:
        limits["nvidia.com/gpu"] = settings.gpus
    return {"requests": {"cpu": settings.cpu, "memory": settings.memory}, "limits": limits}
