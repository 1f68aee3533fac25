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

# Starts the system, and waits until its banner says where it is: sets url.
start() {
    : >"$folder/banner"
    target/debug/couponctl dev --listen 127.0.0.1:0 --data-dir "$folder/data" --log-format json \
        >"$folder/banner" 2>"$folder/log" &
    api=$!
    for ((second = 0; second < READY_MAX_SECONDS; second++)); do
        url=$(sed -n 's/^ *API *\(http[^ ]*\)$/\1/p' "$folder/banner")
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
    mongodb=$(sed -n 's/^ *MongoDB *\([^ ]*\).*/\1/p' "$folder/banner")
    key=$(target/debug/couponctl key create --name contract --role operator --mongodb-uri "$mongodb" --json |
        sed -n 's/.*"key": "\([^"]*\)".*/\1/p')
    kill -TERM "$api"
    wait "$api"
    start
}
