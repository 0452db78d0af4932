#!/usr/bin/env bash
# Speed and memory of the foundation, as ratios to -s malloc in one run: two plain varnishd (never varnishtest) with the
# same origin, asked in turn, several rounds, medians. Prints a table, the spread and the machine.
#
# ROUNDS (5), SECONDS_EACH (3), OBJECTS (200000), STORE (embedded; or the path of a running objmapperd's socket),
# PARTS ("hits fetch objects") can be given in the environment.
set -euo pipefail
cd "$(dirname "$0")/.."

build=${OBJM_BUILD_DIR:-$PWD/target/release}
rounds=${ROUNDS:-5}
seconds=${SECONDS_EACH:-3}
objects=${OBJECTS:-200000}
store=${STORE:-embedded}
parts=${PARTS:-hits fetch objects}

fail() { printf 'bench: error: %s\n' "$*" >&2; exit 1; }
for p in varnishd varnishadm varnishstat h2o curl wrk taskset; do
    command -v "$p" >/dev/null || fail "$p is missing: scripts/setup.sh wrk"
done
[ -f "$build/libstevedore_objmapper.so" ] || fail "nothing built in $build: run 'make build' first"

umask 022
dir=$(mktemp -d "${TMPDIR:-/tmp}/objm-bench.XXXXXX")
chmod 755 "$dir"
pids=()
# A hypervisor that takes free memory back ("free page reporting") makes the first touch of every page cost up to 100
# times its price, for whoever happens to get that page. Off while we measure, if we may.
reporting=/sys/module/page_reporting/parameters/page_reporting_order
reporting_was=
stop() {
    local i
    [ -z "$reporting_was" ] || echo "$reporting_was" >"$reporting" || true
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        kill -TERM "${pids[i]}" 2>/dev/null || continue
        wait "${pids[i]}" 2>/dev/null || true
    done
    rm -rf "$dir"
}
trap stop EXIT
trap 'exit 130' INT TERM

until_true() {
    local deadline=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}
answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# With two CPUs or more the load generator has one of its own, and both varnishd share the rest in turn.
cpus=$(nproc)
if [ "$cpus" -ge 2 ]; then
    server=(taskset -c "0-$((cpus - 2))"); client=(taskset -c "$((cpus - 1))")
else
    server=(); client=()
fi

if [ -w "$reporting" ]; then
    reporting_was=$(<"$reporting")
    # above the largest order there is
    echo 11 >"$reporting"
    # what was taken back before is fetched again, once
    head -c 8G /dev/zero >"/dev/shm/objm-bench.$$" || true
    rm -f "/dev/shm/objm-bench.$$"
fi

# --- origin and the two caches ----------------------------------------------------------------------------------------
mkdir "$dir/site"
for size in 1k:1024 4k:4096 16k:16384 32k:32768 1m:1048576 64m:67108864; do
    head -c "${size#*:}" /dev/urandom >"$dir/site/${size%:*}"
done
for _ in $(seq 20); do
    h2o_port=$((20000 + RANDOM % 20000))
    answers "$h2o_port" && continue
    sed -e "s|@PORT@|$h2o_port|" -e "s|@ROOT@|$dir/site|" tests/h2o/h2o.conf >"$dir/h2o.conf"
    "${client[@]}" h2o -m worker -c "$dir/h2o.conf" >"$dir/h2o.log" 2>&1 &
    pids+=("$!")
    until_true 10 answers "$h2o_port" && break
done
answers "$h2o_port" || fail "H2O does not start: $(cat "$dir/h2o.log")"
printf 'vcl 4.1;\nbackend h2o { .host = "127.0.0.1"; .port = "%s"; }\n' "$h2o_port" >"$dir/bench.vcl"

