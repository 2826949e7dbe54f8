# `make demo`, `make test`, `make lint`: each makes the environment in .venv first if it is not there.
#   TORCH        cpu (default), or the CUDA build wanted, such as cu126
#   TORCH_INDEX  where pip finds that build, if not on the usual index: on most Linux machines the usual index has
#                the CUDA build only, and the CPU one comes from the index that pytorch.org's install page names
#   DATA, OUT    `make demo DATA=path/to/coco OUT=out/mine`: any COCO directory instead of generated images
TORCH ?= cpu
TORCH_INDEX ?=
OUT ?=
DATA ?=
VENV := .venv
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3 python,$(if $(shell command -v $(p)),$(p))))
BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq --progress-bar off --root-user-action ignore -c constraints.txt
STAMP := $(VENV)/.installed-$(TORCH)
PIN = $(shell sed -n 's/^$(1)==//p' constraints.txt)
RUN_TESTS := $(BIN)/python -m pytest --timeout=900

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint clean

help:
	@echo "make install    the environment in .venv (TORCH=cpu or cu126 ..., TORCH_INDEX=URL)"
	@echo "make demo       the whole chain, ending with a report (DATA=a COCO directory, OUT=a folder)"
	@echo "make test       the fast tests"
	@echo "make test-slow  kills, outages, load"
	@echo "make lint       ruff and mypy"
	@echo "make clean      remove .venv, caches and out/"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no python found; install Python 3.11 or newer"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "error: $(PYTHON) is older than 3.11; say PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || { echo "[1/5] environment in $(VENV) ($$($(PYTHON) --version))"; $(PYTHON) -m venv $(VENV); } \
	    || { echo "error: cannot make $(VENV); on Debian install python3-venv"; rm -rf $(VENV); exit 2; }
	@$(PIP) --upgrade pip setuptools wheel
	@set -- $(VENV)/.installed-*; if [ -e "$$1" ] && [ ! -e $(STAMP) ]; then rm "$$@"; echo "another build of torch is wanted"; \
	    $(BIN)/python -m pip uninstall -qq -y --root-user-action ignore torch torchvision; fi
	@echo "[2/5] torch $(call PIN,torch) ($(TORCH))"
	@$(PIP) torch==$(call PIN,torch) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@$(BIN)/python -W ignore -c 'import sys, torch; got = "cu" + torch.version.cuda.replace(".", "") if torch.version.cuda else "cpu"; \
	    got == sys.argv[1] or print(f"note: this is the {got} build of torch, not {sys.argv[1]}: set TORCH_INDEX to choose")' $(TORCH)
	@echo "[3/5] torchvision $(call PIN,torchvision), sam2 $(call PIN,sam2)"
	@$(PIP) --no-deps torchvision==$(call PIN,torchvision) $(if $(filter-out cpu,$(TORCH)),$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)))
	@SAM2_BUILD_CUDA=0 $(PIP) --no-build-isolation sam2==$(call PIN,sam2)
	@echo "[4/5] ray, mlflow and the rest"
	@$(PIP) --no-build-isolation -e '.[dev]'
	@echo "[5/5] checking"
	@$(BIN)/python -m pip check > $(VENV)/pip-check.log || cat $(VENV)/pip-check.log
	@rm -f $(VENV)/.installed-*
	@touch $@
	@echo "installed: $(BIN)/fss"

demo: install
	@$(BIN)/fss demo $(if $(DATA),--data "$(DATA)") $(if $(OUT),--out "$(OUT)")

test: install
	@$(RUN_TESTS) -m "not slow and not gpu" -q

test-slow: install
	@$(RUN_TESTS) -m "slow and not gpu" -q

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/mypy

clean:
	rm -rf $(VENV) out build .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
