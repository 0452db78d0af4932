#!/usr/bin/env bash
# Shows objmapper for Varnish with the real programs: H2O serves a small site, objmapperd keeps bodies, two stock varnishd
# cache with our storage engine and share what they fetch through our director; real requests go through them, and each
# one is explained and checked.
# ONCE=1: ends by itself, with status 0 only if every step did what it says. Otherwise it stays up until Ctrl-C.
#
# Everything listens on loopback or a Unix socket, lives in one temporary directory, and is ended and removed again.
set -euo pipefail
cd "$(dirname "$0")/.."

build=${OBJM_BUILD_DIR:-$PWD/target/release}
once=${ONCE:-}
storage_size=256m
threshold=65536
# Varnishd share by Host and path: an address with a port would be another site for each of them.
host='Host: demo.example'

fail() { printf 'demo: error: %s\n' "$*" >&2; exit 1; }
for f in "$build/libstevedore_objmapper.so" "$build/libvmod_objmapper.so" "$build/objmapperd"; do
    [ -f "$f" ] || fail "$f is missing: run 'make build' first"
done
for p in varnishd varnishadm varnishstat h2o curl; do
    command -v "$p" >/dev/null || fail "$p is missing: run 'make setup' first"
done

umask 022
# varnishd's child runs as another user, who can enter neither a home directory nor a TMPDIR below one.
open_to_all() {
    local d; d=$(realpath "$1") || return 1
    while :; do
        case "$(stat -c %A "$d")" in *[xt]) ;; *) return 1 ;; esac
        [ "$d" = / ] && return 0
        d=$(dirname "$d")
    done
}
tmp=${TMPDIR:-/tmp}
open_to_all "$tmp" || tmp=/tmp
dir=$(mktemp -d "$tmp/objm-demo.XXXXXX")
chmod 755 "$dir"
install -m 644 "$build/libstevedore_objmapper.so" "$dir/"
pids=()
stop() {
    local pid i
    # the last one started first
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        pid=${pids[i]}
        kill -TERM "$pid" 2>/dev/null || continue
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$dir"
}
# forget PID: it has ended, and the number may be somebody else's soon
forget() {
    local i
    for i in "${!pids[@]}"; do
        if [ "${pids[i]}" = "$1" ]; then unset "pids[$i]"; fi
    done
    pids=("${pids[@]}")
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# until_true 10 command…: waits at most so many seconds for the command to succeed
until_true() {
    local deadline=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.05
    done
}
answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# --- a small site -----------------------------------------------------------------------------------------------------
site=$dir/site
mkdir -p "$site/media" "$site/part"
cat >"$site/style.css" <<'CSS'
body { font: 16px sans-serif; margin: 2em auto; max-width: 40em } h1 { color: #246 }
CSS
cat >"$site/logo.svg" <<'SVG'
<svg xmlns="http://www.w3.org/2000/svg" width="120" height="40"><rect width="120" height="40" rx="8" fill="#246"/>
<text x="14" y="26" fill="#fff" font-family="sans-serif" font-size="16">objmapper</text></svg>
SVG
# one pixel
base64 -d >"$site/pixel.png" <<'PNG'
iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==
PNG
printf '<header><img src="/logo.svg" alt="objmapper"></header>\n' >"$site/part/header.html"
printf '<footer>served by Varnish, stored by objmapper</footer>\n' >"$site/part/footer.html"
page() {
    printf '<!doctype html>\n<html><head><title>Demo</title><link rel="stylesheet" href="/style.css"></head><body>\n'
    cat "$1"
    printf '<h1>A small site</h1><img src="/pixel.png" alt=""><ul>\n'
    for m in 1k 16k 64k 256k 1m 8m 64m; do printf '<li><a href="/media/%s.mp4">%s</a></li>\n' $m $m; done
    printf '</ul>\n'
    cat "$2"
    printf '</body></html>\n'
}
echo '<esi:include src="/part/header.html"/>' >"$dir/esi1"; echo '<esi:include src="/part/footer.html"/>' >"$dir/esi2"
page "$dir/esi1" "$dir/esi2" >"$site/index.html"
# What a client has to get: varnishd leaves the line ends around an include where they are.
page <(cat "$site/part/header.html"; echo) <(cat "$site/part/footer.html"; echo) >"$dir/index.assembled"
media() { head -c "$2" /dev/urandom >"$site/media/$1.mp4"; }
media 1k 1024; media 16k 16384; media 64k 65536; media 256k 262144; media 1m 1048576; media 8m 8388608
media 64m 67108864
chmod -R a+rX "$site"

# --- the programs -----------------------------------------------------------------------------------------------------
start_h2o() {
    local port
    for _ in $(seq 20); do
        port=$((20000 + RANDOM % 20000))
        answers "$port" && continue
        answers $((port + 1)) && continue
        sed -e "s|@PORT@|$port|" -e "s|@PROXY_PORT@|$((port + 1))|" -e "s|@ROOT@|$site|" -e "s|@DIR@|$dir|" \
            tests/h2o/h2o.conf tests/h2o/listeners.conf >"$dir/h2o.conf"
        h2o -m worker -c "$dir/h2o.conf" >>"$dir/h2o.log" 2>&1 &
        local pid=$!
        if until_true 10 answers "$port" && kill -0 "$pid" 2>/dev/null; then
            pids+=("$pid"); h2o_port=$port
            return
        fi
        kill "$pid" 2>/dev/null || true
    done
    cat "$dir/h2o.log" >&2; fail "H2O does not start (its output is above)"
}
socket=$dir/objm.sock
start_objmapperd() {
    # varnishd's child is another user than root, so the socket is open to all; the directory is the demo's own
    "$build/objmapperd" --socket "$socket" --socket-mode 0666 --memory 512m >>"$dir/objmapperd.log" 2>&1 &
    objmapperd_pid=$!
    pids+=("$objmapperd_pid")
    until_true 10 test -S "$socket" || { cat "$dir/objmapperd.log" >&2; fail "objmapperd does not start"; }
}
# start_varnishd NAME: one more varnishd, with the same VCL and a storage in the same objmapperd
start_varnishd() {
    local name=$1
    mkdir -p "$dir/vcl"
    # varnishd compiles as another user, who may not see the repository
    install -m 644 vcl/objmapper.vcl "$build/libvmod_objmapper.so" "$dir/vcl/"
    cat >"$dir/vcl/demo.vcl" <<VCL
vcl 4.1;
import objmapper from "$dir/vcl/libvmod_objmapper.so";
backend h2o { .path = "$dir/h2o.sock"; }
backend h2o_tcp { .host = "127.0.0.1"; .port = "$h2o_port"; }
backend h2o_proxy { .path = "$dir/h2o-proxy.sock"; .proxy_header = 1; }
sub vcl_init {
	new om = objmapper.director();
	om.set_backend(h2o);
	new om_tcp = objmapper.director();
	om_tcp.set_backend(h2o_tcp);
	new om_proxy = objmapper.director();
	om_proxy.set_backend(h2o_proxy);
}
sub vcl_backend_response { set beresp.http.X-L2 = objmapper.status(); }
include "objmapper.vcl";
sub vcl_recv {
	if (req.url ~ "via=tcp") { set req.backend_hint = om_tcp.backend(); }
	else if (req.url ~ "via=proxy") { set req.backend_hint = om_proxy.backend(); }
	else { set req.backend_hint = om.backend(); }
}
sub vcl_backend_response {
	if (bereq.url ~ "^/(index.html)?$") { set beresp.do_esi = true; }
}
VCL
    # vclrel: vinyld stops only when no idle thread keeps a VCL any more, which takes a minute without it
    varnishd -F -n "$dir/$name" -a 127.0.0.1:0 -f "$dir/vcl/demo.vcl" -E "$dir/libstevedore_objmapper.so" \
        -s "s0=objmapper,$storage_size,socket=$socket,threshold=$threshold" \
        -p "vcl_path=$dir/vcl" -p debug=+vclrel \
        -p ban_lurker_age=0.1 -p ban_lurker_sleep=0.1 >>"$dir/$name.log" 2>&1 &
    pids+=("$!")
    pid_of[$name]=$!
    use "$name"
    until_true 20 child_runs || { cat "$dir/$name.log" >&2; fail "varnishd $name does not start (its output is above)"; }
    url_of[$name]=http://127.0.0.1:$(varnishadm -n "$dir/$name" debug.listen_address | awk 'NR == 1 { print $3 }')
    use "$name"
    until_true 10 shares || { cat "$dir/$name.log" >&2; fail "the director of varnishd $name does not find objmapperd"; }
}
stop_varnishd() {
    kill -TERM "${pid_of[$1]}"
    wait "${pid_of[$1]}" || complain "varnishd $1 ended with status $?"
    forget "${pid_of[$1]}"
}
declare -A pid_of url_of
# use NAME: the varnishd that is meant from now on
use() { v=$1; url=${url_of[$v]:-}; }
child_runs() { varnishadm -n "$dir/$v" -t 2 status | grep -q 'state running'; }
child_pid() { varnishadm -n "$dir/$v" pid | awk '/^Worker/ { print $2 }'; }
shares() { varnishadm -n "$dir/$v" backend.list -p boot.om | grep -q 'State: *up'; }
counter() { varnishstat -n "$dir/$v" -1 -f "$1" 2>/dev/null | awk -v n="$1" '$1 == n { print $2 }'; }
# How many requests H2O has answered.
origin() { wc -l <"$dir/h2o-access.log"; }

wrong=0
complain() { printf '   WRONG: %s\n' "$*"; wrong=$((wrong + 1)); }

echo "== starting H2O (origin), objmapperd (store) and two varnishd (caches)"
start_h2o
start_objmapperd
start_varnishd b
start_varnishd a
echo "   H2O          127.0.0.1:$h2o_port and $dir/h2o.sock, serving $(find "$site" -type f | wc -l) files of a generated site"
echo "   objmapperd   $socket"
echo "   varnishd     a: ${url_of[a]}, b: ${url_of[b]}, each with -s objmapper,$storage_size,socket=…,threshold=$threshold: $(varnishd -V 2>&1 | awk 'NR == 1 { print $2 }' | tr -d '(')"

# --- requests, explained and checked ----------------------------------------------------------------------------------
readonly counters=(MAIN.cache_miss MAIN.cache_hit SMA.s0.g_bytes OBJM.s0.g_bodies OBJM.s0.g_body_bytes
    OBJM.s0.g_heap_pieces OBJM.s0.g_heap_bytes OBJM.s0.c_published OBJM.boot.om.c_hits OBJM.boot.om.c_misses
    OBJM.boot.om.c_adopted OBJM.boot.om.c_published)
declare -A before after
snapshot() {
    # shellcheck disable=SC2034,SC2178 # a name for the caller's associative array
    local -n into=$1
    local name value
    local args=()
    for name in "${counters[@]}"; do into[$name]=0; args+=(-f "$name"); done
    # shellcheck disable=SC2034 # as above
    while read -r name value _; do into[$name]=$value; done < <(varnishstat -n "$dir/$v" -1 "${args[@]}" 2>/dev/null)
}
moved() {
    local name delta out=
    for name in "${counters[@]}"; do
        delta=$((${after[$name]} - ${before[$name]}))
        [ "$delta" -eq 0 ] || out+="$(printf ' %s %+d' "$name" "$delta")"
    done
    printf '%s' "${out:- nothing}"
}
# A worker adds what it counted to the shared counters a moment after its response.
counted() { snapshot after; [ $((${after[MAIN.cache_miss]} + ${after[MAIN.cache_hit]})) -ge "$1" ]; }

declare -A lives
# ask PATH miss|shared|hit heap|objmapper WANTED-FILE [lookups [curl arguments…]]
# hit: answered from varnishd's own cache; shared: from objmapper, without H2O; miss: from H2O
ask() {
    local path=$1 expect=$2 place=$3 wanted=$4 lookups=${5:-1}
    shift 4; [ $# -eq 0 ] || shift
    snapshot before
    local sum=$((${before[MAIN.cache_miss]} + ${before[MAIN.cache_hit]}))
    local code time size
    read -r code time size < <(curl -sS -H "$host" -o "$dir/got" -D "$dir/head" -w '%{http_code} %{time_total} %{size_download}\n' \
        "$@" "$url$path")
    # two numbers in X-Varnish (X-Vinyl): this request and the one that fetched the object
    local was=miss
    [ "$(tr -d '\r' <"$dir/head" | awk 'tolower($1) ~ /^x-(varnish|vinyl):$/ { n = NF } END { print n + 0 }')" -le 2 ] || was=hit
    local l2; l2=$(tr -d '\r' <"$dir/head" | awk 'tolower($1) == "x-l2:" { print $2 }')
    [ "$was:$l2" != miss:hit ] || was=shared
    local deadline=$((SECONDS + 5))
    until counted $((sum + lookups)); do
        [ "$SECONDS" -lt "$deadline" ] || break
        sleep 0.05
    done
    local object=$v$path
    if [ "$was" != hit ]; then
        if [ "${after[OBJM.s0.g_bodies]}" -gt "${before[OBJM.s0.g_bodies]}" ]; then lives[$object]=objmapper
        elif [ "${after[OBJM.s0.g_heap_pieces]}" -gt "${before[OBJM.s0.g_heap_pieces]}" ]; then lives[$object]=heap
        else lives[$object]=nowhere; fi
    fi
    local words
    case "${lives[$object]:-unknown}" in
        objmapper) words="the body lives in objmapper" ;;
        heap)      words="the body lives in varnishd's heap" ;;
        *)         words="the body lives nowhere that was counted" ;;
    esac
    printf '   %s %-22s %s %-6s %10d bytes in %8.3f ms; %s\n' "$v" "$path" "$code" "$was" "$size" \
        "$(awk -v t="$time" 'BEGIN { print t * 1000 }')" "$words"
    printf '   %24s counters:%s\n' "" "$(moved)"
    case "$code" in 200|206) ;; *) complain "$path: status $code" ;; esac
    [ "$was" = "$expect" ] || complain "$path: a $was, expected a $expect"
    [ "${lives[$object]:-}" = "$place" ] || complain "$path: the body should live in $place"
    cmp -s "$wanted" "$dir/got" || complain "$path: the bytes differ from the origin's"
}

