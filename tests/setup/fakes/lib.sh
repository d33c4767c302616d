# Sourced by every fake: notes the call, and reads the switches that a test has set.
#
# A switch is a file `$MACHINE/switch/NAME`; its content is its value.

echo "${0##*/} $*" >> "$CALLS"

is() { [ -e "$MACHINE/switch/$1" ]; }
value() { cat "$MACHINE/switch/$1"; }

offline() {
    echo "W: Failed to fetch $1: Could not resolve 'mirror.test'" >&2
    exit "$2"
}

# make_toolchain FOLDER RUSTC-VERSION [source]: what rustup unpacks there.
make_toolchain() {
    mkdir -p "$1/bin" "$1/lib/rustlib/host/lib"
    for program in cargo cargo-clippy rustfmt; do
        echo "#!/bin/sh" > "$1/bin/$program"
    done
    printf '#!/bin/sh\necho "rustc $*" >> "$CALLS"\necho "rustc %s"\n' "$2" > "$1/bin/rustc"
    chmod +x "$1"/bin/*
    echo driver > "$1/lib/librustc_driver-0.so"
    echo llvm > "$1/lib/libLLVM.so"
    echo std > "$1/lib/rustlib/host/lib/libstd.rlib"
    if [ -n "${3-}" ]; then
        mkdir -p "$1/lib/rustlib/src/rust/library/core/src"
        echo "// core" > "$1/lib/rustlib/src/rust/library/core/src/lib.rs"
    fi
}
