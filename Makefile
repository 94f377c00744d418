# `make help` lists the targets. Everything is a script or a cargo command; this file only names them.
export PATH := $(HOME)/.cargo/bin:$(PATH)
CASES ?= 20000
SEEDS ?= 2000

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

fuzz: ## property tests with CASES=20000 cases each
	PROPTEST_CASES=$(CASES) cargo test --workspace --locked --lib

simulate: ## the simulation over SEEDS=2000 seeds
	KILN_SEEDS=$(SEEDS) cargo test -p kiln-tests --locked --test simulation

deny: ## licences, advisories, duplicates (needs cargo-deny)
	@command -v cargo-deny >/dev/null || { echo "cargo-deny is not installed: cargo install --locked cargo-deny"; exit 1; }
	cargo deny --all-features check

clean-rig: ## stop the rig's servers, remove its data and images
	@rig/down --purge

.PHONY: help demo test lint proto fmt bench fuzz simulate deny clean-rig
