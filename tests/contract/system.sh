# Sourced by what tests a real API: starts a system with data of its own, which ends with the script.
# shellcheck shell=bash disable=SC2034 # url and key are for those who source it

readonly READY_MAX_SECONDS=60

folder=$(mktemp -d)
api=
finish() {
    if [[ -n $api ]]; then
        kill -TERM "$api" 2>/dev/null || true
        wait "$api" || true
    fi
    rm -rf "$folder"
}
trap finish EXIT

# Tells an address of the banner, by its title.
address_of() { sed -n "s/^ *$1 *\([^ ]*\).*/\1/p" "$folder/banner"; }

# Starts the system, and waits until its banner says where it is: sets url.
start() {
    : >"$folder/banner"
    target/debug/couponctl dev --listen 127.0.0.1:0 --data-dir "$folder/data" --log-format json \
        >"$folder/banner" 2>"$folder/log" &
    api=$!
    for ((second = 0; second < READY_MAX_SECONDS; second++)); do
        url=$(address_of API)
        if [[ -n $url ]]; then
            return
        fi
        kill -0 "$api" || break
        sleep 1
    done
    cat "$folder/log"
    exit 5
}

# Starts a system that asks for credentials, as the document says: sets url, and an operator's key.
start_closed() {
    cargo build --quiet --locked --bin couponctl
    start
    # With a key in its database it asks for credentials from its next start on.
    local mongodb
    mongodb=$(address_of MongoDB)
    key=$(target/debug/couponctl key create --name contract --role operator --mongodb-uri "$mongodb" --json |
        sed -n 's/.*"key": "\([^"]*\)".*/\1/p')
    kill -TERM "$api"
    wait "$api"
    start
}
