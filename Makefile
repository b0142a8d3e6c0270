# Every target is a thin call, so that a laptop and a CI machine run the same thing.
# On a clean Debian 12, as root, `make demo` and `make test` install what they need first.

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest

# Where Go's own archive puts it; the conformance suite and an interoperability test are built with it.
export PATH := $(PATH):/usr/local/go/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-containerd demo-wasm demo-qemu test test-unit test-integration test-vm test-engine chaos lint type guest guest-kernel guest-debug proto configs bench bench-wasm bench-qemu bench-qemu-kvm critest plots wheel deb docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# What is ready is remembered in .venv; a change of what it was made from makes it again.
.venv/.ready-%: pyproject.toml scripts/setup scripts/install-packages
	scripts/setup $*
	@touch $@

setup: .venv/.ready-test ## install everything that the other targets need (root)

demo: .venv/.ready-demo ## run a pod with two containers without an engine, show it, clean up (root)
	$(PYTHON) scripts/demo

demo-containerd: .venv/.ready-demo-containerd ## the same under a private containerd (root)
	$(PYTHON) scripts/demo containerd

demo-wasm: .venv/.ready-demo-wasm ## both with WebAssembly modules, compiled here (root)
	$(PYTHON) scripts/demo wasm

demo-qemu: .venv/.ready-demo-containerd .venv/.ready-guest ## the pod under containerd in a virtual machine, emulated if need be (root)
	$(PYTHON) scripts/demo qemu

# Of what boots virtual machines for pods the most is marked as slow: emulated, it takes as long as all the rest.
VM_TESTS := tests/vm tests/integration/agent tests/integration/vmm tests/node/test_qemu.py \
	$(addprefix tests/engine/,test_qemu.py test_qemu_critest.py test_qemu_malice.py test_qemu_prerequisites.py test_qemu_weather.py) \
	$(addprefix tests/chaos/,test_qemu.py test_qemu_failpoints.py test_qemu_kills.py)

test: .venv/.ready-test ## run every test but the slow ones of test-vm: linters, unit, integration, engine with critest, chaos, node, vm (root)
	$(PYTEST) -m "not slow"

test-unit: .venv/.ready-venv ## run what needs neither root nor programs of the system
	$(PYTEST) tests/unit

test-integration: .venv/.ready-test ## run what needs root and real runtimes, but no engine
	$(PYTEST) tests/integration

test-vm: .venv/.ready-test .venv/.ready-guest-kernel ## run what boots virtual machines for pods, emulated, and in a node with KVM (root)
	$(PYTEST) $(VM_TESTS)

test-engine: .venv/.ready-test ## run what needs a real containerd, critest included (root)
	$(PYTEST) tests/engine

chaos: .venv/.ready-test ## kill the daemon at every failpoint and at random, at full size: results/chaos-*.json (root)
	CHAOS=full $(PYTEST) tests/chaos
	$(PYTHON) -m tests.chaos.results

test-node: .venv/.ready-test ## run what needs systemd and cgroup v2, in a virtual machine without KVM (root)
	$(PYTEST) tests/node

guest: .venv/.ready-guest ## build the guest image of VM pods with Debian's kernel: .cache/guest
	$(PYTHON) -m vmm.image build --directory .cache/guest

guest-kernel: .venv/.ready-guest-kernel ## compile a kernel without modules, which boots in half the time, and build the image with it
	$(PYTHON) -m vmm.image build --directory .cache/guest --kernel monolithic

guest-debug: .venv/.ready-guest ## build it with a shell on the console as well
	$(PYTHON) -m vmm.image build --directory .cache/guest --debug

critest: .venv/.ready-test ## run the CRI conformance suite alone (root, Go)
	$(PYTEST) tests/engine -k critest

lint: .venv/.ready-venv ## check style and who imports whom
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/lint-imports --no-logo

type: .venv/.ready-venv ## check types, strictly
	.venv/bin/mypy

proto: .venv/.ready-venv ## regenerate proto/gen from proto/**/*.proto
	$(PYTHON) scripts/generate-protos

configs: .venv/.ready-venv ## rewrite configs/*.yaml from the dataclasses that they document
	$(PYTHON) scripts/generate-configs

# What is not reached is a failure, and drawn nonetheless.
bench: .venv/.ready-bench ## measure against stock shims in one run: results/*.json, a table and plots (root)
	$(PYTHON) tests/bench/run.py; status=$$?; $(PYTHON) tests/bench/plots.py start memory && exit $$status

bench-wasm: .venv/.ready-bench ## measure pods of WebAssembly modules: results/*.json, a table and a plot (root)
	$(PYTHON) tests/bench/wasm.py; status=$$?; $(PYTHON) tests/bench/plots.py wasm && exit $$status

plots: .venv/.ready-bench ## draw the last results again: docs/plots/*.svg
	$(PYTHON) tests/bench/plots.py

bench-qemu: .venv/.ready-test .venv/.ready-guest-kernel ## measure pods in virtual machines against their parts: results/*.json and a table (root)
	$(PYTHON) tests/bench/qemu.py

bench-qemu-kvm: .venv/.ready-test .venv/.ready-guest-kernel ## the same under KVM, in a node that is emulated: no verdict to quote (root)
	$(PYTHON) tests/bench/kvm.py

wheel: .venv/.ready-venv ## build the wheel, for environments of one's own: dist/*.whl
	scripts/build-wheel dist

deb: .venv/.ready-deb ## build the Debian packages and let lintian look at them: dist/*.deb
	scripts/build-deb dist
	lintian --fail-on error,warning dist/*.deb

docs: .venv/.ready-docs ## build the site of the documentation: build/site/index.html
	scripts/build-docs

clean: ## remove what was built, fetched, measured and cached here
	rm -rf .venv .cache build dist results *.egg-info .*_cache .hypothesis
