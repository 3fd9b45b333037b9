# cc-relay. `make` lists the targets; CI runs `make test`, `make check`, `make fuzz-ci`,
# `make rules` and `make e2e`.

# The newest Go of go.mod's toolchain line is fetched, even where go.env says
# local. To build with another: make GOTOOLCHAIN=go1.26.8 test
export GOTOOLCHAIN := auto
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Tools are pinned in a module of their own, so that the product's go.mod stays short.
TOOL := go tool -modfile='$(CURDIR)/tools/go.mod'
# Nested modules that hold code of ours: `./...` does not reach them.
NESTED := $(patsubst %/go.mod,%,$(wildcard e2e/go.mod bench/go.mod))
FUZZTIME ?= 60s
FUZZJOBS ?= 2
BENCHCOUNT ?= 1
CUTS ?= 100000
SEED ?= 1
SOAK_FOR ?= 10m
KILLS ?= 200
HOT := ./internal/ratelimit ./internal/keypool ./internal/messages ./internal/proxy

.PHONY: help build demo test check fmt vet lint tidy race vuln bench bench-pool faultbench soak soak-reload fuzz e2e rules faults crash cuts fuzz-ci leaks open

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: ## one static binary, ./cc-relay
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o cc-relay ./cmd/cc-relay

demo: ## see the relay at work against a simulated provider
	go run ./cmd/cc-relay demo

test: ## all tests
	go test ./...

check: fmt vet lint tidy race vuln ## everything a change must pass
	@echo 'check: passed'

fmt: ## gofmt changes nothing
	@bad=$$("$$(go env GOROOT)/bin/gofmt" -l .); \
	if [ -n "$$bad" ]; then printf 'gofmt -w these files:\n%s\n' "$$bad" >&2; exit 1; fi

vet: ## go vet, nested modules too
	go vet ./...
	@for m in $(NESTED); do (set -x; go -C "$$m" vet ./...); done

lint: ## golangci-lint, staticcheck included
	$(TOOL) golangci-lint run ./...
	@for m in $(NESTED); do (set -x; cd "$$m"; $(TOOL) golangci-lint run ./...); done

tidy: ## each go.mod and go.sum is what `go mod tidy` writes
	@for m in . tools $(NESTED); do (set -x; go -C "$$m" mod tidy -diff); done

# Benches that drive a relay in a process of its own have nothing there to race, and those
# in bench/pool replay each policy on one goroutine. What is skipped by name takes minutes of
# traffic to tell how much was served, and shares its concurrency with the other loads.
# Packages are tested in this order: what takes longest must not be alone at the end.
race: ## all tests under the race detector
	go test -race -skip '^(TestOrganizationsAddUp|TestTwoKeysOfOneOrganization|TestCachesAreUsedAsWithOneKey|TestAKeyDiesUnderLoad|TestLimitsAreCutUnderLoad)$$' ./internal/proxy $$(go list ./... | grep -vE '/bench/(crash|leaks|pool|soak)$$')

# govulncheck exits with 3 for a finding and 1 where its database cannot be had.
vuln: ## no known vulnerability is reachable
	@out=$$($(TOOL) govulncheck ./... 2>&1) && rc=0 || rc=$$?; \
	case "$$rc $$out" in \
	'1 '*'govulncheck: fetching vulnerabilities'*) echo "vuln: NOT CHECKED, no database: $${out##*$$'\n'}" ;; \
	*) printf '%s\n' "$$out"; exit "$$rc" ;; \
	esac

bench: ## Go benchmarks, then the load run
	go test -run='^$$' -bench=. -benchmem -count=$(BENCHCOUNT) $(HOT)
	go run ./bench

bench-pool: ## ways to choose a key, replayed in virtual time; SEED=1 is the first of five
	@rc=0; \
	go run ./bench/pool -seed=$(SEED) -check=ours || rc=1; \
	go run ./bench/pool -seed=$(SEED) -check=ours -policies=ours -scenario=dead,cut,cut-one,529,restart || rc=1; \
	exit $$rc

faultbench: ## failover scenarios against the built relay, in real time; writes docs/faultbench.md
	go run ./bench/fault -write docs/faultbench.md

soak: ## mixed traffic and faults against the built relay for SOAK_FOR=10m; nothing may be lost
	go run ./bench/soak -mixed -for=$(SOAK_FOR)

soak-reload: ## 100 reloads a minute under load for SOAK_FOR=10m; nothing may be lost
	go run ./bench/soak -for=$(SOAK_FOR)

faults: ## the tests of the catalogue of faults, row by row; writes docs/faults.md
	go run ./bench/matrix -write docs/faults.md

crash: ## kill -9 the relay under load, KILLS=200 times
	go run ./bench/crash -n=$(KILLS)

leaks: ## 1,000,000 fuzzed requests, and no secret and no prompt in any output
	go run ./bench/leaks

open: ## 8,000 open streams, 1,000 stalled readers, three times the load that is let in
	go run ./bench/open

cuts: ## CUTS=100000 answers cut at random places: none looks complete; SEED=0 is another run each time
	go run ./bench/cuts -n=$(CUTS) -seed=$(SEED)

# Package and name of every fuzz target, one a line.
FUZZ_TARGETS = grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' ./bench ./cmd ./internal | sed -E 's|/[^/]*:func | |' | sort

fuzz: ## every fuzz target for FUZZTIME=60s, FUZZJOBS=2 at a time
	@$(FUZZ_TARGETS) | xargs -P $(FUZZJOBS) -L 1 $(SHELL) -c ' \
		out=$$(go test -run="^$$" -fuzz="^$$2$$" -fuzztime=$(FUZZTIME) -parallel=1 "$$1" 2>&1) && rc=0 || rc=$$?; \
		printf "%s %s: %s\n" "$$1" "$$2" "$$(tail -n 1 <<<"$$out")"; \
		[ $$rc = 0 ] || printf "%s\n" "$$out"; \
		exit $$rc' fuzz

fuzz-ci: ## the same for 10s each, from the kept corpus: a minute and a half
	@$(MAKE) --no-print-directory fuzz FUZZTIME=10s FUZZJOBS=14

e2e: ## real clients against the built relay
	cd e2e && go test ./... -count=1

rules: ## Prometheus rules are valid and do what their tests say
	@command -v promtool >/dev/null || { echo 'promtool is missing: it is part of the Debian package prometheus' >&2; exit 1; }
	promtool check rules deploy/prometheus/rules.yml
	promtool test rules deploy/prometheus/rules_test.yml
