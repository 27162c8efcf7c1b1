# `make run` and `make test` do everything from a fresh clone. `make help` lists the rest.
BUILD := build/release
OUT ?= runs/demo
SHELL := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help setup configure build run test bench check format asan clean

help:  ## what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1|/' | column -t -s '|'

setup:
	@scripts/setup

configure: setup
	@mkdir -p build
	@cmake --preset release > build/configure.log 2>&1 || { cat build/configure.log; exit 1; }

build: configure  ## build/release/weir and build/release/libweir.so
	@cmake --build --preset release --target weir weir_program

run: build  ## train the demo on real text (about three minutes), then write from it
	@$(BUILD)/weir train --config examples/demo.toml --out $(OUT) --resume auto
	@$(BUILD)/weir generate $(OUT) --prompt "def " --max-new-tokens 300 --seed 1

test: configure  ## build and run all tests
	@scripts/setup tests
	@cmake --build --preset release
	@ctest --preset release

bench: configure  ## the benchmarks; writes build/bench.json and prints a table
	@cmake --build --preset release --target benchmarks
	@scripts/bench $(BUILD)

check: setup  ## formatting and the rules between the layers
	@scripts/check_layers
	@scripts/format --check

format:  ## format all sources
	@scripts/format

asan: setup  ## kernels, operators and config under the address and undefined-behaviour sanitizers
	@cmake --preset asan > /dev/null
	@cmake --build --preset asan --target kernels_tests ops_tests config_tests
	@ctest --preset asan

clean:  ## remove what was built (not .venv, not runs)
	rm -rf build
