"""A malicious store gives a clear error within bounded memory."""

import json
import os
import shutil
import subprocess
import sys

from tests.verify.damage import CNN_FOLDER, VIEW, VIT_FOLDER
from unic_cache.store.member import spec_bytes

HOSTILE = {
    "a spec of huge rows": (
        "spec.json",
        lambda spec: {**spec, "features": {"cls_dim": 2**20, "grid": [2**18, 2**18], "patch_dim": 2**20}},
    ),
    "a spec of many tokens": (
        "spec.json",
        lambda spec: {**spec, "features": {"cls_dim": 64, "grid": [2**10, 2**6], "patch_dim": 2**10}},
    ),
    "a spec of wrong types": ("spec.json", lambda spec: {**spec, "features": "all", "codec": {"f16": 1}}),
    "a huge shape in zarr.json": (
        f"features.zarr/000000/{VIEW}/cls/zarr.json",
        lambda array: {**array, "shape": [2**60, 2**60, 2**60], "attributes": [1]},
    ),
    "numbers where maps should be": (f"features.zarr/000000/{VIEW}/zarr.json", lambda group: 7),
}


LONG = (f"{VIT_FOLDER}/spec.json", f"{VIT_FOLDER}/commits/000000/{VIEW}/000000.json", "index/000000.json")
READER = """
import resource, sys
from pipelines.verify import VerifyConfig, run

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    print(*run(VerifyConfig(path, threads=1)).lines(), sep="\\n")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_hostile_store_is_told_within_bounded_memory(tmp_path, whole):
    """Huge shapes, wrong types and files of a terabyte, in one process of bounded memory."""
    expected = {}
    for kind, (name, change) in HOSTILE.items():
        shutil.copytree(whole, tmp_path / kind)
        path = tmp_path / kind / CNN_FOLDER / name
        body = json.loads(path.read_bytes())
        if isinstance(body, dict):
            body.pop("self", None)
        changed = change(body)
        path.write_bytes(spec_bytes(changed) if name == "spec.json" else json.dumps(changed).encode())
        expected[kind] = f"{CNN_FOLDER}/{name}"
    for name in LONG:
        kind = name.replace("/", "-")
        shutil.copytree(whole, tmp_path / kind)
        os.truncate(tmp_path / kind / name, 2**40)
        expected[kind] = name
    done = subprocess.run(
        [sys.executable, "-c", READER, *(str(tmp_path / kind) for kind in expected)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, grown = done.stdout.splitlines()
    assert int(grown) < 100_000, "KiB"
    for kind, name in expected.items():
        assert (
            f"{tmp_path / kind} is broken: `unic-cache repair` un-commits what `extract` can make again, "
            "and lists what needs a person" in lines
        )
        assert any(name in line for line in lines if line.startswith("broken: ")), (kind, lines)
