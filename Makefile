# The two commands: `make demo` and `make test`. Each sets up what it needs by itself.
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv/bin
export PATH := $(CURDIR)/$(VENV):$(PATH)
DEMO := .lab/demo/hosts.ini
SCENARIOS := docker nvidia_container_toolkit model_store ollama open_webui demo
# Compilers and gigabytes of wheels: tens of minutes each.
LONG_SCENARIOS := cuda_toolkit nvidia_driver llama_cpp llama_cpp_cuda vllm vllm_multi_node standard flagship ktransformers
HOST ?= deb12
PROJECT ?= lab

.PHONY: help setup demo demo-down test test-fast test-all lint unit contract wheel hosts molecule docs lab-up lab-down lab-shell bench clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/.ready ## Make .venv with dsprov and all tools (about a minute)

.venv/.ready: pyproject.toml uv.lock tools/setup.sh
	@tools/setup.sh

demo: setup ## Provision a real host and chat with it (first time 15 minutes, then 1)
	@python -m tests.lab up --project demo --host appliance=debian-12
	dsprov install --tier demo -i $(DEMO)
	dsprov status -i $(DEMO)
	python -m tests.lab.chat -i $(DEMO)

demo-down: setup ## Take the demo's host away
	@python -m tests.lab down --project demo

# Two lanes where neither waits for the other's processor: what needs no hosts beside what waits for them.
test: setup ## Everything that takes minutes (first time an hour, then 40 minutes)
	@$(MAKE) -j2 test-fast hosts
	$(MAKE) molecule

test-fast: setup ## What needs no hosts (under 2 minutes)
	@MAKEFLAGS=--no-print-directory $(MAKE) lint unit contract wheel

test-all: test ## Everything, and what takes hours: kills at random moments, downloads of 2 GiB, compilers, vLLM
	@pytest -q tests/hosts tests/engines -m slow
	$(MAKE) molecule SCENARIOS='$(LONG_SCENARIOS)'

lint: setup ## ruff, mypy, yamllint, ansible-lint
	@ruff check .
	ruff format --check .
	mypy
	yamllint -s .
	ansible-lint --offline

unit: setup ## Pure logic, modules, command line
	@pytest -q tests/unit -n 2

contract: setup ## Data, docs and argument specs agree
	@pytest -q tests/contract -n 2 -m 'not slow'

wheel: setup ## The wheel in a clean environment
	@pytest -q tests/contract -m slow

hosts: setup ## The command line against real hosts: bad input, a dead host, secrets
	@pytest -q tests/hosts -m 'not slow'

molecule: setup ## Every scenario on Debian 12 and 13
	@mkdir -p .lab/log
	for scenario in $(SCENARIOS); do
	  echo "== molecule $$scenario"
	  molecule test -s $$scenario 2>&1 | tee .lab/log/$$scenario || {
	    echo "== molecule $$scenario failed (all of it: .lab/log/$$scenario):"
	    grep -aE 'FAILED|fatal:|\] E  | E   ' .lab/log/$$scenario | tail -30
	    exit 1
	  }
	done

docs: setup ## Write docs/reference anew
	@python tools/reference.py

lab-up: setup ## Real hosts deb12 and deb13
	@python -m tests.lab up --project $(PROJECT)

lab-down: setup ## Take them away
	@python -m tests.lab down --project $(PROJECT)

lab-shell: setup ## A shell on one of them: make lab-shell HOST=deb13
	@python -m tests.lab shell --project $(PROJECT) $(HOST)

bench: setup ## Start-up, planning and overhead as ratios
	@bench/startup
	bench/plan

clean: ## Remove .venv and caches of tools (not the lab's cache)
	@rm -rf .venv .*_cache dist
