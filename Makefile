# Every target sets up what it needs: Debian packages by apt-get where a program is missing, a virtual environment from PyPI.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := build/setup.stamp
SIZE ?= 2Gi
MINUTES ?= 10
IMAGE ?= docker.io/library/stillframe:0.1.0
BUILDER ?= docker build
HELM ?= helm
CLUSTER ?= kind
export CLUSTER

.PHONY: demo test check sanity e2e soak proto bench image manifests clean

demo: $(STAMP)
	$(BIN)/stillframe demo --size $(SIZE) $(if $(REPOSITORY),--repository '$(REPOSITORY)')

# With CLUSTER, the stories that do not take long, too, on such a cluster; see e2e.
test: check
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests $(if $(filter-out kind,$(CLUSTER)),e2e -m 'not thorough')

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

sanity: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -s tests/sanity

# Stories on a cluster: kind, or a program with the verbs of e2e/machines.py. STORIES picks some, as pytest's -k does; QUICK=1
# leaves those out that take long.
e2e: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -v e2e $(if $(STORIES),-k '$(STORIES)') $(if $(QUICK),-m 'not thorough')

soak: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.soak --minutes $(MINUTES)

proto: $(STAMP)
	bash .ci/proto.sh .

image: SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
image:
	$(BUILDER) --build-arg SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) -t $(IMAGE) .

manifests:
	mkdir -p build manifests
	HELM='$(HELM)' bash .ci/manifests.sh > build/stillframe.yaml
	mv build/stillframe.yaml manifests/stillframe.yaml

bench: $(STAMP)
	bash .ci/packages.sh bench
	PATH="$(CURDIR)/$(BIN):$$PATH" BENCH="$(BENCH)" $(BIN)/python -m bench

$(STAMP): pyproject.toml requirements.lock .ci/packages.sh
	bash .ci/packages.sh
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	mkdir -p build && touch $@

clean:
	rm -rf build $(VENV) *.egg-info
