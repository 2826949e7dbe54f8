# `make demo`, `make test` and `make lint` first install the environment in .venv if there is none.
#   TORCH        the build of torch: cpu (default), or a CUDA build such as cu126
#   TORCH_INDEX  the package index that has this build, if it is not pip's usual one. For most Linux machines the usual
#                index has only the CUDA build; pytorch.org's install page names the index of the CPU build.
#   DATA, OUT    for `make demo`: a COCO directory to use instead of generated images, and the output folder
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
.PHONY: help install demo test test-slow lint docs clean

help:
	@echo "make install    install the environment in .venv (TORCH=cpu or cu126 ..., TORCH_INDEX=URL)"
	@echo "make demo       run the whole chain and write a report (DATA=COCO_DIRECTORY, OUT=FOLDER)"
	@echo "make test       run the fast tests"
	@echo "make test-slow  run the slow tests: kills, outages, load, an hour of hostile files (FSS_FUZZ_MINUTES)"
	@echo "make lint       run ruff and mypy"
	@echo "make docs       build the documentation into out/docs"
	@echo "make clean      remove .venv, caches and out/"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no python found; install Python 3.11 or newer"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "error: $(PYTHON) is older than 3.11; set PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || { echo "[1/5] environment in $(VENV) ($$($(PYTHON) --version))"; $(PYTHON) -m venv $(VENV); } \
	    || { echo "error: cannot make $(VENV); on Debian install python3-venv"; rm -rf $(VENV); exit 2; }
	@$(PIP) --upgrade pip setuptools wheel
	@set -- $(VENV)/.installed-*; if [ -e "$$1" ] && [ ! -e $(STAMP) ]; then rm "$$@"; echo "replacing the installed build of torch"; \
	    $(BIN)/python -m pip uninstall -qq -y --root-user-action ignore torch torchvision; fi
	@echo "[2/5] torch $(call PIN,torch) ($(TORCH))"
	@$(PIP) torch==$(call PIN,torch) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@$(BIN)/python -W ignore -c 'import sys, torch; got = "cu" + torch.version.cuda.replace(".", "") if torch.version.cuda else "cpu"; \
	    got == sys.argv[1] or print(f"note: the {got} build of torch is installed, not {sys.argv[1]}; set TORCH_INDEX to get it")' $(TORCH)
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
	@$(RUN_TESTS) -n 3 --no-loadscope-reorder -m "not slow and not gpu" -q

test-slow: install
	@$(RUN_TESTS) -m "slow and not gpu" -q

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/mypy

docs: install
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q
	@echo "documentation: out/docs/index.html"

clean:
	rm -rf $(VENV) out build .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
