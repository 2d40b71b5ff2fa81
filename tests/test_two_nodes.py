"""torchrun on two machines, which namespaces play: docs/SCALE.md's recipe."""

import os
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipelines import distill
from tests.conftest import losses_of
from tests.namespaces import network

FLAGS = {"steps": 12, "batch_size": 8, "log_every": 2, "drop_path": 0.1}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_two_nodes_train_as_one_process(training, tmp_path):
    alone, out = tmp_path / "alone", tmp_path / "both"
    distill.run(training(**FLAGS, out=str(alone)))
    config = training(**FLAGS, out=str(out))
    words = [
        word
        for name in ("cache", "shards", "out", "student", "img_size", "patch_size", "lr", *FLAGS)
        for word in (f"--{name.replace('_', '-')}", str(getattr(config, name)))
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "eth0"}
    with network() as made:
        nodes = ["first", "second"]
        addresses = [made.add(node) for node in nodes]
        launch = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1",
            "--master_addr", addresses[0], "--master_port", "29500",
        ]  # fmt: skip
        command = ["-m", "cli", "distill", *words, "--tracker", "none"]
        running = [
            made.start(node, [*launch, "--node_rank", str(at), *command], environment, tmp_path / f"node-{at}.txt")
            for at, node in enumerate(nodes)
        ]
        codes = [one.wait(timeout=500) for one in running]
    said = [Path(tmp_path / f"node-{number}.txt").read_text() for number in range(2)]
    assert codes == [0, 0], "\n".join(said)
    found, wanted = losses_of(out), losses_of(alone)
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in wanted], abs=1e-5)
    one, two = (load_file(folder / "encoder.safetensors") for folder in (alone, out))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4
