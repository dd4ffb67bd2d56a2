# Everything works from a bare clone: what is missing (packages, virtual environment, and a kernel with
# IPVS in a micro-VM if this one has none) is installed on first use and remembered in .cache.

PY  := .venv/bin/python
RUN = $(PY) -m tests.guest.run $(WHERE)
VENV := .cache/venv.stamp
IMAGE_ROOT := .cache/image/root.made
IMAGE_CONTENT := $(addprefix deploy/,Dockerfile install.sh sbom.py requirements.lock build.lock) pyproject.toml $(shell find ipvsproxy nft -name '*.py' -o -name '*.nft')
# A build server must not skip the tests of the image; elsewhere they run once `make image-root` has.
REQUIRED := $(if $(filter 1,$(IPVSPROXY_REQUIRE)),$(IMAGE_ROOT))
ARGS :=
TESTS := tests/integration
WHERE :=
# What `make integration-newer` runs on: suites of Debian (docs/compatibility.md).
NEWER_KERNEL := backports
NEWER_USERLAND := trixie
# The folder with the programs of Kubernetes, for `make cluster` and `make e2e` (docs/cluster.md).
KUBE :=
# The proxy there, if not ours: PROXY=kube-proxy MODE=nftables.
PROXY :=
MODE :=
# Of the cluster: several run side by side.
NAME :=
export KUBE PROXY MODE NAME
FLOWS := tests/conformance/flows.json
# Every shell script of the repository, by its first line.
SHELL_SCRIPTS := $(shell git grep -lE '^(\#!/bin/(ba)?sh|\# shellcheck shell=)')
# Exit code 5 of pytest (nothing collected) is no failure while a folder is still empty.
NONE_IS_FINE = || test $$? -eq 5

.DEFAULT_GOAL := help
.PHONY: help demo tour vagrant-lab test test-all check unit tools-check vagrant-check integration integration-all \
        integration-newer soak fuzz conformance picture bench bench-dataplane guest cluster cluster-down cluster-trials e2e \
        image image-root lock clean

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## */  make \1\t/p' $(MAKEFILE_LIST) | expand -t 26
	@echo "ARGS='...' is handed to pytest (unit, integration), the demo or the bench; TESTS='FILE...' chooses integration tests."
	@echo "WHERE=--direct, --vm or --usermode is the kernel for integration, demo and bench, if not the best there is;"
	@echo "IPVSPROXY_KERNEL and IPVSPROXY_USERLAND ask for those of other Debians (docs/compatibility.md)."

demo: $(VENV)  ## the namespace lab, two nodes, pods and a client: Services of every kind, with real requests
	$(RUN) -- $(PY) -m tests.lab.demo $(ARGS)

tour: $(VENV)  ## vagrant/tour.sh in the namespace lab: ways into a cluster, whose source is seen, what doctor finds
	$(RUN) -- $(PY) -m tests.lab.tour

vagrant-lab:  ## the vagrant lab: virtual machines with a real cluster (needs Vagrant and a provider; vagrant/README.md)
	cd vagrant && vagrant up

test: check unit vagrant-check guest tools-check integration  ## all but the slow tests

test-all: check unit vagrant-check guest tools-check integration-all  ## all tests

check: $(VENV)  ## lint, format, types, import layers, shell scripts
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/shellcheck -x $(SHELL_SCRIPTS)

unit: $(VENV)  ## tests that need neither root nor a kernel
	$(PY) -m pytest tests/unit $(ARGS) $(NONE_IS_FINE)

tools-check: $(VENV)  ## the scripts that get this machine ready: apt, progress, the choice of a guest
	$(PY) -m pytest tests/tools $(ARGS)

vagrant-check: $(VENV) $(REQUIRED)  ## the Vagrantfile and its scripts, as far as they go without a provider (root)
	$(PY) -m pytest tests/vagrant $(ARGS)

guest: $(VENV)  ## what it takes to run many integration tests here: a user-mode kernel where no other is quick
	$(PY) -m tests.guest.run --prepare

integration: $(VENV) $(REQUIRED)  ## real packets through a real kernel (a guest's if need be)
	$(RUN) -- $(PY) -m pytest $(TESTS) -m 'not slow' $(ARGS)