echo "== the first request of each file: a miss, fetched from H2O; bodies above $threshold bytes go to objmapper"
ask /style.css miss heap "$site/style.css"
ask /logo.svg miss heap "$site/logo.svg"
ask /pixel.png miss heap "$site/pixel.png"
for m in 1k 16k 64k; do ask /media/$m.mp4 miss heap "$site/media/$m.mp4"; done
for m in 256k 1m 8m 64m; do ask /media/$m.mp4 miss objmapper "$site/media/$m.mp4"; done

echo "== the second request: a hit, without H2O"
for m in 1k 64k; do ask /media/$m.mp4 hit heap "$site/media/$m.mp4"; done
for m in 256k 1m 8m 64m; do ask /media/$m.mp4 hit objmapper "$site/media/$m.mp4"; done

echo "== a part of a large file (Range), straight from the stored body"
tail -c +60000001 "$site/media/64m.mp4" >"$dir/part" || true
head -c 1000000 "$dir/part" >"$dir/part.wanted"
ask /media/64m.mp4 hit objmapper "$dir/part.wanted" 1 -r 60000000-60999999

echo "== an ESI page, put together from three objects"
ask /index.html miss heap "$dir/index.assembled" 3
ask /index.html hit heap "$dir/index.assembled" 3

echo "== H2O over TCP, and over a Unix socket with PROXY protocol, behind directors of their own"
for via in tcp proxy; do ask "/media/256k.mp4?via=$via" miss objmapper "$site/media/256k.mp4"; done
logged() { grep -c "^127.0.0.1 .* /media/256k.mp4?via=$1\$" "$dir/h2o-access.log"; }
until_true 5 logged proxy || complain "H2O has not logged the client's address"
echo "   H2O logged for its Unix socket '$(awk '$5 == "/media/1m.mp4" { print $1; exit }' "$dir/h2o-access.log")'," \
    "with PROXY protocol the client '$(awk '$5 ~ /via=proxy/ { print $1; exit }' "$dir/h2o-access.log")'"

