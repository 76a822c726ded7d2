# SPDX-License-Identifier: Apache-2.0

# "make" lists the targets. Nothing is fetched or run while this file is read.

MAKEFLAGS += --no-print-directory --no-builtin-rules
.DEFAULT_GOAL := help

VERSION ?= dev
WORKERS ?= 2
# Of the stories, the soak is run by its label alone.
LABELS ?= !soak
# Folders with a go.mod of their own: what is heavy and only built, never imported.
MODULES := . $(patsubst %/go.mod,%,$(wildcard hack/*/go.mod hack/kind/*/go.mod))
TOOL    := go tool -modfile=$(CURDIR)/hack/tools/go.mod
TESTBED := bin/testbed

# Everything is static, and built the same way everywhere so that Go's build cache serves all targets. Only the race
# detector needs cgo.
export CGO_ENABLED := 0

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Testbed

.PHONY: demo kind-up kind-down shoot-up shoot-down
demo: $(TESTBED) ## From nothing to a Shoot with caches; pulls an image twice and shows where each byte came from.
	$(TESTBED) demo --workers $(WORKERS)

kind-up: $(TESTBED) ## Make or repair the kind-based Shoot (WORKERS=2, NODE_IMAGE=...).
	$(TESTBED) up --workers $(WORKERS)

kind-down: $(TESTBED) ## Remove every trace of the cluster; what is expensive to build stays ("make clean" removes it).
	$(TESTBED) down

shoot-up: $(TESTBED) ## Apply example/shoot.yaml and wait until it is reconciled (SHOOT=... for another manifest).
	$(TESTBED) shoot apply -f $(or $(SHOOT),example/shoot.yaml)

shoot-down: $(TESTBED) ## Delete the Shoot of example/shoot.yaml and wait until it is gone.
	$(TESTBED) shoot delete -f $(or $(SHOOT),example/shoot.yaml)

.PHONY: $(TESTBED)
$(TESTBED):
	@[ -e $@ ] || echo "building $@: some minutes the first time"
	@go build -trimpath -buildvcs=false -o $@ ./test/testbed/cmd/testbed

##@ Product

.PHONY: build images
build: ## Build the controller, the cache server and the stock registry as static binaries into bin/.
	go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/...
	cd hack/distribution && go build -trimpath -buildvcs=false -ldflags '-s -w' -o $(CURDIR)/bin/distribution tool

images: build ## Write the OCI images of the three as archives into bin/images/ (VERSION=... is the tag).
	go run ./hack/images --binaries bin --output bin/images --tag $(VERSION)

##@ Development

.PHONY: generate check envtest test e2e clean
generate: ## Generate deepcopy functions, the API reference, the table of what the stories prove, and what shows the stored benchmarks.
	$(TOOL) controller-gen object:headerFile=hack/boilerplate.go.txt paths=./pkg/apis/...
	$(TOOL) crd-ref-docs --log-level=ERROR --source-path=pkg/apis/registry --renderer=markdown --output-path=docs/api-reference.md \
	  --config=hack/apireference/config.yaml --templates-dir=hack/apireference/templates
	go test ./test/e2e -count=1 -run '^TestDocument$$' -args -update
	go run ./test/bench/runs publish

check: shellcheck ## Formatting, vet, staticcheck, shellcheck, tidy modules, up-to-date generated files.
	@.ci/check $(MODULES)

envtest: $(TESTBED) ## Build the programs of the control planes that "make test" runs the extension's life cycle on; minutes, once.
	$(TESTBED) programs

# Built first, because a compiler beside them would slow tests down that look at time; so would kube-apiservers, whose tests
# come last. What runs the benchmarks has a dependency that uses plugins, which cannot be linked with the race detector's and
# another one's C code.
test: shellcheck ## Unit and integration tests with the race detector; no cluster.
	@for module in conformance distribution containerd-pull promql; do \
	  echo "building what tests run: hack/$$module"; \
	  case $$module in containerd-pull|promql) packages=./... ;; *) packages=tool ;; esac; \
	  (cd hack/$$module && go build -trimpath -o /dev/null $$packages) || exit 1; \
	done
	go test -run '^Test(Document|SpecProof|MutationsNameSpecs)$$' ./test/e2e
	CGO_ENABLED=1 go test -race -timeout 15m $$(go list ./... | grep -v -e /test/e2e -e /pkg/extension/lifecycle -e '/test/bench$$')
	go test ./test/bench
	CGO_ENABLED=1 go test -race -timeout 30m ./pkg/extension/lifecycle

.PHONY: shellcheck
shellcheck:
	@command -v shellcheck >/dev/null || { echo "installing the Debian package shellcheck"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends shellcheck >/dev/null; }

e2e: ## User stories on the kind-based Shoot; makes what is missing (FOCUS=... and LABELS=... select).
	go test ./test/e2e -count=1 -v -timeout 120m -args -ginkgo.v $(if $(FOCUS),-ginkgo.focus='$(FOCUS)') $(if $(LABELS),-ginkgo.label-filter='$(LABELS)')

.PHONY: e2e-testbed
e2e-testbed: ## What the testbed itself promises, on the cluster of kind-up: claims that fill and grow, agents that apply.
	TESTBED_CLUSTER=registry-cache go test -count=1 -v -timeout 20m -run Cluster ./test/testbed/volumes ./test/testbed/gardenlet

.PHONY: mutations
mutations: ## Break the product on purpose, and show which story and which test fail then (RUN=..., EXEC=a command that runs others).
	go run ./test/mutations/run $(if $(RUN),-run '$(RUN)') $(if $(EXEC),-exec '$(EXEC)')

.PHONY: bench bench-check bench-page bench-store
bench: ## The cache server beside the stock registry and no cache, and nodes of the kind-based Shoot (RUN=..., ROUNDS=3, QUICK=1).
	go run ./test/bench $(if $(RUN),-run '$(RUN)') $(if $(ROUNDS),-rounds $(ROUNDS)) $(if $(QUICK),-quick)

bench-check: ## Hold the ratios of a recorded run against their ranges (RUN=bin/bench/<run>, by default the last one).
	@go run ./test/bench/runs check -run '$(or $(RUN),$(patsubst %/results.json,%,$(lastword $(sort $(wildcard bin/bench/2*/results.json)))))'

bench-page: ## Render the page with all charts and the input of benchstat into bin/bench/<run> (RUN=docs/benchmarks/<run>).
	@go run ./test/bench/runs page -run '$(or $(RUN),$(lastword $(sort $(wildcard docs/benchmarks/2*))))'

bench-store: ## Make a recorded run the one that the README shows and bench-check compares with (RUN=bin/bench/<run>).
	go run ./test/bench/runs store -run '$(RUN)'

clean: kind-down ## Also remove the node image and everything else that was built.
	$(TESTBED) clean
	rm -rf bin
