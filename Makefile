# Every target makes what it needs. Python 3.11 or newer, pip and make are enough.
# PYTHON=… chooses an interpreter.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
BIN := .venv/bin
RUN_READY := .venv/.ready
DEV_READY := .venv/.ready-dev
SUPPLY := .venv-supply/bin

.PHONY: install demo test test-fast test-lowest check format docs site examples bench engines browser release soak soak-short gpu lock \
	sbom audit clean

install: $(RUN_READY)  ## rankwise alone, in .venv

demo: $(RUN_READY)  ## train a real model on this machine and show before and after
	$(BIN)/rankwise demo

# One process for each core, fewer where memory is short (tests/conftest.py); `make test WORKERS=0` runs all in one.
# Compiled files make the second process and the children of tests start sooner.
WORKERS ?= auto
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(DEV_READY)  ## the whole test suite
	$(PYTEST)

test-fast: $(DEV_READY)  ## the tests of the inner loop: all but those marked slow, with fewer examples
	HYPOTHESIS_PROFILE=fast $(PYTEST) -m "not slow and not gpu"

check: $(DEV_READY) site  ## format, lint, import contracts, types, and the site without a dead link
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

format: $(DEV_READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

site: $(DEV_READY)  ## build/site: all pages with search, for any server (python -m http.server -d build/site); a dead link is an error
	$(BIN)/python docs/site_pages.py
	$(BIN)/zensical build --strict --clean
	$(BIN)/python docs/site_check.py

docs: $(RUN_READY)  ## docs/configuration.md, docs/automation.md, llms.txt and the README's pictures, from what they show
	$(BIN)/python docs/make_configuration.py
	$(BIN)/python docs/make_automation.py
	$(BIN)/python docs/make_pictures.py

examples: $(DEV_READY)  ## the examples as the tests run them, and the tutorials as they are written
	$(BIN)/python examples/one_row.py
	$(BIN)/python examples/flat_lora.py
	$(BIN)/python examples/first.py
	$(BIN)/python examples/tutorials.py

bench: $(DEV_READY) .venv-engines-unsloth/.ready  ## long measurements, on the data sets at RANKWISE_DATA
	$(BIN)/python bench/data_check.py bench/results/data-check-$$(date +%F)
	$(BIN)/python bench/adalora.py --out bench/results/adalora-$$(date +%F)
	$(BIN)/pip install --quiet --editable ".[bench]"
	$(BIN)/python bench/train_step.py --rounds 1 --out bench/results/train-step-$$(date +%F) \
		--unsloth-python .venv-engines-unsloth/bin/python
	for case in batch-1 long rank-256 dropout; do $(BIN)/python bench/train_step.py --case $$case --rows 16 \
		--stacks rankwise-plain,peft-best --out bench/results/train-step-$$case-$$(date +%F); done
	$(BIN)/python bench/scaling.py --out bench/results/scaling-$$(date +%F)
	$(BIN)/python bench/full_tuning.py --out bench/results/full-tuning-$$(date +%F)
	$(BIN)/python bench/seven_billion.py --out bench/results/seven-billion-$$(date +%F)
	$(BIN)/python bench/start_up.py --out bench/results/start-up-$$(date +%F)

# Engines whose dependencies clash live in environments of their own.
ENGINES := mlx openvino
ENGINE_PACKAGES_mlx := 'mlx[cpu]' mlx-lm
ENGINE_PACKAGES_openvino := openvino-genai 'optimum-intel[openvino]'
# It asks for an older transformers than rankwise, which is installed beside it without its own dependencies.
ENGINE_PACKAGES_unsloth := 'unsloth>=2026.10' 'unsloth-zoo>=2026.10' gguf platformdirs rensa ruamel.yaml sacrebleu rouge-score matplotlib
ENGINES_READY := $(ENGINES:%=.venv-engines-%/.ready)

engines: $(DEV_READY) $(ENGINES_READY) transformers-js  ## exports of the demo's adapter, verified in the engines that others run
	test -d runs/demo || $(BIN)/rankwise demo
	$(BIN)/python bench/arrival.py runs/demo --out bench/results/arrival-$$(date +%F) \
		$(ENGINES:%=--engine-python .venv-engines-%/bin/python)
	$(BIN)/python bench/onnx_arrival.py --out bench/results/onnx-$$(date +%F) \
		$(if $(NODE),--engine-python $(NODE_HOME)/bin/python)

# transformers.js runs in node, in an environment with Python for what asks it. The install step of its runtime wants to
# download, and is left out; the package has what runs on a processor.
NODE := $(shell command -v npm)
NODE_HOME := .venv-engines-transformers-js
$(NODE_HOME)/.ready: requirements/transformers_js/package-lock.json | .venv/bin/python
	$(PYTHON) -m venv $(NODE_HOME)
	$(NODE_HOME)/bin/python -m pip install --quiet numpy pillow
	packages=$$($(NODE_HOME)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/transformers_js && \
		mkdir -p $$packages && cp requirements/transformers_js/package*.json $$packages && \
		npm ci --ignore-scripts --prefix $$packages
	@touch $@

.PHONY: transformers-js
transformers-js: $(if $(NODE),$(NODE_HOME)/.ready)
	@test -n "$(NODE)" || echo "npm is not installed, so exports to ONNX are not verified in transformers.js"

$(ENGINES_READY) .venv-engines-unsloth/.ready: .venv-engines-%/.ready: | .venv/bin/python
	$(PYTHON) -m venv .venv-engines-$*
	.venv-engines-$*/bin/python -m pip install --quiet $(ENGINE_PACKAGES_$*)
	.venv-engines-$*/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@

soak-short: $(DEV_READY)  ## runs that are disturbed in every way, the small counts; goes on where it stopped
	$(BIN)/python bench/reliability.py .soak --counts small --out bench/results/reliability-$$(date +%F)

soak: $(DEV_READY)  ## the same with the large counts, for hours
	$(BIN)/python bench/reliability.py .soak-long --counts large --out bench/results/reliability-long-$$(date +%F)

gpu: $(DEV_READY)  ## the checks that need a CUDA or Apple GPU (with two or more, also those of NCCL), and its speed
	$(BIN)/python -m pytest -m gpu tests/gpu tests/training/test_world.py tests/training/test_world_runs.py
	$(BIN)/python bench/gpu_step.py

browser: $(DEV_READY)  ## the studio in the system's Chromium, driven by Playwright
	$(BIN)/python -m pip install --quiet --editable '.[browser]'
	$(PYTEST) tests/browser

release: $(RUN_READY) $(SUPPLY)/.ready  ## dist/: the wheel, checked and used alone in empty environments; with the lowest versions, torch takes 7 GB on Linux
	$(BIN)/python bench/release.py --out bench/results/release-$$(date +%F)

$(SUPPLY)/.ready: | .venv/bin/python
	$(PYTHON) -m venv .venv-supply
	$(SUPPLY)/python -m pip install --quiet 'uv>=0.9' 'cyclonedx-bom>=7' 'pip-audit>=2.10' \
		'twine>=7' 'check-wheel-contents>=0.6' 'pipx>=1.18'
	@touch $@

# requirements/tested.txt: what `make test` passed with. A range for torch, whose builds for one kind of processor have
# names of their own. requirements/lowest.txt: the lowest versions that pyproject.toml admits.
lock: $(DEV_READY) $(SUPPLY)/.ready  ## requirements/, after a change of pyproject.toml or when `make test` passed with newer versions
	{ echo "# Constraints: the versions with which the whole test suite passed. Written by make lock."; \
		$(BIN)/python -m pip list --format freeze --exclude-editable \
		| sed -E 's/^(torch|torchvision)==([0-9]+\.[0-9]+).*/\1==\2.*/'; } > requirements/tested.txt
	{ echo "# The lowest versions that pyproject.toml admits, for make test-lowest. Written by make lock."; \
		$(SUPPLY)/uv pip compile --quiet --no-header --no-annotate --python-version 3.11 --resolution lowest-direct \
		--no-emit-index-url --extra dev pyproject.toml; } > requirements/lowest.txt

.venv-lowest/.ready: requirements/lowest.txt $(SUPPLY)/.ready
	$(SUPPLY)/uv venv --quiet --clear --python 3.11 .venv-lowest
	$(SUPPLY)/uv pip install --quiet --python .venv-lowest/bin/python --requirement requirements/lowest.txt
	$(SUPPLY)/uv pip install --quiet --python .venv-lowest/bin/python --no-deps --editable .
	@touch $@

test-lowest: .venv-lowest/.ready  ## the tests of the inner loop with the lowest versions; on Linux, torch takes 7 GB there
	HYPOTHESIS_PROFILE=fast .venv-lowest/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile \
		-m "not slow and not gpu"

sbom: $(RUN_READY) $(SUPPLY)/.ready  ## dist/sbom.json: what is installed with rankwise, in the format of CycloneDX
	@mkdir -p dist
	$(SUPPLY)/cyclonedx-py environment --pyproject pyproject.toml --of JSON --output-file dist/sbom.json $(BIN)/python

audit: $(SUPPLY)/.ready  ## known vulnerabilities of requirements/tested.txt; asks a service on the network
	sed -E 's/\.\*$$/.0/' requirements/tested.txt > .venv-supply/audited.txt
	$(SUPPLY)/pip-audit --requirement .venv-supply/audited.txt --no-deps --disable-pip

# A Python without ensurepip (Debian without python3-venv) cannot put pip into a new environment; its own pip can.
.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; give one with PYTHON=…"; exit 1; }
	$(PYTHON) -m venv .venv 2>/dev/null || { rm -rf .venv; \
		$(PYTHON) -m venv --without-pip .venv && $(PYTHON) -m pip --python .venv/bin/python install --quiet pip; }

$(RUN_READY): pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(DEV_READY): pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(RUN_READY)

clean:
	rm -rf .cache .venv .venv-lowest .venv-supply $(ENGINES:%=.venv-engines-%) $(NODE_HOME) .venv-engines-unsloth build dist .pytest_cache .ruff_cache .hypothesis
