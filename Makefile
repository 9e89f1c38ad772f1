# Martlet: every command a user or a developer needs. `make help` lists them.

PREFIX ?= /usr/local
# How long `make fuzz` runs each target, and `make stress` each stress test.
SECONDS ?= 60
CONFIGURATION := release
SWIFT ?= swift
PRODUCT := .build/$(CONFIGURATION)/martlet

# One configuration is built for everything, so that `make run`, `make test` and `make install` share their products.
export SWIFT CONFIGURATION PRODUCT

.DEFAULT_GOAL := help
.PHONY: help run build test bench bench-core bench-clients stress fuzz sanitize mutants oracle format install clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Install what is missing, build, and boot the default guest
	@Tools/run.sh

build: ## Build the command and the library that it has programs load (release)
	$(SWIFT) build -c $(CONFIGURATION) --product martlet
	$(SWIFT) build -c $(CONFIGURATION) --product martlet-kvm

test: ## Install what is missing, build, and run every test
	@Tools/test.sh

bench: ## Install what is missing, build, and compare with the host and with QEMU (MARTLET_BENCH_RUNS=7)
	@Tools/bench.sh

bench-core: ## Install what is missing, build, and compare the core's structures with C libraries (MARTLET_BENCH_RUNS=301)
	@Tools/bench-core.sh

bench-clients: ## Install what is missing, build, and measure clients of KVM on Martlet (MARTLET_BENCH_RUNS=5)
	@Tools/bench-clients.sh

stress: ## Run the seeded stress tests of what threads share, SECONDS=60 each, plain and under the thread sanitizer
	@SECONDS_EACH='$(SECONDS)' Tools/stress.sh

fuzz: ## Fuzz loader, translator and requests, SECONDS=60 each
	@SECONDS_EACH='$(SECONDS)' Tools/fuzz.sh

sanitize: ## Run the tests of the core under the thread and the address sanitizer
	@Tools/sanitize.sh

mutants: ## Break the translator in a copy, one rule at a time, and check that the tests notice
	@Tools/mutants.sh

oracle: ## Compare with a real KVM, that of a Linux in QEMU with emulated virtualization, and boot guests on it
	@Tools/oracle.sh

format: ## Format every Swift file as .swift-format says
	$(SWIFT) format --in-place --recursive --parallel Package.swift Sources Tests \
	    Benchmarks Fuzz

install: build ## Install the command and its completions under PREFIX (/usr/local)
	@Tools/install.sh '$(DESTDIR)$(PREFIX)'

clean: ## Remove build products (the cached guests stay)
	rm -rf .build
