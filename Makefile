# SPDX-License-Identifier: Apache-2.0

# "make" without a target lists the targets. Reading this file runs no command.

MAKEFLAGS += --no-print-directory --no-builtin-rules
.DEFAULT_GOAL := help

VERSION ?= dev
WORKERS ?= 2
# Label filter of "make e2e". The soak test runs only with LABELS=soak.
LABELS ?= !soak
# Folders of the Go modules that "make check" checks. The modules below hack only pin or build programs; no package imports them.
# Those below hack/interop are not checked, because CI would download their many dependencies.
MODULES := . $(patsubst %/go.mod,%,$(wildcard hack/*/go.mod hack/kind/*/go.mod))
TOOL    := go tool -modfile=$(CURDIR)/hack/tools/go.mod
TESTBED := bin/testbed
# JUnit reports, one per suite.
REPORTS := $(CURDIR)/bin/reports
# gotestsum prints the output of "go test" and writes the report $(1).xml, also when tests fail.
GOTESTSUM = $(TOOL) gotestsum --format standard-quiet --junitfile $(REPORTS)/$(1).xml

# All programs are static and built with the same settings, so that all targets share Go's build cache. Only the race
# detector needs cgo.
export CGO_ENABLED := 0

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Testbed

.PHONY: demo kind-up kind-down shoot-up shoot-down
demo: $(TESTBED) ## Create the testbed and a Shoot with caches, pull an image twice, and print the origin of each byte.
	$(TESTBED) demo --workers $(WORKERS)

kind-up: $(TESTBED) ## Create or repair the testbed, a kind cluster that acts as a Shoot (WORKERS=2, NODE_IMAGE=...).
	$(TESTBED) up --workers $(WORKERS)

kind-down: $(TESTBED) ## Delete the testbed. Expensive build results stay; "make clean" deletes them.
	$(TESTBED) down

shoot-up: $(TESTBED) ## Apply example/shoot.yaml and wait for the reconciliation (SHOOT=... for another manifest).
	$(TESTBED) shoot apply -f $(or $(SHOOT),example/shoot.yaml)

shoot-down: $(TESTBED) ## Delete the Shoot of example/shoot.yaml and wait for the deletion (SHOOT=... for another manifest).
	$(TESTBED) shoot delete -f $(or $(SHOOT),example/shoot.yaml)

.PHONY: $(TESTBED)
$(TESTBED):
	@[ -e $@ ] || echo "building $@: some minutes the first time"
	@go build -trimpath -buildvcs=false -o $@ ./test/testbed/cmd/testbed

##@ Product

.PHONY: build images
build: ## Build the controller, the cache server and the distribution registry as static binaries in bin/.
	go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/...
	cd hack/distribution && go build -trimpath -buildvcs=false -ldflags '-s -w' -o $(CURDIR)/bin/distribution tool

images: build ## Write OCI images of these binaries as archives to bin/images/ (VERSION=... sets the tag).
	go run ./hack/images --binaries bin --output bin/images --tag $(VERSION)

##@ Development

.PHONY: generate check lint envtest test e2e clean
generate: ## Generate deepcopy functions, the API reference and the generated parts of the documentation.
	$(TOOL) controller-gen object:headerFile=hack/boilerplate.go.txt paths=./pkg/apis/...
	$(TOOL) crd-ref-docs --log-level=ERROR --source-path=pkg/apis/registry --renderer=markdown --output-path=docs/api-reference.md \
	  --config=hack/apireference/config.yaml --templates-dir=hack/apireference/templates
	go test ./test/e2e -count=1 -run '^TestDocument$$' -args -update
	go run ./test/bench/runs publish

check: shellcheck ## Check formatting, linters, modules, licence headers, commits, links, workflows and generated files.
	@.ci/check $(MODULES)

lint: ## Run golangci-lint, a part of "make check", in the main module.
	go tool -modfile=$(CURDIR)/hack/golangci-lint/go.mod golangci-lint run

envtest: $(TESTBED) ## Build the control plane programs that the life cycle tests of "make test" run; some minutes, once.
	$(TESTBED) programs

