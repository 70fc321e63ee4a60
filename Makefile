# `make help` lists the targets. Each one installs what it needs on a fresh Debian machine.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# RocksDB's C++ is compiled once per machine and kept outside target/ (see build-support/rocksdb.sh).
export WEIR_BUILD_CACHE ?= $(HOME)/.cache/weir-build
ROCKSDB = export ROCKSDB_LIB_DIR="$$(build-support/rocksdb.sh)" ROCKSDB_STATIC=1

CARGO ?= cargo
# The binaries and the tests that run them, in one build of the whole workspace: Cargo compiles what they share with the features that all
# of them want together, so a build of some of them alone would compile most of it a second time.
BUILD_FOR_TESTS = $(CARGO) build --locked --workspace --bin weir --bin weir-s3-server
OPTIMISED = $(if $(RELEASE),--release)
# Parts of Kubernetes that are tested against without a node.
FETCH_SANITY = KUBERNETES_PROGRAMS= KUBERNETES_TOOLS=csi-sanity build-support/kubernetes/fetch.sh
FETCH_APISERVER = KUBERNETES_PROGRAMS='etcd kube-apiserver' KUBERNETES_TOOLS=helm build-support/kubernetes/fetch.sh
DEMO_URL ?=
DEMO_FILES ?= 20000
SUITE ?=
QUICK ?=
RUNS ?=
SERVER ?=
PEERS ?=
AGAINST ?=
FUZZ_SECONDS ?= 60
# The last version before there was Kubernetes.
EARLIER ?= b457099029c2caf616bf9ed2abbdcca5fe9dddf8
ROUNDS ?=
SEED ?=
NAME ?=

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

.PHONY: setup
setup: ## Install the Debian packages that the build and the tests need (as root)
	@build-support/setup.sh

.PHONY: build
build: setup ## Build target/release/weir, its debug information apart in weir.debug
	@$(ROCKSDB) && $(CARGO) build --release --locked
	@build-support/split-debug.sh target/release/weir

.PHONY: install
install: build ## Put weir into /usr/local/bin, and a link for mount(8) into /sbin (as root)
	@install -D -m 0755 target/release/weir '$(DESTDIR)/usr/local/bin/weir'
	@mkdir -p '$(DESTDIR)/sbin' && ln -sfn /usr/local/bin/weir '$(DESTDIR)/sbin/mount.weir'

.PHONY: demo
demo: setup ## Mount real files from a real S3 server, read two epochs, print the figures
	@$(ROCKSDB) && $(CARGO) build --release --locked --no-default-features -p weir-cli -p weir-demo -p weir-s3-server
	@build-support/split-debug.sh target/release/weir
	@target/release/weir-demo --url '$(DEMO_URL)' --files $(DEMO_FILES)

.PHONY: test
test: setup ## Run all unit, property and whole-system tests
	@$(ROCKSDB) && $(BUILD_FOR_TESTS) --tests
	@$(ROCKSDB) && $(CARGO) test --locked --workspace

.PHONY: chaos
chaos: setup ## Kill, freeze, lie and fill up, into docs/testing.md; ROUNDS=50 SEED=7 does a storm of so many rounds alone
	@$(ROCKSDB) && $(BUILD_FOR_TESTS) --test chaos
	@$(ROCKSDB) && WEIR_CHAOS=full WEIR_STORM_ROUNDS='$(ROUNDS)' WEIR_STORM_SEED='$(SEED)' \
		$(if $(ROUNDS)$(SEED),,WEIR_CHAOS_PAGE='$(CURDIR)/docs/testing.md') \
		$(CARGO) test --locked --workspace --test chaos -- --nocapture $(if $(ROUNDS)$(SEED),a_storm)

.PHONY: test-origins
test-origins: setup ## Test against real storages and emulators, which are fetched first: HDFS with deaths and failover, stores
	@$(ROCKSDB) && $(BUILD_FOR_TESTS) --test origins
	@$(ROCKSDB) && WEIR_TEST_ORIGINS=1 $(CARGO) test --locked --workspace --test origins

.PHONY: fetch-origins
fetch-origins: ## Fetch, build and install the storages of test-origins, which does this too
	@build-support/hdfs.sh && build-support/stores.sh

.PHONY: test-k8s
test-k8s: setup ## Test on a real Kubernetes, whose programs are built first (as root); RELEASE=1 with a release build, NAME=figures these cases alone
	@build-support/kubernetes/fetch.sh >/dev/null
	@$(ROCKSDB) && $(BUILD_FOR_TESTS) $(OPTIMISED) --features weir-cli/kubernetes --test apiserver --test kubernetes
	@$(if $(NAME),,$(ROCKSDB) && WEIR_TEST_APISERVER="$$(build-support/kubernetes/fetch.sh)" \
		$(CARGO) test --locked --workspace $(OPTIMISED) --test apiserver)
	@$(ROCKSDB) && WEIR_TEST_KUBERNETES=1 $(CARGO) test --locked --workspace $(OPTIMISED) --test kubernetes $(if $(NAME),-- '$(NAME)')