declare -A port
start() {
    local name=$1; shift
    "${server[@]}" varnishd -F -n "$dir/$name" -a 127.0.0.1:0 -f "$dir/bench.vcl" \
        -p ban_lurker_age=0.1 -p ban_lurker_sleep=0.01 -p ban_lurker_batch=1000 -p thread_pool_min=50 \
        "$@" >"$dir/$name.log" 2>&1 &
    pids+=("$!")
    running() { varnishadm -n "$dir/$name" -t 2 status | grep -q 'state running'; }
    until_true 20 running || fail "varnishd ($name) does not start: $(cat "$dir/$name.log")"
    port[$name]=$(varnishadm -n "$dir/$name" debug.listen_address | awk 'NR == 1 { print $3 }')
}
options=
[ "$store" = embedded ] || options=,socket=$store
counter() { varnishstat -n "$dir/$1" -1 -f "$2" 2>/dev/null | awk -v n="$2" '$1 == n { print $2 }'; }
empty() { [ "$(counter "$1" MAIN.n_object)" = 0 ] && [ "$(counter "$1" SMA.s0.g_bytes)" = 0 ]; }
ban_all() {
    varnishadm -n "$dir/$1" ban 'obj.status != 0' >/dev/null
    until_true 300 empty "$1" || fail "$1: not everything was freed after a ban of all"
}
median() { sort -g | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
row() { # name, unit, target, file of malloc's figures, file of ours
    local m o lo hi
    m=$(median <"$4"); o=$(median <"$5")
    lo=$(sort -g "$5" | head -n1); hi=$(sort -g "$5" | tail -n1)
    awk -v n="$1" -v u="$2" -v t="$3" -v m="$m" -v o="$o" -v lo="$lo" -v hi="$hi" 'BEGIN {
        printf "| %-22s | %10.6g | %10.6g | %-5s | %6.3f | %-6s | %10.6g to %-10.6g |\n", n, m, o, u, o / m, t, lo, hi }'
}

echo "machine: $(nproc) x $(awk -F': ' '/model name/ { print $2; exit }' /proc/cpuinfo), $(awk '/MemTotal/ { printf "%.0f GB", $2 / 1e6 }' /proc/meminfo), Linux $(uname -r)"
echo "programs: $(varnishd -V 2>&1 | awk 'NR == 1 { print $2 }' | tr -d '('), $(h2o --version | head -n1), $({ wrk -v 2>&1 || true; } | awk 'NR == 1 { print $1, $2 }')"
echo "memory: $(if [ -n "$reporting_was" ]; then echo "free page reporting to the hypervisor off while measuring"; elif [ -e "$reporting" ]; then echo "FREE PAGE REPORTING IS ON: run as root, or take the fetch figures as noise"; else echo "no free page reporting"; fi)"
echo "store: $store; $rounds rounds in turn, medians; load generator and origin on their own CPU: $([ "$cpus" -ge 2 ] && echo yes || echo no)"
echo

header() {
    echo "| what                   |     malloc |  objmapper | unit  | ratio  | target | spread of objmapper's     |"
    echo "|------------------------|------------|------------|-------|--------|--------|---------------------------|"
}

if [[ " $parts " == *" hits "* || " $parts " == *" fetch "* ]]; then
    start malloc -s s0=malloc,3g
    start objmapper -E "$build/libstevedore_objmapper.so" -s "s0=objmapper,3g$options"
    header
fi

if [[ " $parts " == *" hits "* ]]; then
    for size in 1k 4k 16k 32k; do
        for name in malloc objmapper; do
            curl -sS -o /dev/null "http://127.0.0.1:${port[$name]}/$size"
            "${client[@]}" wrk -t1 -c16 -d1s "http://127.0.0.1:${port[$name]}/$size" >/dev/null
        done
        for _ in $(seq "$rounds"); do
            for name in malloc objmapper; do
                "${client[@]}" wrk -t1 -c16 "-d${seconds}s" "http://127.0.0.1:${port[$name]}/$size" |
                    awk '/Requests\/sec/ { print $2 }' >>"$dir/hits.$size.$name"
            done
        done
        row "hits, $size" req/s ">=0.97" "$dir/hits.$size.malloc" "$dir/hits.$size.objmapper"
    done
fi