# The programs of other modules are built first: a compiler that runs concurrently delays tests that measure durations. The
# life cycle tests run last because their kube-apiservers have the same effect. test/bench and the command testbed cannot be
# linked with the race detector: a dependency imports package plugin, which conflicts with the C code of another dependency.
# test/differential measures durations of pulls, which the race detector multiplies.
test: shellcheck ## Run unit and integration tests with the race detector; they need no cluster.
	@for module in conformance distribution containerd-pull promql; do \
	  echo "building test programs: hack/$$module"; \
	  case $$module in containerd-pull|promql) packages=./... ;; *) packages=tool ;; esac; \
	  (cd hack/$$module && go build -trimpath -o /dev/null $$packages) || exit 1; \
	done
	$(call GOTESTSUM,specs) -- -run '^Test(Document|SpecProof|MutationsNameSpecs|StoryLabels|OutputHasNoColour)$$' ./test/e2e
	$(call GOTESTSUM,unit) --raw-command -- .ci/race -timeout 15m $$(go list ./... | grep -v -e /test/e2e -e /pkg/extension/lifecycle -e '/test/bench$$' -e /cmd/testbed -e '/test/differential$$')
	$(call GOTESTSUM,memory) -- -p 1 -run 'NeedLittleMemory$$' ./pkg/oci ./pkg/cacheserver/upstream ./pkg/cacheserver/manifests
	$(call GOTESTSUM,without-race) -- ./test/bench ./test/testbed/cmd/testbed ./test/differential
	$(call GOTESTSUM,lifecycle) --raw-command -- .ci/race -timeout 30m ./pkg/extension/lifecycle

.PHONY: shellcheck
shellcheck:
	@command -v shellcheck >/dev/null || { echo "installing the Debian package shellcheck"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends shellcheck >/dev/null; }

e2e: ## Run user stories on the testbed, which is created if necessary (FOCUS=... and LABELS=... select stories).
	nice -n 5 go test ./test/e2e -count=1 -v -timeout 120m -args -ginkgo.v -ginkgo.junit-report=$(REPORTS)/e2e.xml \
	  $(if $(FOCUS),-ginkgo.focus='$(FOCUS)') $(if $(LABELS),-ginkgo.label-filter='$(LABELS)')

.PHONY: e2e-testbed
e2e-testbed: ## Test the testbed itself on the cluster of kind-up: volume size limits and expansion, node agents.
	TESTBED_CLUSTER=registry-cache $(call GOTESTSUM,e2e-testbed) --format standard-verbose -- -count=1 -timeout 20m -run Cluster \
	  ./test/testbed/volumes ./test/testbed/gardenlet

.PHONY: mutations
mutations: ## Inject bugs into the product and verify that the named story and test fail (RUN=..., EXEC=command prefix).
	go run ./test/mutations/run $(if $(RUN),-run '$(RUN)') $(if $(EXEC),-exec '$(EXEC)')

.PHONY: interop
interop: ## Pull with all clients from all upstreams, directly and through the cache, and write the page of the results (RUN=...).
	@mkdir -p bin/interop
	nice -n 5 go test ./test/interop -count=1 -v -timeout 150m -run '$(or $(RUN),TestInteroperability)' -artifacts -outputdir $(CURDIR)/bin/interop \
	  -args -interop -interop.page=$(CURDIR)/docs/development/interoperability.md

.PHONY: bench bench-check bench-page bench-store
bench: ## Benchmark the cache server, the distribution registry, direct pulls and testbed nodes (RUN=..., ROUNDS=3, QUICK=1).
	go run ./test/bench $(if $(RUN),-run '$(RUN)') $(if $(ROUNDS),-rounds $(ROUNDS)) $(if $(QUICK),-quick)

bench-check: ## Compare the ratios of a benchmark run with their ranges (RUN=bin/bench/<run>, default: the latest run).
	@go run ./test/bench/runs check -run '$(or $(RUN),$(patsubst %/results.json,%,$(lastword $(sort $(wildcard bin/bench/2*/results.json)))))'

bench-page: ## Render the report page and the input of benchstat to bin/bench/<run> (RUN=docs/benchmarks/<run>, default: the latest).
	@go run ./test/bench/runs page -run '$(or $(RUN),$(lastword $(sort $(wildcard docs/benchmarks/2*))))'

bench-store: ## Store a benchmark run as the published one and as the baseline of bench-check (RUN=bin/bench/<run>).
	go run ./test/bench/runs store -run '$(RUN)'

clean: kind-down ## Delete the testbed, the node image and all other build results.
	$(TESTBED) clean
	rm -rf bin
