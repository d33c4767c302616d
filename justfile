# Start with `./just`: it brings in the runner for this file. Recipes bring in what they need.

set positional-arguments
set shell := ["sh", "-euc"]

export HYP_CACHE := absolute_path(env("HYP_CACHE", justfile_directory() / ".cache"))
export RUSTUP_TOOLCHAIN := HYP_CACHE / "toolchain"
export PYTHONPATH := justfile_directory() / "hypctl"
export PYTHONDONTWRITEBYTECODE := "1"

bootstrap := "python3 -S -m bootstrap"
hypctl := "cargo run --quiet --package hypctl --"
bare := "-p hyp -p guest-images"
models := 'cargo test --quiet --profile models -p protocol-models --target-dir "${CARGO_TARGET_DIR:-target}'
deny := "--config 'build.rustdocflags=[\"-Dwarnings\"]'"

# List the recipes
[private]
default:
    @"{{ just_executable() }}" --justfile "{{ justfile() }}" --list --unsorted

# Build, and run a guest: `./just run`, `./just run touch --vcpus 4`, `./just run u-boot`
[group('use')]
[no-exit-message]
run *args: hypctl
    @{{ hypctl }} run "$@"

# Debian's Linux: `./just linux` for a shell, `./just linux --script 'nproc' --kernel 6.1`; `--plain` without the hypervisor
[group('use')]
[no-exit-message]
linux *args: hypctl
    @{{ hypctl }} linux "$@"

# Build the hypervisor image and the guests
[group('use')]
[no-exit-message]
build *args: hypctl
    @{{ hypctl }} build "$@"

# Show what was found on this machine, and what is missing
[group('use')]
[no-exit-message]
doctor *args: hypctl
    @{{ hypctl }} doctor "$@"

# Measure: `./just bench fault` counts EL2 instructions of a populate fault
[group('use')]
[no-exit-message]
bench *args: hypctl
    @{{ hypctl }} bench "$@"

# The recovery suite: `./just recover`, `./just recover --cpu max hole-read hole-storm`; `--list` says what there is
[group('use')]
[no-exit-message]
recover *args: hypctl
    @{{ hypctl }} recover "$@"

# Memory that never rests under a guest that verifies it: `./just churn linux`, `./just churn churn --vcpus 4`
[group('use')]
[no-exit-message]
churn *args: hypctl
    @{{ hypctl }} churn "$@"

# Judge a trace: `./just run hello --icount --trace out.jsonl`, `./just check-trace out.jsonl`
[group('use')]
[no-exit-message]
check-trace *args: hypctl
    @{{ hypctl }} check-trace "$@"

# Measure the library on this machine, beside its peers and bare loops: `./just bench-host --help`
[group('use')]
[no-exit-message]
bench-host *args: setup
    @cargo run --quiet --profile bench --package bench-host -- "$@"

# Bring in Debian's U-Boot as a guest (`run u-boot` does it too)
[group('use')]
[no-exit-message]
fetch-u-boot: setup
    @{{ bootstrap }} fetch u-boot

# Bring in what `linux` boots: kernels `linux-6.12` and `linux-6.1`, and `busybox` (it does so too)
[group('use')]
[no-exit-message]
fetch-linux: setup
    @for file in linux-6.12 linux-6.1 busybox; do {{ bootstrap }} fetch "$file"; done

# The first build of hypctl takes a while: show it.
[private]
[no-exit-message]
hypctl: setup
    @[ -e "${CARGO_TARGET_DIR:-target}/debug/hypctl" ] || cargo build --package hypctl

# Bring in what is missing to build, run and test; nothing when all is there
[group('use')]
[no-exit-message]
setup:
    @{{ bootstrap }} ensure

# Everything CI asks: lints, host tests, tests of the set-up, QEMU tests; ends with a table of times
[group('develop')]
[no-exit-message]
test: setup
    @{{ bootstrap }}.stages "{{ just_executable() }}" \
        format clippy clippy-bare rustdoc build test-host test-models mutants test-setup test-qemu

# Seed defects, one at a time, and show which test notices each: `./just mutants --help`
[group('develop')]
[no-exit-message]
mutants *args: setup
    @cargo run --quiet --package mutants -- "$@"

# Formatting, clippy and rustdoc, warnings denied; host and bare-metal crates
[group('develop')]
[no-exit-message]
lint: setup
    @{{ bootstrap }}.stages "{{ just_executable() }}" format clippy clippy-bare rustdoc

# Fuzz: `./just fuzz descriptors --seconds 600`; all targets for a minute each if none is named
[group('develop')]
[no-exit-message]
fuzz *args: setup
    @{{ bootstrap }}.fuzz "$@"

# Long runs of what searches at random: `./just soak 60` for an hour
[group('develop')]
[no-exit-message]
soak *args: setup
    @{{ bootstrap }}.soak "$@"

# Format the sources
[group('develop')]
fmt: setup
    cargo fmt --all

# Build the API reference and the book (into target/doc and target/book)
[group('develop')]
[no-exit-message]
docs: hypctl
    cargo doc --no-deps --document-private-items
    {{ hypctl }} cargo doc --no-deps {{ bare }}
    book=$({{ bootstrap }} book) && "$book" build docs --dest-dir "{{ justfile_directory() }}/target/book"

# Delete build products; `./just clean all` also deletes the cache
[group('develop')]
clean what="builds":
    rm -rf target
    {{ if what == "all" { "rm -rf \"$HYP_CACHE\"" } else { "true" } }}

# The stages of `test`, each of which can be run alone.

[group('stages')]
[no-exit-message]
format: setup
    cargo fmt --all --check

[group('stages')]
[no-exit-message]
clippy: setup
    cargo clippy --all-targets -- -D warnings

[group('stages')]
[no-exit-message]
clippy-bare: hypctl
    {{ hypctl }} cargo clippy {{ bare }} -- -D warnings
    {{ hypctl }} cargo clippy -p hyp --features measure,trace,selftest -- -D warnings

[group('stages')]
[no-exit-message]
rustdoc: hypctl
    cargo doc --no-deps --document-private-items {{ deny }}
    {{ hypctl }} cargo doc --no-deps {{ bare }} {{ deny }}

# Unit and property tests of the host crates
[group('stages')]
[no-exit-message]
test-host *args: setup
    cargo test -p stage2 -p bench-host -p hyp-abi -p hyp-core -p hypctl -p mmu-oracle -p programs -p mutants "$@"

# The protocols under model checkers: every interleaving of small cases (loom), many of larger ones (shuttle)
[group('stages')]
[no-exit-message]
test-models *args: setup
    RUSTFLAGS="--cfg loom" {{ models }}/loom" --test loom "$@" -- --nocapture --test-threads 1
    RUSTFLAGS="--cfg shuttle" {{ models }}/shuttle" --test shuttle "$@" -- --nocapture --test-threads 1

# The set-up on machines that lack something
[group('stages')]
[no-exit-message]
test-setup *args: setup
    cargo test -p setup-tests "$@"

# Guests under QEMU
[group('stages')]
[no-exit-message]
test-qemu *args: setup
    cargo test -p e2e "$@"
