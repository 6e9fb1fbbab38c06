from __future__ import annotations

import hashlib
import json
from pathlib import Path

from purify_cli.checkpoint.provenance import provenance
from purify_cli.results import CheckpointMetrics, Rate


def test_provenance_is_json_with_the_digest_of_every_input(tmp_path: Path) -> None:
    folder, data = tmp_path / "in", tmp_path / "clean.csv"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    data.write_bytes(b"text,label\n")
    after = CheckpointMetrics(path="out", cacc=Rate(0.5, 0.4, float("nan"), 9))
    content = provenance(
        "poison", "badnets", {"rate": 0.1}, 3, [folder, data], None, after, poisoned=True, triggers=("cf",)
    )
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["inputs"] == [
        {"path": str(folder / "config.json"), "bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()},
        {"path": str(data), "bytes": 11, "sha256": hashlib.sha256(b"text,label\n").hexdigest()},
    ]
    assert content["after"]["cacc"] == {"value": 0.5, "low": 0.4, "high": None, "n": 9}
    assert (content["seed"], content["poisoned"], content["triggers"], content["before"]) == (3, True, ["cf"], None)
    assert content["tool"]["name"] == "purify-cli"