echo "== the other varnishd's first requests: objmapper has what the first one fetched, H2O is not asked"
# quietly COMMAND…: H2O must not be asked meanwhile
quietly() {
    local asked; asked=$(origin)
    "$@"
    local now; now=$(origin)
    echo "   H2O was asked $((now - asked)) times"
    [ "$now" = "$asked" ] || complain "H2O was asked: $(tail -n 1 "$dir/h2o-access.log")"
}
# the log of the last ones that it was asked for is written after they were answered
asked() { varnishstat -n "$dir/$v" -1 -f 'VBE.boot.*.req' | awk '{ n += $2 } END { print n + 0 }'; }
settled() { [ "$(origin)" -ge "$(asked)" ]; }
until_true 5 settled || complain "H2O has logged less than it was asked for"
shared() {
    for m in 1k 64k; do ask /media/$m.mp4 shared heap "$site/media/$m.mp4"; done
    for m in 256k 1m 8m 64m; do ask /media/$m.mp4 shared objmapper "$site/media/$m.mp4"; done
}
use b
quietly shared
adopted=$(counter OBJM.boot.om.c_adopted)
echo "   of the bodies in objmapper no byte was copied: adopted $adopted of 4, copied $(counter OBJM.boot.om.b_copied) bytes of the small ones"
[ "$adopted" = 4 ] || complain "adopted $adopted bodies, not 4"

