# Every target sets up first (apt packages, virtual environment); a second run finds it done.
#
#   make demo     a lab, real requests, every control process and the VIP's holder killed: about a
#                 minute (KEEP=1: the lab stays up)
#   make test     everything that must pass: check, tests/ in parallel, e2e/ serially, but for what is
#                 marked `lasting` there
#   make check    style and types
#   make e2e      the end-to-end suite alone (INVENTORY=ansible/e2e-hosts.ini: what of it runs on
#                 any machines, against those)
#   make sim      LBs that agree under every kind of trouble, on virtual time (SEEDS=, LBS=)
#   make sequences  TCP segments forged, lost, doubled and late, through the programs, beside a model
#                 of both ends and of the table (SEEDS=): a quarter of an hour for 100,000
#   make bench    what a packet costs, how many fit through, what TCP makes of it, failover: an hour
#   make e2e-machines  the playbooks against machines with systemd that it makes itself: minutes
#   make e2e-packages  the Debian packages, installed, upgraded, put back and purged in a layer above this
#                 machine's own file system: a minute or two
#   make deb      Debian packages, into build/deb; needs python3-venv and nothing else
#   make reference  the pages of docs/reference, from the code; make screenshots: those of the console
#   make consoles what many open consoles cost the API (CONSOLES=, NODES=)
#   make vm       the programs and each mode on Debian 12's own kernel, in an emulated machine: minutes
#   make e2e-vm   both of these: e2e-machines, on this machine's kernel, and vm, on an emulated one
#
# As root, or with sudo for what needs root: installing packages, and the lab.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
TESTS_READY := $(VENV)/.tests-ready

# Names of Debian 12 and Ubuntu 24.04. bpftool comes apart: see install_bpftool.
PACKAGES := python3-bpfcc linux-libc-dev python3-venv iproute2 nftables nginx-light iperf3 wrk \
            ethtool tcpdump curl haproxy keepalived libnginx-mod-stream procps util-linux \
            supervisor
# What these packages would start on this machine. The lab runs its own.
DAEMONS := nginx haproxy keepalived supervisor
# What the tests need besides: a browser for the console (Ubuntu has it as a snap only, under the
# name chromium-browser: there it has to be installed by hand), promtool, Perl for a script of docs/events.md,
# and Spin, with a compiler for what it makes of the model in tests/spin.
TEST_PACKAGES := chromium fonts-dejavu-core prometheus perl spin gcc
# What `make vm` needs besides; nothing of it starts by itself.
MACHINES_PACKAGES := debootstrap systemd-container openssh-client lintian vagrant
VM_PACKAGES := qemu-system-x86 seabios busybox-static cpio kmod

.PHONY: help setup check test unit e2e sim sequences demo bench vm e2e-vm e2e-machines e2e-packages deb clean

help:
	@sed -n 's/^#   //p' Makefile

setup: $(READY)

