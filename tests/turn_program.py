"""Small programs in the place of a turn's: each leaves the files that the next one looks for, and says that it ran.

`python tests/turn_program.py COMMAND ...` is a step's program; `... turn --wheel WHEEL` is `headrace turn` that runs
those. Files in the wheel's folder change what they do: `fail.COMMAND`, `lack.COMMAND`, `sleep.COMMAND`, `refuse`,
`kill.promote`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

PROGRAM = (sys.executable, "-S", str(Path(__file__)))
"""Needs nothing but Python itself, and so starts at once."""
TURNING = (sys.executable, str(Path(__file__)), "turn", "--wheel")


def step(wheel: Path, command: str, options: dict[str, str]) -> int:
    with (wheel / "ran.txt").open("a", encoding="utf-8") as file:
        file.write(f"{command}\n")
    if (wheel / f"sleep.{command}").exists():
        (wheel / "asleep").write_text(str(os.getpid()))
        time.sleep(120)
    if (wheel / f"fail.{command}").exists():
        print("first words\n" * 30 + "the reason")
        return 5
    if (wheel / f"lack.{command}").exists():
        print("there is nothing to look at")
        return 2
    out = Path(options.get("--out", options.get("--run", "/nonexistent")))
    if command == "ingest":
        out.mkdir(exist_ok=True)
        (out / "manifest.json").write_text(json.dumps({"config_digest": (wheel / "log.txt").read_text()}))
    elif command == "prepare":
        shutil.copytree(wheel / "ready", out)
    elif command == "train":
        (out / "bundle").mkdir(parents=True, exist_ok=True)
        (out / "bundle" / "bundle.json").write_text(json.dumps(options))
    elif command == "evaluate":
        found = {
            "split": "test",
            "snapshot": {"url": "s", "id": "s", "digest": "d"},
            "model": {"num_rows": 40, "row_id_sum": 1, "full": {"ndcg@10": 0.25, "recall@10": 0.5}},
        }
        to = Path(options["--out"]) if "--out" in options else out / "evaluation-test.json"
        to.write_text(json.dumps(found))
    elif command == "release":
        out.mkdir()
        (out / "release.json").write_text("{}")
    elif command == "gate":
        (wheel / "options.gate").write_text(json.dumps(options))
        if options.get("--champion") == options["--candidate"]:
            print("a release is not held against itself")
            return 2
        refused = (wheel / "refuse").exists()
        check = {"check": "metrics", "verdict": "failed" if refused else "passed", "reasons": ["ndcg@10 0.25"]}
        verdict = {"created_at": "now", "candidate": "c", "candidate_id": "c", "champion_id": None}
        out.write_text(json.dumps({**verdict, "checks": [check], "rules": {}}))
        return 3 if refused else 0
    elif command == "promote":
        (wheel / "options.promote").write_text(json.dumps(options))
        release = Path(options["--release"])
        to = Path(options["--to"])
        before = json.loads(to.read_text()) if to.exists() else None
        now = {"release": str(release.relative_to(wheel)), "id": release.parent.name, "promoted_at": "now"}
        to.write_text(json.dumps({**now, "before": before}))
        if (wheel / "kill.promote").exists():
            os.kill(os.getppid(), signal.SIGKILL)
    elif command in ("drift", "feedback", "land", "skew", "estimate"):
        pass
    return 0


def main() -> int:
    command, *rest = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).parent.parent))
    if command == "turn":  # its own command line, as `headrace turn`
        from pipelines import turn as turn_command

        assert turn_command.turn.__kwdefaults__ is not None
        turn_command.turn.__kwdefaults__["program"] = PROGRAM
        return turn_command.main(rest)
    options = dict(zip(rest[::2], rest[1::2], strict=False))
    return step(Path(os.environ["HEADRACE_TURN"]), command, options)


if __name__ == "__main__":
    sys.exit(main())
