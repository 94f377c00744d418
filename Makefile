# `make help` lists the targets. Everything is a script or a cargo command; this file only names them.
export PATH := $(HOME)/.cargo/bin:$(PATH)
CASES ?= 20000
SEEDS ?= 100000
ROUNDS ?= 1

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

demo: ## build a real git repository in Docker, from submission to artifact
	@demo/run

test: lint proto ## everything: format, clippy, docs, proto, unit, both databases, scenarios, rigs
	@rig/test

lint: ## format, clippy and rustdoc, warnings denied
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked --quiet

proto: ## buf lint, and buf breaking against the last landed main
	@rig/proto

fmt: ## format the code
	cargo fmt --all

bench: ## measure; one line a figure
	@rig/bench

fuzz: ## fuzz targets with 10 × CASES=20000 inputs each, property tests with CASES
	KILN_FUZZ_CASES=$(CASES)0 cargo test -p kiln-tests --locked --test fuzz -- --show-output
	PROPTEST_CASES=$(CASES) cargo test --workspace --locked --lib

simulate: ## the simulation over SEEDS=100000 seeds, optimised; a failure is told as a short story
	KILN_SEEDS=$(SEEDS) cargo test -p kiln-tests --locked --profile simulation --test simulation -- --show-output

chaos: ## break real processes in every listed way, ROUNDS=1 each; FAULT=name and DB=sqlite|postgres choose
	@rig/chaos --rounds $(ROUNDS) $(if $(FAULT),--fault $(FAULT)) $(if $(DB),--database $(DB)) $(if $(SEED),--seed $(SEED))

deny: ## licences, advisories, duplicates (needs cargo-deny)
	@command -v cargo-deny >/dev/null || { echo "cargo-deny is not installed: cargo install --locked cargo-deny"; exit 1; }
	cargo deny --all-features check

clean-rig: ## stop the rig's servers, remove its data and images
	@rig/down --purge

.PHONY: help demo test lint proto fmt bench fuzz simulate chaos deny clean-rig