$(READY): pyproject.toml Makefile
	@missing=()
	for package in $(PACKAGES); do
	    [ "$$(dpkg-query --show --showformat='$${db:Status-Status}' $$package 2>/dev/null)" = installed ] \
	        || missing+=($$package)
	done
	export DEBIAN_FRONTEND=noninteractive
	APT_INSTALL="$(SUDO) env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
	    apt-get install --yes --no-install-recommends"
	if [ $${#missing[@]} -gt 0 ]; then
	    echo "installing $${missing[*]}"
	    # A daemon that comes with a package is kept from starting, now and at the next boot; one
	    # that was here before is left alone.
	    fresh=()
	    for daemon in $(DAEMONS); do
	        [[ " $${missing[*]} " =~ " $$daemon" ]] && fresh+=($$daemon.service)
	    done
	    systemd=; [ -d /run/systemd/system ] && systemd=yes
	    if [ $$systemd ] && [ $${#fresh[@]} -gt 0 ]; then
	        $(SUDO) systemctl mask --runtime $${fresh[@]}
	    fi
	    $(SUDO) apt-get update
	    $$APT_INSTALL $${missing[@]}
	    if [ $$systemd ] && [ $${#fresh[@]} -gt 0 ]; then
	        $(SUDO) systemctl unmask --runtime $${fresh[@]}
	        $(SUDO) systemctl disable $${fresh[@]}
	    fi
	fi
	# The distribution's own interpreter: python3-bpfcc is made for it, and seen through
	# --system-site-packages. (The package named bcc on PyPI is something else.)
	[ -x $(PYTHON) ] || /usr/bin/python3 -m venv --system-site-packages $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	# Debian has a package bpftool. Ubuntu 24.04 has a wrapper that wants the tools of exactly the
	# running kernel; any version does here, so the environment gets a link to the one there is.
	if ! bpftool version >/dev/null 2>&1 && ! $(VENV)/bin/bpftool version >/dev/null 2>&1; then
	    $$APT_INSTALL bpftool || $$APT_INSTALL linux-tools-generic
	    if ! bpftool version >/dev/null 2>&1; then
	        tools=(/usr/lib/linux-tools/*/bpftool /usr/lib/linux-tools-*/bpftool)
	        for tool in "$${tools[@]}"; do
	            [ -x "$$tool" ] && ln --symbolic --force "$$tool" $(VENV)/bin/bpftool
	        done
	    fi
	fi
	touch $@

$(TESTS_READY): $(READY)
	@missing=()
	for package in $(TEST_PACKAGES); do
	    [ "$$(dpkg-query --show --showformat='$${db:Status-Status}' $$package 2>/dev/null)" = installed ] \
	        || missing+=($$package)
	done
	if [ $${#missing[@]} -gt 0 ]; then
	    echo "installing $${missing[*]}"
	    systemd=; [ -d /run/systemd/system ] && systemd=yes
	    # It is wanted for its tool alone, so it is kept from starting, now and at the next boot.
	    if [ $$systemd ]; then
	        $(SUDO) systemctl mask --runtime prometheus.service
	    fi
	    $(SUDO) apt-get update
	    $(SUDO) env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
	        apt-get install --yes --no-install-recommends $${missing[@]}
	    if [ $$systemd ]; then
	        $(SUDO) systemctl unmask --runtime prometheus.service
	        $(SUDO) systemctl disable prometheus.service
	    fi
	fi
	touch $@

check: $(READY)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror bpf/kernel/*.[ch] e2e/*/*.[ch]
	# By itself it keeps one CPU busy for a minute; the others mind the playbooks meanwhile.
	$(PYTHON) -m mypy & types=$$!
	$(VENV)/bin/ansible-lint -q --offline --profile production ansible
	for inventory in ansible/*-hosts.ini; do
	    $(VENV)/bin/ansible-playbook --syntax-check -i $$inventory ansible/playbooks/{lb,node}.yml
	done
	wait $$types

unit: $(TESTS_READY)
	mkdir -p build
	# One more than there are CPUs: half of the tests wait for something most of the time.
	$(SUDO) $(PYTHON) -m pytest tests -n $$(( $$(nproc) + 1 )) --dist worksteal --durations 25 \
	    2>&1 | tee build/unit.log

e2e: $(TESTS_READY)
	mkdir -p build
	$(SUDO) $(PYTHON) -m pytest e2e -p no:xdist --durations 25 \
	    $(if $(LEAVE_OUT),-m "not $(LEAVE_OUT)") $(if $(INVENTORY),--inventory $(INVENTORY)) \
	    2>&1 | tee build/e2e.log

test: check
	$(MAKE) --no-print-directory unit
	$(MAKE) --no-print-directory e2e LEAVE_OUT=lasting
	tail --quiet --lines=1 build/unit.log build/e2e.log

demo: $(READY)
	$(SUDO) $(PYTHON) -m e2e.demo $(if $(KEEP),--keep)

SEEDS ?= 1000
LBS ?= 3
sim: $(READY)
	$(PYTHON) -m tests.sim --lbs $(LBS) --seeds $(SEEDS) --jobs $$(nproc)

sequences: $(READY)
	$(SUDO) $(PYTHON) -m tests.bpf.sequences --seeds $(SEEDS) --jobs $$(nproc)

reference: $(READY)
	$(PYTHON) -m tests.reference

screenshots: $(TESTS_READY)
	$(PYTHON) -m tests.api.screenshots

CONSOLES ?= 50
NODES ?= 30
consoles: $(TESTS_READY)
	$(PYTHON) -m tests.api.consoles --consoles $(CONSOLES) --nodes $(NODES)

bench: $(READY)
	$(SUDO) $(PYTHON) -m e2e.bench

vm: $(READY)
	@missing=()
	for package in $(VM_PACKAGES); do
	    [ "$$(dpkg-query --show --showformat='$${db:Status-Status}' $$package 2>/dev/null)" = installed ] \
	        || missing+=($$package)
	done
	if [ $${#missing[@]} -gt 0 ]; then
	    $(SUDO) apt-get update
	    $(SUDO) env DEBIAN_FRONTEND=noninteractive \
	        apt-get install --yes --no-install-recommends $${missing[@]}
	fi
	mkdir -p build
	$(SUDO) $(PYTHON) -m e2e.vm 2>&1 | tee build/vm.log

e2e-machines: $(READY) build/deb/.built
	@missing=()
	for package in $(MACHINES_PACKAGES); do
	    [ "$$(dpkg-query --show --showformat='$${db:Status-Status}' $$package 2>/dev/null)" = installed ] \
	        || missing+=($$package)
	done
	if [ $${#missing[@]} -gt 0 ]; then
	    $(SUDO) apt-get update
	    $(SUDO) env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
	        apt-get install --yes --no-install-recommends $${missing[@]}
	fi
	mkdir -p build
	$(SUDO) $(PYTHON) -m e2e.machines 2>&1 | tee build/machines.log

e2e-vm:
	$(MAKE) --no-print-directory e2e-machines
	$(MAKE) --no-print-directory vm

e2e-packages: $(READY) build/deb/.built
	$(SUDO) unshare --mount --net --pid --fork --kill-child --mount-proc -- \
	    $(PYTHON) -m e2e.machines.layer 2>&1 | tee build/packages.log

# Without `setup`: whoever deploys from here needs no lab. The environment is of the distribution's own
# Python, which the packages are made for.
PACKER := build/packer
deb: build/deb/.built
build/deb/.built: $(shell git ls-files bpf bus conf deb services pyproject.toml README.md)
	@[ -x $(PACKER)/bin/python ] || /usr/bin/python3 -m venv $(PACKER)
	$(PACKER)/bin/python -m pip install --quiet --disable-pip-version-check .
	$(PACKER)/bin/python -m deb
	touch $@

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
