# make run [SEED=n]   set up .venv and drive the simulated robot
# make test, lint     set up .venv-dev, run the tests, the linters and the type check
# make bench          build/bench.json and its table
# make judges         set up .venv-judges and let other people's programs check ours
# make camera-soak    300 starts and stops, 50 exits with everything running; a minute or two
# make modelopt       set up .venv-modelopt: NVIDIA's quantizer, for fp8 and nvfp4
# make floor          set up .venv-floor and run bundles under the oldest runtime that they must run under
# make gpu-check      where a GPU is at hand: docs/results/gpu.md
# make train [RECIPE=wam SEED=0]   data, tokenizer and one policy into checkpoints/: hours, not minutes, the first time
# make zeroshot       play the release scenes with every bundle of the repository into build/zeroshot.json

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
SEED ?= 0
BENCH ?=
RECIPE ?= wam
GPU_PYTHON ?= .venv-dev/bin/python
PIP := -m pip install --quiet --disable-pip-version-check

KERNELS := $(wildcard kernels/*.py kernels/*.pyx kernels/*.pxd)
BUILD := pyproject.toml setup.py $(KERNELS)
SOURCES := $(BUILD) $(shell find dzedge hardware export robots bundles -type f \
	-not -name '*.pyc' -not -name '*.so' 2>/dev/null)

.PHONY: install run test lint bench judges camera-soak floor gpu-check train zeroshot modelopt clean

install: .venv/.stamp

run: .venv/.stamp
	@.venv/bin/dzedge run --seed $(SEED)

test: build/.inplace
	.venv-dev/bin/pytest $(TESTS)

# The type check reads the installed wheel: it sees no mapped folders under an editable install.
lint: build/.inplace .venv/.stamp
	.venv-dev/bin/ruff check .
	PATH="$(CURDIR)/.venv-dev/bin:$$PATH" cython-lint kernels/*.pyx kernels/*.pxd
	mkdir -p build/typecheck
	ln -sfn "$$(.venv/bin/python -Ic 'import os, dzedge; print(os.path.dirname(dzedge.__file__))')" build/typecheck/dzedge
	cd build/typecheck && MYPYPATH=. ../../.venv-dev/bin/mypy --config-file ../../pyproject.toml -p dzedge

bench: build/.inplace .venv/.stamp
	.venv-dev/bin/python tests/bench $(BENCH)

camera-soak: build/.inplace
	.venv-dev/bin/python tests/camera_soak.py

judges: build/.inplace .venv-judges/.stamp .venv-physicalai/.stamp
	DZEDGE_OPERATIONS=1000 .venv-judges/bin/pytest -rs tests/judges
	DZEDGE_OPERATIONS=1000 .venv-dev/bin/pytest -rs tests/judges/test_servo_clients.py tests/judges/test_feetech_simulator.py
	.venv-physicalai/bin/pytest -rs tests/judges/test_physicalai.py

floor: build/.inplace .venv-floor/.stamp
	.venv-dev/bin/pytest -rs tests/floor

gpu-check: build/.inplace
	$(GPU_PYTHON) -m dzedge.export.gpu_check

train: build/.inplace data/.stamp
	.venv-dev/bin/dzedge train $(RECIPE) --seed $(SEED)

data/.stamp: build/.inplace
	.venv-dev/bin/python -m dzedge.export.data --out data
	@touch $@

zeroshot: build/.inplace
	.venv-dev/bin/dzedge evaluate --suite zeroshot --episodes 150 --seeds 400 --json > build/zeroshot.json

# The wheel is built in an environment that stays: build isolation unpacks Cython anew each time, and its files,
# being newer than the kernels, would have them all compiled again. setuptools would also pack what an earlier
# build left in build/lib.
build/wheel/.stamp: $(SOURCES) build/env/.stamp
	@echo "building dzedge"
	@rm -rf build/wheel build/bdist*
	@find build/lib* -type f -not -name '*.so' -delete 2>/dev/null || true
	@build/env/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	@touch $@

.venv/.stamp: build/wheel/.stamp
	@echo "installing dzedge into .venv"
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python $(PIP) --no-compile "$$(echo build/wheel/*.whl)[cpu,sim,realsense]"
	@.venv/bin/python $(PIP) --no-compile --no-deps --force-reinstall build/wheel/*.whl
	@touch $@

build/env/.stamp: pyproject.toml
	@$(PYTHON) -m venv build/env
	@sed -n 's/^requires = \[\(.*\)\]/\1/p' pyproject.toml | tr ',' ' ' | xargs build/env/bin/python $(PIP)
	@touch $@

# Only kernels that changed: an editable install compiles all of them each time.
build/.inplace: .venv-dev/.stamp $(BUILD)
	@.venv-dev/bin/python setup.py --quiet build_ext --inplace
	@touch $@

.venv-dev/.stamp: pyproject.toml requirements-dev.txt
	@echo "installing dzedge and its tools into .venv-dev"
	@test -x .venv-dev/bin/python || $(PYTHON) -m venv .venv-dev
	@.venv-dev/bin/python $(PIP) -r requirements-dev.txt
	@.venv-dev/bin/python $(PIP) --no-build-isolation -e ".[cpu,sim,realsense,export]"
	@touch $@

# torch with what its build needs; the rest is exact and not looked at for conflicts (see the file).
.venv-judges/.stamp: build/wheel/.stamp requirements-judges.txt
	@echo "installing dzedge and its judges into .venv-judges"
	@test -x .venv-judges/bin/python || $(PYTHON) -m venv .venv-judges
	@.venv-judges/bin/python $(PIP) "$$(grep '^torch==' requirements-judges.txt)"
	@.venv-judges/bin/python $(PIP) --no-deps -r requirements-judges.txt
	@.venv-judges/bin/python $(PIP) --no-deps --force-reinstall build/wheel/*.whl
	@touch $@

.venv-floor/.stamp: build/wheel/.stamp requirements-floor.txt
	@echo "installing dzedge and the oldest runtime into .venv-floor"
	@test -x .venv-floor/bin/python || $(PYTHON) -m venv .venv-floor
	@.venv-floor/bin/python $(PIP) --no-deps -r requirements-floor.txt
	@.venv-floor/bin/python $(PIP) --no-deps --force-reinstall build/wheel/*.whl
	@touch $@

# NVIDIA's quantizer, for `dzedge.export.quantize_modelopt`: it pins an older onnx and brings 2 GB.
modelopt: requirements-modelopt.txt
	@test -x .venv-modelopt/bin/python || $(PYTHON) -m venv .venv-modelopt
	@.venv-modelopt/bin/python $(PIP) -r requirements-modelopt.txt

# physicalai pins other versions of the same things.
.venv-physicalai/.stamp: build/wheel/.stamp requirements-physicalai.txt
	@echo "installing dzedge and physicalai into .venv-physicalai"
	@test -x .venv-physicalai/bin/python || $(PYTHON) -m venv .venv-physicalai
	@.venv-physicalai/bin/python $(PIP) --no-deps -r requirements-physicalai.txt
	@.venv-physicalai/bin/python $(PIP) --no-deps --force-reinstall build/wheel/*.whl
	@touch $@

clean:
	rm -rf .venv .venv-dev .venv-judges .venv-floor .venv-physicalai .venv-modelopt build runs *.egg-info .pytest_cache .ruff_cache .mypy_cache
	rm -f kernels/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