if [[ " $parts " == *" fetch "* ]]; then
    for size in 1m:1048576:300 64m:67108864:12; do
        IFS=: read -r file bytes count <<<"$size"
        for r in $(seq 0 "$rounds"); do
            for name in malloc objmapper; do
                t0=$(date +%s%N)
                "${client[@]}" curl -sS -o /dev/null "http://127.0.0.1:${port[$name]}/$file?r=$r&n=[1-$count]"
                t1=$(date +%s%N)
                # the first round warms up
                [ "$r" -eq 0 ] || awk -v b=$((bytes * count)) -v t=$((t1 - t0)) 'BEGIN { print b / t }' >>"$dir/fetch.$file.$name"
                ban_all "$name"
            done
        done
        row "fetch, $file" GB/s ">=0.90" "$dir/fetch.$file.malloc" "$dir/fetch.$file.objmapper"
    done
fi

if [[ " $parts " == *" objects "* ]]; then
    start many -E "$build/libstevedore_objmapper.so" -s "s0=objmapper,6g,threshold=0,fds=4096,maps=4096$options"
    child=$(varnishadm -n "$dir/many" pid | awk '/^Worker/ { print $2 }')
    fds() { find "/proc/$child/fd" -mindepth 1 2>/dev/null | wc -l; }
    vmas() { wc -l <"/proc/$child/maps"; }
    rss() { awk '/^VmRSS/ { print int($2 / 1024) }' "/proc/$child/status"; }
    # one object first, so that what is set up once is not counted as left behind
    curl -sS -o /dev/null "http://127.0.0.1:${port[many]}/1k?first"; ban_all many
    fds0=$(fds); vmas0=$(vmas)
    echo
    echo "$objects objects of 1 KiB, threshold=0, fds=4096, maps=4096"
    line() { printf '  %-28s fds %6d   VMAs %6d   RSS %6d MB   bodies %7d   bytes %10d\n' "$1" "$(fds)" "$(vmas)" "$(rss)" \
        "$(counter many OBJM.s0.g_bodies)" "$(counter many OBJM.s0.g_body_bytes)"; }
    line "at the start"
    half=$((objects / 2))
    curl -sS -o /dev/null "http://127.0.0.1:${port[many]}/1k?n=[1-$half]" & a=$!
    curl -sS -o /dev/null "http://127.0.0.1:${port[many]}/1k?n=[$((half + 1))-$objects]" & b=$!
    peak_fds=0; peak_vmas=0
    while kill -0 $a 2>/dev/null || kill -0 $b 2>/dev/null; do
        f=$(fds); v=$(vmas)
        [ "$f" -le "$peak_fds" ] || peak_fds=$f
        [ "$v" -le "$peak_vmas" ] || peak_vmas=$v
        sleep 0.5
    done
    wait $a; wait $b
    line "all in the cache"
    printf '  %-28s fds %6d   VMAs %6d\n' "at most, on the way" "$peak_fds" "$peak_vmas"
    hits0=$(counter many MAIN.cache_hit)
    misses0=$(counter many MAIN.cache_miss)
    curl -sS -o "$dir/hit" "http://127.0.0.1:${port[many]}/1k?n=[1-$objects:10]"
    cmp "$dir/hit" "$dir/site/1k" || fail "the last hit differs from the origin's file"
    asked=$(((objects + 9) / 10))
    all_counted() { [ $(($(counter many MAIN.cache_hit) - hits0 + $(counter many MAIN.cache_miss) - misses0)) -ge "$asked" ]; }
    until_true 10 all_counted || fail "requests are missing from the counters"
    line "every tenth asked again"
    printf '  %-28s %d hits, %d misses\n' "" $(($(counter many MAIN.cache_hit) - hits0)) $(($(counter many MAIN.cache_miss) - misses0))
    t0=$SECONDS
    ban_all many
    line "all banned ($((SECONDS - t0)) s)"
    [ "$peak_fds" -le $((fds0 + 4096 + 256)) ] || fail "open fds passed the limit: $peak_fds (start $fds0)"
    [ "$peak_vmas" -le $((vmas0 + 4096 + 1024)) ] || fail "mappings passed the limit: $peak_vmas (start $vmas0)"
    [ "$(counter many OBJM.s0.g_body_bytes)" = 0 ] || fail "bytes are left in the store"
    [ "$(varnishadm -n "$dir/many" pid | awk '/^Worker/ { print $2 }')" = "$child" ] || fail "the child died"
fi
