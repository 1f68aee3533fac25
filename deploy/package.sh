#!/usr/bin/env bash
#
# Makes a release out of programs that are built already: the Debian package, a bill of materials of what is compiled
# into it (CycloneDX), and SHA256SUMS of both. They lie in target/package, and their paths are printed.
#
#   cargo build --release --locked --bins
#   deploy/package.sh                      with --profile dev: the programs of target/debug
#
# Needs Rust, a C compiler, and dpkg-dev. Two programs are compiled from their published sources, once, into
# target/ci-tools (COUPON_CI_TOOLS_DIR names another folder): about two minutes on two cores.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly OUT=target/package
readonly TOOLS_DIR=${COUPON_CI_TOOLS_DIR:-$PWD/target/ci-tools}
readonly CARGO_DEB=3.8.0 CARGO_CYCLONEDX=0.5.9

profile=release
if [[ $# == 2 && $1 == --profile && ($2 == release || $2 == dev) ]]; then
    profile=$2
elif (($#)); then
    echo "usage: deploy/package.sh [--profile release|dev]" >&2
    exit 2
fi
readonly PROGRAMS=target/${profile/dev/debug}

# tool NAME VERSION: compiles a program, unless that was done
tool() {
    local folder=$TOOLS_DIR/$1-$2
    if [[ ! -x $folder/bin/$1 ]]; then
        # Without optimisation: compiling takes longer than what they do.
        cargo install --quiet --debug --locked --root "$folder" --version "$2" "$1"
    fi
}

for program in coupon-api coupon-worker couponctl; do
    if [[ ! -x $PROGRAMS/$program ]]; then
        echo "deploy/package.sh: $PROGRAMS/$program is missing: build the programs first" >&2
        exit 5
    fi
done
tool cargo-deb "$CARGO_DEB"
tool cargo-cyclonedx "$CARGO_CYCLONEDX"

# The same programs, at the same commit, make the same files.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
version=$(sed -n '/^\[package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
maintainer=$(sed -n 's/^maintainer = "\(.*\)"/\1/p' Cargo.toml)

rm -rf "$OUT"
mkdir -p "$OUT/completions" "$OUT/programs"
for program in coupon-api coupon-worker couponctl; do
    strip --strip-unneeded -o "$OUT/programs/$program" "$PROGRAMS/$program"
done
"$PROGRAMS/couponctl" man "$OUT/man"
"$PROGRAMS/couponctl" completion bash >"$OUT/completions/couponctl.bash"
"$PROGRAMS/couponctl" completion zsh >"$OUT/completions/_couponctl"
"$PROGRAMS/couponctl" completion fish >"$OUT/completions/couponctl.fish"
printf 'coupon-system (%s-1) unstable; urgency=medium\n\n  * See the upstream changelog.\n\n -- %s  %s\n' \
    "$version" "$maintainer" "$(date -R -u -d "@$SOURCE_DATE_EPOCH")" >"$OUT/changelog"

# A file beside the manifest is all that it can write.
"$TOOLS_DIR/cargo-cyclonedx-$CARGO_CYCLONEDX/bin/cargo-cyclonedx" cyclonedx --quiet --format json --spec-version 1.5 \
    --target "$(rustc -vV | sed -n 's/^host: //p')" --override-filename bill-of-materials
mv bill-of-materials.json "$OUT/coupon-system-$version.cdx.json"
compression=()
# The programs of a debug build are large, and their package is only looked at.
[[ $profile == release ]] || compression=(--fast)
"$TOOLS_DIR/cargo-deb-$CARGO_DEB/bin/cargo-deb" --quiet --no-build --locked "${compression[@]}" --output "$OUT/" >/dev/null
(cd "$OUT" && sha256sum ./*.deb ./*.cdx.json | sed 's|\./||' >SHA256SUMS)
printf '%s\n' "$OUT"/*.deb "$OUT"/*.cdx.json "$OUT/SHA256SUMS"
