#!/usr/bin/env bash
# What a hit costs, beside -s malloc: instructions, mutexes, locked instructions and allocations (callgrind, exact), and
# system calls (strace), per request of one keep-alive connection. Each number is the difference between 2N and N
# requests to one varnishd, so that whatever is not part of a request cancels out.
#
# N (1000), CASES (below), KEEP (a directory for the profiles, for callgrind_annotate) can be given in the environment.
set -euo pipefail
cd "$(dirname "$0")/.."

build=${OBJM_BUILD_DIR:-$PWD/target/release}
n=${N:-1000}
# "ours" copies, "filter" has vcl/objmapper.vcl too, and with it the delivery filter.
cases=${CASES:-malloc-1k ours-1k filter-1k malloc-16k ours-16k filter-16k malloc-1m ours-1m filter-1m}

fail() { printf 'profile: error: %s\n' "$*" >&2; exit 1; }
for p in varnishd varnishadm python3 valgrind callgrind_control strace objdump; do
    command -v "$p" >/dev/null || fail "$p is missing: scripts/setup.sh valgrind strace binutils"
done
ls "$build"/lib{stevedore,vmod}_objmapper.so >/dev/null || fail "nothing built in $build: run 'make build' first"

umask 022
dir=$(mktemp -d "${TMPDIR:-/tmp}/objm-profile.XXXXXX")
out=$(realpath -m "${KEEP:-$dir/profiles}")
mkdir -p "$out" "$dir/site"
pids=()
stop_last() {
    kill -TERM "${pids[-1]}" 2>/dev/null || true
    wait "${pids[-1]}" 2>/dev/null || true
    unset 'pids[-1]'
}
trap 'while [ ${#pids[@]} -gt 0 ]; do stop_last; done; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM

