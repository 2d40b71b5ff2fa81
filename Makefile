# `make demo` and `make test` set up all that they need, in .venv, on a machine with Python 3.11 or newer.
# uv does the installing: it is taken from PATH, or put into .venv from the package index. Plain pip is not used for the
# rest, since where torch wheels lie about locally it may pick one that torchvision does not fit.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
EXAMPLES := .venv/examples
UNIC := $(BIN)/unic-cache

SETS := tests/data/noto-emoji
DEMO := demo
CACHE := $(DEMO)/cache
COMPOSED := $(DEMO)/composed
TEACHERS := --teacher efficientnet-lite0@128 --teacher vit-s-saliency@112
EXTRACT := $(UNIC) extract $(TEACHERS) --cache $(CACHE) --size 128 --calibration-images 512

.PHONY: setup demo test test-slow test-s3 test-web test-slurm test-ray bench study gpu-check lint clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install -q uv
	PATH="$$PATH:$(CURDIR)/$(BIN)" uv pip install -q --python $(BIN)/python -c constraints.txt --compile-bytecode -e '.[dev,demo,study]'
	touch $(READY)

# What only tests import, of the examples and of the other extras: large packages, which the demo need not wait for.
$(EXAMPLES): $(READY)
	PATH="$$PATH:$(CURDIR)/$(BIN)" uv pip install -q --python $(BIN)/python -c constraints.txt --compile-bytecode -e '.[dev,demo,study,examples,hub,open-clip,onnx,ray]'
	touch $(EXAMPLES)

demo: $(READY)
	rm -rf $(DEMO)
	$(BIN)/python -m examples.composed $(COMPOSED) --images 240
	$(EXTRACT) --shards '$(SETS)/train/*.tar' --views 2
	$(EXTRACT) --shards '$(SETS)/test/*.tar' --views 1
	$(EXTRACT) --shards '{$(SETS),$(COMPOSED)}/*/*.tar' --views 1 --recipe center
	$(UNIC) inspect $(CACHE)
	$(UNIC) distill --cache $(CACHE) --shards '$(SETS)/train/*.tar' --val-shards '$(SETS)/test/*.tar' --out $(DEMO)/student \
		--student vit_tiny_patch16_224 --img-size 64 --patch-size 8 --batch-size 16 --steps 240 --lr 1e-3 --eval-every 120
	$(UNIC) evaluate --encoder $(DEMO)/student --cache $(CACHE) --task knn --task segmentation --head-steps 500 --out $(DEMO)/results.json \
		--train '{$(SETS),$(COMPOSED)}/train/*.tar' --test '{$(SETS),$(COMPOSED)}/test/*.tar'
	$(UNIC) report $(DEMO)/report $(DEMO)/student $(DEMO)/results.json

# One process a core, at most four; a file's tests share their fixtures, so they stay in one process.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4
test: $(EXAMPLES)
	$(PYTEST) --dist loadfile -m 'not slow'

# What tries every call, kill, order or byte: minutes that a change elsewhere need not wait for.
test-slow: $(EXAMPLES)
	$(PYTEST) -m slow

# Ceph's object gateway, a real S3 server, started on loopback and stopped again by the tests; needs Debian's packages.
test-s3: $(EXAMPLES)
	command -v radosgw ceph-osd ceph-mon >/dev/null || (apt-get update -q && \
		apt-get install -q -y --no-install-recommends radosgw ceph-osd ceph-mon)
	$(BIN)/python -m pytest -m s3 tests/s3

# Stages on a Ray cluster of this machine, alone: Ray gives its daemons 15 s to start.
test-ray: $(EXAMPLES)
	$(BIN)/python -m pytest -m ray tests/ray

# SLURM, Debian's: a controller and two nodes on loopback, started and stopped by the tests.
test-slurm: $(READY)
	command -v slurmctld slurmd sbatch >/dev/null || (apt-get update -q && \
		apt-get install -q -y --no-install-recommends slurmctld slurmd slurm-client)
	$(BIN)/python -m pytest -m slurm tests/slurm

# The pages that `report` and `inspect --pictures` write, in a headless Chromium, Debian's.
test-web: $(READY)
	command -v chromium >/dev/null || (apt-get update -q && apt-get install -q -y --no-install-recommends chromium)
	$(BIN)/python -m pytest -m web tests/web

# Ratios measured in one run; JSON, one line each.
bench: $(READY)
	$(BIN)/python -m benchmarks.codecs
	$(BIN)/python -m benchmarks.reading --codec int8 int4 f16 klt
	$(BIN)/python -m benchmarks.reading --codec f16 klt --throttle 500
	$(BIN)/python -m benchmarks.reading --codec f16 klt --loop
	$(BIN)/python -m benchmarks.images
	$(BIN)/python -m benchmarks.ladder
	$(BIN)/python -m benchmarks.calibrating
	$(BIN)/python -m benchmarks.extracting
	$(BIN)/python -m benchmarks.distilling
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.opening
	$(BIN)/python -m benchmarks.busy
	$(BIN)/python -m benchmarks.sharing
	$(BIN)/python -m benchmarks.evaluating

# docs/STUDY.md: hours, in pieces. Ctrl-C stops it, the same command goes on; a run's line in results.jsonl is its commit.
study: $(READY)
	$(BIN)/python -m benchmarks.study

# For whoever has a GPU: CUDA against the CPU (codecs, ladder, loss, distillation, resume), then the benchmarks on it.
gpu-check: $(READY)
	$(BIN)/python -m benchmarks.gpu_check
	$(MAKE) bench

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv $(DEMO) .mypy_cache .pytest_cache .ruff_cache .hypothesis
