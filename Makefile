# crishim: a CRI server on a Docker Engine or its own engine. `make help` says what there is; `make run` and `make test` need
# nothing but Go >= 1.26, make and git on a Debian machine, and install the rest.
SHELL := /bin/sh
.DEFAULT_GOAL := build

ifndef VERSION
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
endif
ifndef ARCH
ARCH := $(shell go env GOARCH 2>/dev/null)
endif
LDFLAGS := -s -w -X main.version=$(VERSION)
GOBUILD = CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'
# Everything but the end-to-end tests, which run after the rest and one package at a time.
UNIT = $$(go list ./... | grep -v '^crishim/e2e')
# The packages with a test that asks how much of its row it is to run.
COUNTED = $$(go list -tags failpoint -f '{{range .TestImports}}{{if eq . "crishim/internal/rowsize"}}{{$$.ImportPath}}{{end}}{{end}}' ./... | grep -v '^crishim/e2e')
FUZZTIME ?= 30s
SOAK ?= 30m
ENGINE ?= 20.10

.PHONY: help
help: ## this list
	@echo 'crishim $(VERSION). make TARGET:'
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | sort | awk -F '\t' '{printf "  %-12s %s\n", $$1, $$2}'

.PHONY: need
need: # one clear line where a prerequisite is absent
	@hack/need.sh

.PHONY: helper
helper: need # the native engine's static helper, which the build embeds
	@hack/helper.sh '$(ARCH)' '$(VERSION)'

.PHONY: build
build: helper ## bin/crishim for this machine or ARCH, static, with the native engine's helper in it (the default)
	GOOS=linux GOARCH='$(ARCH)' $(GOBUILD) -o bin/crishim ./cmd/shim

.PHONY: build-all
build-all: need ## bin/crishim-linux-amd64 and -arm64
	for arch in amd64 arm64; do hack/helper.sh $$arch '$(VERSION)' && GOOS=linux GOARCH=$$arch $(GOBUILD) -o bin/crishim-linux-$$arch ./cmd/shim || exit 1; done

.PHONY: run
run: build ## a node on this machine: pod network, crishim, and `crishim check`; ENGINE=docker or native, else what is here
	@hack/run.sh $(if $(filter-out file,$(origin ENGINE)),$(ENGINE))

.PHONY: test
test: helper ## everything: unit, golden and contract tests under the race detector, then end to end on a real dockerd and on the native engine
	@hack/packages.sh test
	go test -race -run '^$$' $(UNIT) >/dev/null # builds with all cores
	@go build -o .cache/results ./hack/results
	.cache/results .cache/unit.json go test -race -timeout 40m -p 2 -json $(UNIT)
	go test -race -tags failpoint ./internal/failpoint
	.cache/results .cache/steps.json go test -count=1 -tags failpoint -run EveryStep -json ./engine/native
	@# Beside each other: most of their time they wait.
	@hack/test-engine.sh native & native=$$! status=0; \
		.cache/results .cache/e2e-20.10.json go test -count=1 -timeout 60m -p 1 -json ./e2e/... || \
			{ echo 'the end-to-end tests on Docker 20.10 failed' >&2; status=1; }; \
		wait $$native || { echo 'the end-to-end tests on the native engine failed' >&2; status=1; }; \
		exit $$status

.PHONY: record
record: need ## keeps the results of the last `make test`, and of what else was run in whole since, in docs/reliability.md
	go test -count=1 -run TestThePage ./internal/reliability -args -update -record $(addprefix "$(CURDIR)"/.cache/,$(sort unit.json steps.json e2e-20.10.json e2e-native.json $(notdir $(wildcard $(addprefix .cache/,vm-*.json e2e-*.json counts*.json crash*.json)))))

.PHONY: unit
unit: helper ## the part of `make test` that needs neither root nor dockerd
	go test -race $(UNIT)

.PHONY: e2e
e2e: helper ## the part of `make test` on a real dockerd; RUN=REGEXP picks tests
	@hack/packages.sh test
	go test -count=1 -timeout 30m -p 1 -run '$(RUN)' ./e2e/...

.PHONY: test-engine test-docker
test-engine: helper ## the end-to-end tests on ENGINE=native, 20.10, 28, 29 or the path of a dockerd; RUN=REGEXP picks, CORE=1 is the core
	@CORE='$(CORE)' hack/test-engine.sh '$(ENGINE)' '$(RUN)'
test-docker: test-engine

.PHONY: test-kubelet
test-kubelet: helper ## pods by real kubelets (1.37, 1.22) and a one-node cluster, on ENGINE=docker, native, 28 …; RUN=REGEXP picks, CORE=1 is a part on docker and native
	@CORE='$(CORE)' hack/test-kubelet.sh '$(if $(filter-out file,$(origin ENGINE)),$(ENGINE))' '$(RUN)'