integration-all: $(VENV) $(REQUIRED)  ## the same with the slow tests
	$(RUN) -- $(PY) -m pytest $(TESTS) $(ARGS)

# tests/unit/deploy needs Helm, and nothing that differs there.
integration-newer: $(VENV) $(REQUIRED)  ## with a newer kernel; then also with newer Python and libnftables, unit tests too
	IPVSPROXY_KERNEL=$(NEWER_KERNEL) $(PY) -m tests.guest.run --prepare
	IPVSPROXY_KERNEL=$(NEWER_KERNEL) $(RUN) -- $(PY) -m pytest $(TESTS) -m 'not slow' $(ARGS)
	IPVSPROXY_KERNEL=$(NEWER_KERNEL) IPVSPROXY_USERLAND=$(NEWER_USERLAND) $(RUN) -- \
		$(PY) -m pytest tests/unit $(TESTS) --ignore=tests/unit/deploy -m 'not slow' $(ARGS)

soak: $(VENV)  ## half an hour of random changes under traffic; SOAK_SECONDS, SOAK_SERVICES
	SOAK_SECONDS=$${SOAK_SECONDS:-1800} $(RUN) -- $(PY) -m pytest tests/integration/test_soak.py -s $(ARGS)

fuzz: $(VENV)  ## look for inputs that break or slow down what reads them; FUZZ_SECONDS, ARGS='--only TARGET'
	$(PY) -m tests.fuzz.run --seconds $${FUZZ_SECONDS:-600} $(ARGS)

conformance: $(VENV)  ## every packet flow of a file, FLOWS=FILE, or of some of its scenarios
	$(RUN) -- $(PY) -m tests.conformance.run --flows $(FLOWS) $(ARGS)

picture: $(VENV)  ## draw the picture in docs/commands.md anew
	$(PY) tools/picture $(WHERE)

bench: $(VENV)  ## measure sync times and memory
	$(RUN) -- $(PY) -m tests.bench.run $(ARGS)

bench-dataplane: $(VENV)  ## count what a packet costs, in instructions; KUBE_PROXY=PATH, ARGS=--check
	tools/dataplane-setup
	$(PY) -m tests.bench.dataplane $(ARGS)

cluster: $(VENV) $(if $(KUBE),$(IMAGE_ROOT))  ## real nodes, kubelets and pods with our proxy; KUBE=DIR (docs/cluster.md), ARGS
	$(PY) -m tests.cluster up $(ARGS)

cluster-down: $(VENV)  ## end it, with all that it has written
	$(PY) -m tests.cluster down

cluster-trials: $(VENV) $(if $(KUBE),$(IMAGE_ROOT))  ## what happens to a DaemonSet, and the way from kube-proxy and back, in clusters of their own
	$(PY) -m pytest tests/cluster -v -s $(ARGS)

e2e: $(VENV) $(if $(KUBE),$(IMAGE_ROOT))  ## upstream's tests of Services in the cluster that runs, or in a new one; FOCUS=PATTERN
	$(PY) -m tests.cluster.e2e $(if $(FOCUS),--focus '$(FOCUS)') $(ARGS)

image:  ## the container image ipvsproxy:dev, by docker
	docker build -f deploy/Dockerfile -t ipvsproxy:dev .

image-root: $(IMAGE_ROOT)  ## the same files without docker, for tests (root; debootstrap)

lock:  ## pin the Python packages of image, build and tests anew; ARGS=--upgrade for newer ones
	tools/lock $(ARGS)

clean:  ## forget everything that was built or fetched
	rm -rf .cache/image .cache/userland-* 2>/dev/null || sudo rm -rf .cache/image .cache/userland-*
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV): pyproject.toml $(wildcard tools/locks/*.lock) tools/bootstrap tools/not-locked tools/apt.sh tools/progress.sh
	tools/bootstrap
	@mkdir -p $(@D) && touch $@

$(IMAGE_ROOT): $(VENV) tools/image-root tools/wheel $(IMAGE_CONTENT)
	tools/image-root
