# What a user and a developer do with the project. `make help` lists it.
#
# demo and test set up what they need on Debian 12 and 13 (scripts/setup.sh says what it installs); the others
# expect it to be there: `make setup`.
#
# VARNISH=vinyl-9.0 builds for, tests with and shows Vinyl Cache 9.0 instead of the installed Varnish. It comes below
# target/vinyl-9.0 (scripts/setup-vinyl.sh) and is built there.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

# rustup's place, for shells that were not told
export PATH := $(PATH):$(HOME)/.cargo/bin

CARGO   ?= cargo
TARGET  := $(or $(CARGO_TARGET_DIR),target)
VARNISHES := vinyl-9.0
ifeq ($(VARNISH),)
RELEASE := $(TARGET)/release
else
ifeq ($(filter $(VARNISH),$(VARNISHES)),)
$(error VARNISH=$(VARNISH) is not known: $(VARNISHES), or nothing for the installed Varnish)
endif
ifneq ($(filter install uninstall bench profile lint cache-tests,$(MAKECMDGOALS)),)
$(error VARNISH=$(VARNISH) is for build, test, in-flight, persist-rounds, demo and conformance: $(filter install uninstall bench profile lint cache-tests,$(MAKECMDGOALS)) uses the installed Varnish)
endif
RELEASE := $(TARGET)/$(VARNISH)/release
# In front of a command: with that product's programs, headers and build.
WITH    := . $(TARGET)/$(VARNISH)/env && OBJM_BUILD_DIR=$(abspath $(RELEASE))
BUILD   := . $(TARGET)/$(VARNISH)/env && CARGO_TARGET_DIR=$(TARGET)/$(VARNISH)
endif
BUILT   := -p stevedore_objmapper -p vmod_objmapper -p objmapper-server -p objmapperctl

# Where `make install` puts things: as the installed Varnish or Vinyl Cache says. DESTDIR and these can be given.
varnish_var  = $(shell pkg-config --variable=$(1) varnishapi 2>/dev/null || pkg-config --variable=$(1) vinylapi)
enginedir   ?= $(patsubst %/vmods,%,$(vmoddir))
vmoddir     ?= $(call varnish_var,vmoddir)
vcldir      ?= $(call varnish_var,vcldir)
sbindir     ?= $(call varnish_var,sbindir)
bindir      ?= $(call varnish_var,bindir)

.PHONY: help setup setup-bench build test in-flight persist-rounds demo install uninstall lint conformance cache-tests bench profile clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## install what build, tests and demo need (Debian 12, 13; root or sudo)
	@scripts/setup.sh
ifneq ($(VARNISH),)
	@scripts/setup-vinyl.sh $(TARGET)/$(VARNISH)
endif

build: $(if $(VARNISH),setup) ## release build: the engine, the VMOD, objmapperd, objmapperctl in target/release
	$(BUILD) $(CARGO) build --release --locked $(BUILT)
	@ls -l $(RELEASE)/libstevedore_objmapper.so $(RELEASE)/libvmod_objmapper.so $(RELEASE)/objmapperd $(RELEASE)/objmapperctl

# What knows no varnishd is not tested again for another one; the guide is about Debian's Varnish.
test: setup build ## unit, integration and varnishtest cases; VARNISH=vinyl-9.0: those with varnishd, with that
ifeq ($(VARNISH),)
	@scripts/test.sh $(CARGO) test --locked --no-fail-fast --workspace
else
	@$(WITH) scripts/test.sh $(CARGO) test --locked --no-fail-fast -p objmapper-harness $(addprefix --test ,$(filter-out docs guide,\
	    $(basename $(notdir $(wildcard tests/harness/tests/*.rs)))))
endif

in-flight: build ## for MINUTES=10: bodies that go while their pages are on the way to slow readers
	$(WITH) OBJM_IN_FLIGHT_SECONDS=$$(( $(or $(MINUTES),10) * 20 )) \
	    $(CARGO) test --locked -p objmapper-harness --test in_flight -- --nocapture --test-threads=1

persist-rounds: build ## ROUNDS=200: varnishd is killed at random moments, and nothing stale or torn is found afterwards
	$(WITH) OBJM_PERSIST_ROUNDS=$(or $(ROUNDS),200) \
	    $(CARGO) test --locked -p objmapper-harness --test persist_rounds -- --nocapture

lint: ## format, clippy and documentation, with warnings as errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps
	scripts/lint-shell.sh

demo: setup build ## see it work with real programs; ONCE=1 ends by itself
	@$(or $(WITH),OBJM_BUILD_DIR=$(abspath $(RELEASE))) ONCE=$(ONCE) scripts/demo.sh

conformance: setup build ## Varnish's own test suite, with malloc and with the engine
	$(WITH) $(CARGO) run --locked --release -p objmapper-harness --bin conformance -- $(ARGS)

cache-tests: setup build ## the public suite http-cache-tests, with malloc and with engine and director (Node.js, npm)
	$(CARGO) run --locked --release -p objmapper-harness --bin cache-tests -- $(ARGS)

bench: setup-bench build ## against malloc, file, nginx: QUICK=1 takes 5 minutes; ONLY=hits,misses,mixed,objects,client,shared
	$(CARGO) build --locked --release -p objmapper-bench
	OBJM_BUILD_DIR=$(abspath $(RELEASE)) $(RELEASE)/bench --out $(or $(OUT),$(TARGET)/bench) \
	    $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY)) $(ARGS)

setup-bench:
	@scripts/setup.sh nginx

profile: build ## instructions, system calls, locks and allocations per hit, beside malloc's
	@scripts/setup.sh valgrind strace binutils
	@OBJM_BUILD_DIR=$(abspath $(RELEASE)) scripts/profile-hit.sh

install: ## into the installed Varnish's directories, below DESTDIR
	@test -n "$(vmoddir)" || { echo "pkg-config finds neither varnishapi nor vinylapi: run 'make setup'" >&2; exit 1; }
	@test -f $(RELEASE)/objmapperd || { echo "nothing built: run 'make build' first" >&2; exit 1; }
	install -d $(DESTDIR)$(enginedir) $(DESTDIR)$(vmoddir) $(DESTDIR)$(vcldir) $(DESTDIR)$(sbindir) $(DESTDIR)$(bindir)
	install -m 644 $(RELEASE)/libstevedore_objmapper.so $(DESTDIR)$(enginedir)/
	install -m 644 $(RELEASE)/libvmod_objmapper.so $(DESTDIR)$(vmoddir)/
	install -m 755 $(RELEASE)/objmapperd $(DESTDIR)$(sbindir)/
	install -m 755 $(RELEASE)/objmapperctl $(DESTDIR)$(bindir)/
	install -m 644 vcl/*.vcl $(DESTDIR)$(vcldir)/

uninstall: ## remove what install put there
	rm -f $(DESTDIR)$(enginedir)/libstevedore_objmapper.so $(DESTDIR)$(vmoddir)/libvmod_objmapper.so
	rm -f $(DESTDIR)$(sbindir)/objmapperd $(DESTDIR)$(bindir)/objmapperctl
	rm -f $(addprefix $(DESTDIR)$(vcldir)/,$(notdir $(wildcard vcl/*.vcl)))

clean: ## remove what was built
	$(CARGO) clean