.PHONY: demo-cluster
demo-cluster: build ## a Kubernetes cluster of this one machine on crishim, with kubectl and what to try; ENGINE=docker or native, else what is here
	@hack/demo-cluster.sh $(if $(filter-out file,$(origin ENGINE)),$(ENGINE))

.PHONY: test-vm
# The package is unpacked at once; compressing it takes longer than all tests of the core.
test-vm: export DEB_COMPRESSION = none
test-vm: deb ## systemd, cgroup v2, AppArmor: the native engine and the service in an emulated machine; RUN=REGEXP picks steps, CORE=1 is the core
	@CORE='$(CORE)' hack/test-vm.sh '$(RUN)'

.PHONY: matrix
matrix: helper ## all end-to-end tests, and all by kubelets, on ENGINES: native, 20.10, 28, 29, and kubelets on both engines at once (hours)
	@hack/matrix.sh $(or $(ENGINES),native 20.10 both 28 29)

.PHONY: bench
bench: need ## one table: crishim, Docker alone, CNI alone, a peer; PARTS=REGEXP picks, ENGINE=native, COUNT= ROUNDS= PODS= MIB= PEER=unix://SOCKET
	@hack/packages.sh test
	@E2E_ENGINE='$(filter native,$(ENGINE))' COUNT='$(COUNT)' ROUNDS='$(ROUNDS)' PODS='$(PODS)' MIB='$(MIB)' PEER='$(PEER)' PARTS='$(PARTS)' \
		go test -count=1 -timeout 0 -run '^$$' -bench BenchmarkNode -benchtime 1x ./e2e/bench

.PHONY: bench-go
bench-go: need ## the Go benchmarks of single packages
	go test -run '^$$' -bench . -benchmem $(UNIT)

.PHONY: fuzz
fuzz: need ## every fuzz test for FUZZTIME (30s)
	@hack/fuzz.sh $(FUZZTIME)

.PHONY: soak
soak: helper ## random work and faults for SOAK (30m), under the race detector, on a real dockerd or ENGINE=native; docs/reliability.md then shows it
	@hack/packages.sh test
	E2E_ENGINE='$(filter native,$(ENGINE))' E2E_RACE=1 E2E_SOAK=$(SOAK) E2E_SOAK_REPORT="$(CURDIR)/internal/reliability/soak$(if $(filter native,$(ENGINE)),-native).json" go test -count=1 -timeout 0 -v -run '^TestSoak$$' ./e2e; \
		status=$$?; go test -count=1 -run TestThePage ./internal/reliability -update && exit $$status

# The counts of the rows of docs/reliability.md that `make test` runs at sizes of seconds; those of time are in `make soak`.
.PHONY: counts
counts: helper ## the rows' full counts and limits of time, of which `make test` runs seconds, on a machine that does nothing else (root, hours); ENGINE=28 … for the end-to-end ones
	@hack/packages.sh test
	@go build -o .cache/results ./hack/results
	E2E_COUNTS=full .cache/results .cache/counts.json go test -count=1 -timeout 0 -p 1 -tags failpoint -json $(COUNTED)
	E2E_SOAK=3m go test -count=1 -timeout 0 -race -v -run '^TestR12RandomCallsAreLinearizable$$' ./server
	E2E_COUNTS=full hack/test-engine.sh '$(ENGINE)'

.PHONY: crash
crash: helper ## every power cut, crash, failing step and passed deadline that `make test` samples, and all pairs of them (hours); ENGINE=native
	@hack/packages.sh test
	@go build -o .cache/results ./hack/results
	E2E_CRASH=all .cache/results .cache/crash.json go test -count=1 -timeout 0 -json -run 'PowerCut' ./internal/atomicfile ./state ./engine/native/image ./engine/native/checkpoint
	E2E_ENGINE='$(ENGINE)' E2E_CRASH=all .cache/results .cache/crash-$(ENGINE).json go test -count=1 -timeout 0 -json -run '^Test(DaemonDies|MonitorDies|EachStepFails|DeadlinePasses)' ./e2e

.PHONY: lint
lint: need ## gofmt, go vet and staticcheck, clean
	@hack/lint.sh

.PHONY: deb
deb: build ## a Debian package in dist/, in the place of an older one
	@hack/deb.sh '$(VERSION)' '$(ARCH)'

.PHONY: image
image: need ## a container image, by docker
	docker build --build-arg VERSION='$(VERSION)' -t crishim:'$(VERSION)' .

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist .cache engine/native/helper/embedded/*/crishim-monitor