echo "== the first varnishd is restarted: its cache is empty, objmapper's is not"
stop_varnishd a
start_varnishd a
restarted() {
    ask /media/1k.mp4 shared heap "$site/media/1k.mp4"
    for m in 256k 64m; do ask /media/$m.mp4 shared objmapper "$site/media/$m.mp4"; done
    ask /media/64m.mp4 hit objmapper "$site/media/64m.mp4"
}
quietly restarted

echo "== a purge, sent to the second one, reaches objmapper: the first one, which has it no longer, asks H2O"
[ "$(curl -sS -H "$host" -o /dev/null -w '%{http_code}' -X PURGE "${url_of[b]}/media/1m.mp4" || true)" = 200 ] || complain "PURGE was not answered 200"
use a
ask /media/1m.mp4 miss objmapper "$site/media/1m.mp4"
ask /media/8m.mp4 shared objmapper "$site/media/8m.mp4"

echo "== objmapperd is killed (SIGKILL): what is cached stays served, everything else comes from H2O"
worker=$(child_pid)
kill -KILL "$objmapperd_pid"; wait "$objmapperd_pid" 2>/dev/null || true
forget "$objmapperd_pid"
gone() { [ "$(counter OBJM.s0.g_happy)" = 0 ] && ! shares; }
back() { [ "$(counter OBJM.s0.g_happy)" = 1 ] && shares; }
until_true 10 gone || complain "the loss of objmapperd was not noticed"
ask /media/8m.mp4 hit objmapper "$site/media/8m.mp4"
ask "/media/1m.mp4?while-it-is-gone" miss heap "$site/media/1m.mp4"
right=0
for name in a b; do
    for m in 1k 64k 256k 1m; do
        for n in 1 2 3 4 5; do
            code=$(curl -sS -H "$host" -o "$dir/got" -w '%{http_code}' "${url_of[$name]}/media/$m.mp4?gone-$n" || true)
            if [ "$code" = 200 ] && cmp -s "$site/media/$m.mp4" "$dir/got"; then right=$((right + 1)); fi
        done
    done