until_true() {
    local deadline=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

# --- origin, client ---------------------------------------------------------------------------------------------------
for size in 1k:1024 16k:16384 1m:1048576; do head -c "${size#*:}" /dev/urandom >"$dir/site/${size%:*}"; done
python3 -u -m http.server --bind 127.0.0.1 --directory "$dir/site" 0 >"$dir/origin" 2>/dev/null &
pids+=("$!")
until_true 20 grep -q 'port [1-9]' "$dir/origin" || fail "the origin does not start"
origin=$(sed -n 's/.* port \([0-9]*\).*/\1/p' "$dir/origin")
cat >"$dir/client.py" <<'PYTHON'
import socket, sys
port, path, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
line, sink = socket.create_connection(("127.0.0.1", port)), bytearray(1 << 20)
for _ in range(count):
    line.sendall(b"GET /%s HTTP/1.1\r\nHost: profile\r\n\r\n" % path.encode())
    got = b""
    while b"\r\n\r\n" not in got:
        some = line.recv(4096)
        assert some, "the connection is closed"
        got += some
    head, rest = got.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200 "), head
    left = int(head.lower().split(b"content-length:")[1].split()[0]) - len(rest)
    while left:
        some = line.recv_into(sink, left, socket.MSG_TRUNC)
        assert some, "the connection is closed"
        left -= some
PYTHON
ask() { python3 "$dir/client.py" "$port" "$1" "$2" || fail "the client failed: $(cat "$dir/varnishd.log")"; }

# --- varnishd of a kind, and what it runs under -----------------------------------------------------------------------
adm() { varnishadm -n "$dir/work" -t 60 "$@" 2>&1; }
running() { adm status | grep -q 'state running'; }
start() {
    local kind=$1 storage=(-s 's0=malloc,256m'); shift
    [ "$kind" = malloc ] || storage=(-E "$build/libstevedore_objmapper.so" -s 's0=objmapper,256m')
    {
        printf 'vcl 4.1;\nbackend origin { .host = "127.0.0.1"; .port = "%s"; }\n' "$origin"
        printf 'sub vcl_backend_response { set beresp.ttl = 1d; }\n'
        [ "$kind" != filter ] || printf 'import objmapper from "%s";\n' "$build/libvmod_objmapper.so"
        [ "$kind" != filter ] || printf 'include "%s";\n' "$PWD/vcl/objmapper.vcl"
    } >"$dir/hit.vcl"
    # Few threads, and none that comes or goes meanwhile; a connection stays with its worker.
    "$@" varnishd -F -j none -n "$dir/work" -a 127.0.0.1:0 -f "$dir/hit.vcl" -p cli_timeout=600 -p startup_timeout=600 \
        -p thread_pools=1 -p thread_pool_min=5 -p thread_pool_max=5 -p timeout_linger=60 -p timeout_idle=600 \
        "${storage[@]}" >"$dir/varnishd.log" 2>&1 &
    pids+=("$!")
    until_true 120 running || fail "varnishd does not start: $(cat "$dir/varnishd.log")"
    port=$(adm debug.listen_address | awk 'NR == 1 { print $3 }')
    child=$(adm pid | awk '/Worker/ { print $2 }')
}

attached() { grep -q attached "$dir/strace.log" && adm ping; }
system_calls() {
    strace -f -c -p "$child" -o "$dir/strace" 2>"$dir/strace.log" &
    pids+=("$!")
    until_true 20 attached || fail "strace does not attach: $(cat "$dir/strace.log")"
    ask "$@"
    kill -INT "${pids[-1]}"
    stop_last
    awk '$NF == "total" { print $4 }' "$dir/strace"
}

# --- profiles ---------------------------------------------------------------------------------------------------------
# Instructions that take a cache line for themselves, by object file.
for object in "$(command -v varnishd)" "$build"/lib{stevedore,vmod}_objmapper.so \
    $(ldd "$(command -v varnishd)" | awk '/libc\.so|libvarnishapi|malloc/ { print $3 }'); do
    objdump -d --no-show-raw-insn "$object" | awk -v object="$(basename "$object")" '
        $2 == "lock" || ($2 == "xchg" && /\(/) { sub(":", "", $1); print object, "0x" $1 }'
done >"$dir/locked"
# Of one profile: instructions, mutexes, locked instructions, allocations, frees. varnishd runs copies of our libraries.
counts() {
    awk '
        FNR == NR { is_locked[$1 " " $2] = 1; next }
        /^ob=/ { ob = $0; sub(/.*[\/=]/, "", ob); sub(/,.*/, "", ob); sub(/^_vmod_objmapper.*/, "libvmod_objmapper.so", ob) }
        /^cfn=/ { name = substr($0, 5); sub(/@.*/, "", name) }
        /^calls=/ { split(substr($0, 7), c, " "); calls[name] += c[1]; getline; next }
        /^0x/ { if ((ob " " $1) in is_locked) locks += $3 }
        /^totals:/ { total = $2 }
        END {
            print total + 0, calls["pthread_mutex_lock"] + calls["pthread_mutex_trylock"], locks + 0,
                calls["malloc"] + calls["calloc"] + calls["realloc"] + calls["posix_memalign"], calls["free"] + 0
        }' "$dir/locked" "$1"
}
dumped() { grep -q '^totals:' "$1"; }
dump() {
    callgrind_control --dump "$child" >/dev/null 2>&1
    until_true 60 dumped "$out/$name.$child.$1" || fail "callgrind wrote no profile"
}

row='| %-10s | %12s | %12s | %7s | %19s | %11s | %5s |\n'
# shellcheck disable=SC2059
printf "$row|---|---|---|---|---|---|---|\n" 'per hit' instructions 'system calls' mutexes 'locked instructions' allocations frees
for name in $cases; do
    path=${name#*-}
    start "${name%-*}"
    ask "$path" 20
    few=$(system_calls "$path" "$n") many=$(system_calls "$path" $((2 * n)))
    stop_last
    start "${name%-*}" valgrind -q --tool=callgrind --trace-children=yes --trace-children-skip='*sh,*gcc*,*cc*' \
        --dump-instr=yes --compress-strings=no --compress-pos=no --callgrind-out-file="$out/$name.%p"
    ask "$path" 20; dump 1
    ask "$path" "$n"; dump 2
    ask "$path" $((2 * n)); dump 3
    stop_last
    # shellcheck disable=SC2046,SC2059
    printf "$row" "$name" $(echo "$(counts "$out/$name.$child.2") $(counts "$out/$name.$child.3") $few $many" |
        awk -v n="$n" '{
            printf("%.0f %.1f", ($6 - $1) / n, ($12 - $11) / n)
            for (i = 2; i <= 5; i++) printf(" %.1f", ($(i + 5) - $i) / n)
        }')
done