.PHONY: test-csi-sanity
test-csi-sanity: setup fetch-csi-sanity ## Test the node plugin with the CSI project's own tests, which are built first; no Kubernetes is needed
	@$(ROCKSDB) && $(BUILD_FOR_TESTS) --test system
	@$(ROCKSDB) && WEIR_TEST_CSI_SANITY="$$($(FETCH_SANITY))/csi-sanity" $(CARGO) test --locked --workspace --test system -- csi_sanity

.PHONY: fetch-csi-sanity
fetch-csi-sanity: ## Build the program of test-csi-sanity, which does this too: two minutes of processor time
	@$(FETCH_SANITY) >/dev/null

.PHONY: test-versions
test-versions: setup ## Test this version beside an earlier one, which is built first: wire, disks, hand-over; EARLIER=COMMIT chooses it
	@$(ROCKSDB) && $(BUILD_FOR_TESTS) --test system
	@$(ROCKSDB) && WEIR_TEST_VERSIONS="$$(build-support/version.sh $(EARLIER))" $(CARGO) test --locked --workspace --test system -- versions::

.PHONY: test-apiserver
test-apiserver: setup fetch-apiserver ## Test the operator against a real apiserver alone, a part of test-k8s
	@$(ROCKSDB) && WEIR_TEST_APISERVER="$$($(FETCH_APISERVER))" $(CARGO) test --locked --workspace --test apiserver

.PHONY: fetch-apiserver
fetch-apiserver: ## Build the apiserver, its store and helm for test-apiserver, which does this too
	@$(FETCH_APISERVER) >/dev/null

.PHONY: figures-operator
figures-operator: setup ## Measure the operator and its webhook with 1,000 Datasets on a real apiserver; DATASETS, REST (seconds) and PODS change that
	@$(ROCKSDB) && WEIR_TEST_APISERVER="$$(build-support/kubernetes/fetch.sh)" \
		$(CARGO) test --release --locked -p weir-operator --test figures figures -- --ignored --exact --nocapture

.PHONY: fetch-kubernetes
fetch-kubernetes: ## Build the programs of test-k8s, which does this too: some 12 minutes of processor time
	@build-support/kubernetes/fetch.sh

.PHONY: manifests
manifests: ## Write deploy/kubernetes/weir.yaml anew from the chart
	@build-support/kubernetes/manifests.sh deploy/kubernetes/weir.yaml

.PHONY: fuzz
fuzz: setup ## Give mutated inputs to each parser for FUZZ_SECONDS, from a new seed
	@export WEIR_FUZZ_SECONDS=$(FUZZ_SECONDS) WEIR_FUZZ_SEED="$${WEIR_FUZZ_SEED:-$$RANDOM}" && $(ROCKSDB) && \
		$(CARGO) test --locked -p weir-core -p weir-segment -p weir-wire -p weir-worker --test fuzz -- --nocapture && \
		$(CARGO) test --locked -p weir-origin --lib fuzz_ -- --nocapture

.PHONY: schema
schema: setup ## Write docs/dataset.schema.json and the chart's crds/ anew from the types that they describe
	@$(ROCKSDB) && WEIR_WRITE_SCHEMA=1 $(CARGO) test --locked -p weir-core --lib the_schema_in_docs
	@$(ROCKSDB) && WEIR_WRITE_SCHEMA=1 $(CARGO) test --locked -p weir-operator --lib the_definitions_in_the_chart

.PHONY: bench
bench: setup ## Measure into bench/RESULTS.md; SUITE='small big' picks, QUICK=1 tries out, PEERS='name=command' adds
	@$(if $(filter builtin,$(SERVER))$(QUICK),true,build-support/bench-setup.sh)
	@$(ROCKSDB) && $(CARGO) build --release --locked --no-default-features -p weir-cli -p weir-bench -p weir-s3-server
	@target/release/weir-bench $(if $(QUICK),--quick) $(if $(RUNS),--runs $(RUNS)) $(if $(SERVER),--server $(SERVER)) \
		$(foreach suite,$(SUITE),--suite $(suite)) $(if $(PEERS),--peers '$(PEERS)')

.PHONY: bench-pairs
bench-pairs: setup ## Compare with an earlier build in turns: AGAINST=path/to/weir; SUITE, RUNS (15 pairs), QUICK=1, SERVER as above
	@test -x '$(AGAINST)' || { echo 'which build to compare with? make bench-pairs AGAINST=path/to/weir' >&2; exit 2; }
	@$(if $(filter builtin,$(SERVER))$(QUICK),true,build-support/bench-setup.sh)
	@$(ROCKSDB) && $(CARGO) build --release --locked --no-default-features -p weir-cli -p weir-bench -p weir-s3-server
	@target/release/weir-bench --against '$(AGAINST)' $(if $(QUICK),--quick) $(if $(RUNS),--runs $(RUNS)) \
		$(if $(SERVER),--server $(SERVER)) $(foreach suite,$(SUITE),--suite $(suite))

.PHONY: lint
lint: setup ## Check formatting, lints and documentation
	@$(CARGO) fmt --all --check
	@$(ROCKSDB) && $(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@$(ROCKSDB) && RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --no-deps

.PHONY: deny
deny: ## Check licences, advisories and sources of the dependencies
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	@$(CARGO) deny check

.PHONY: clean
clean: ## Remove what the build made, but not the RocksDB library
	@$(CARGO) clean
