# Two commands: `make quickstart` (everything, from nothing to a report) and `make test`.
# Wheels and models are cached under ${XDG_CACHE_HOME:-~/.cache}/edgeslm.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
RECIPE ?= recipes/quickstart.yaml
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup quickstart test lint native proofs standins apk clean

quickstart:
	@start=$$(date +%s); $(MAKE) --no-print-directory setup && $(BIN)/edgeslm run $(RECIPE) && \
	  echo "quickstart: took $$(( $$(date +%s) - start )) s in all (from nothing: 20 minutes at most on two cores)"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt edgeslm/runtimes/native.py edgeslm/runtimes/native.cmake
	@command -v c++ >/dev/null || { echo "setup: a C++ compiler is missing, installing g++ (as root)"; apt-get update -qq && apt-get install -y -qq g++ >/dev/null; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "setup: venv is missing, installing python3-venv (as root)"; apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@start=$$(date +%s); $(BIN)/pip install --quiet -c constraints.txt -e '.[onnx,eval,lora,dev]' >$(VENV)/pip.log 2>&1 || { cat $(VENV)/pip.log; exit 1; }; \
	  echo "setup: packages took $$(( $$(date +%s) - start )) s"
	@start=$$(date +%s); PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m edgeslm.runtimes.native && echo "setup: llama.cpp took $$(( $$(date +%s) - start )) s"
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint native
	$(BIN)/python -m pytest -q --durations=10 -n auto --maxprocesses 4 --dist loadfile

# The native worker, llama-bench and llama-perplexity, which some tests compare with; kept in the cache.
native: setup
	@command -v cmake >/dev/null || { echo "test: cmake is missing, installing it (as root)"; apt-get update -qq && apt-get install -y -qq cmake >/dev/null || true; }
	@$(BIN)/edgeslm devices build-runtime native || echo "test: the native worker could not be built; its tests are skipped"

# Long proofs on real models: exactness, resume, tokenizers on all text. About an hour on two cores.
proofs: setup
	$(BIN)/python -m pytest -q -m proof --durations=0

# Devices that are none (a Raspberry Pi behind a real sshd, a phone behind a real adbd, emulated): as root on Debian 12.
STANDINS := qemu-user-static binfmt-support mmdebstrap openssh-client iproute2 adb
standins: setup
	@dpkg -s $(STANDINS) >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq --no-install-recommends $(STANDINS) >/dev/null; }
	$(BIN)/python -m pytest -q -m standin --durations=5

# The Android demo, signed with a debug key; BUNDLE=DIR puts a model bundle into it, which takes this project's own
# environment to check; the app alone is built with a bare Python.
ANDROID := aapt apksigner zipalign dexdump openjdk-17-jdk-headless clang lld
apk: $(if $(BUNDLE),setup)
	@for tool in aapt apksigner javac clang ld.lld; do command -v $$tool >/dev/null || missing=1; done; test -z "$$missing" || \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends $(ANDROID) >/dev/null; }
	@command -v npm >/dev/null || apt-get install -y -qq --no-install-recommends npm >/dev/null
	$(if $(BUNDLE),$(BIN)/python,$(PYTHON)) -m android_demo.tools.build $(if $(BUNDLE),--bundle $(BUNDLE))

clean:
	rm -rf $(VENV) runs build dist *.egg-info