done
echo "   $right of 40 new requests to both were answered right; OBJM.boot.om.c_out_down $(counter OBJM.boot.om.c_out_down)"
[ "$right" = 40 ] || complain "$((40 - right)) requests failed"

echo "== objmapperd is started again: both find it by themselves"
start_objmapperd
until_true 15 back || complain "varnishd a has not reconnected"
ask "/media/1m.mp4?after-it-came-back" miss objmapper "$site/media/1m.mp4"
[ "$(child_pid)" = "$worker" ] || complain "varnishd's child has died"
use b
until_true 15 back || complain "varnishd b has not reconnected"
ask "/media/1m.mp4?after-it-came-back" shared objmapper "$site/media/1m.mp4"
use a

echo "== a ban of everything frees every byte, in heap and in objmapper"
varnishadm -n "$dir/$v" ban 'obj.status != 0' >/dev/null
empty() { [ "$(counter SMA.s0.g_bytes)" = 0 ] && [ "$(counter OBJM.s0.g_bodies)" = 0 ]; }
until_true 10 empty || complain "not everything was freed"
echo "   SMA.s0.g_bytes $(counter SMA.s0.g_bytes), OBJM.s0.g_bodies $(counter OBJM.s0.g_bodies), MAIN.n_object $(counter MAIN.n_object)"

if [ "$wrong" -gt 0 ]; then
    echo "== $wrong steps did not do what they say"
    [ -z "$once" ] || { tail -n 20 "$dir/a.log" >&2; exit 1; }
else
    echo "== every step did what it says"
fi
[ -z "$once" ] || exit 0

echo
echo "   They stay up: ${url_of[a]}/ and ${url_of[b]}/   (statistics: varnishstat -n $dir/a)"
echo "   Ctrl-C ends it and removes everything."
while kill -0 "${pids[-1]}" 2>/dev/null; do sleep 1; done
