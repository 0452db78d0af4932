# For the cases z*.vtc: the same requests through two listeners of one varnishd, "plain" and "zc" (with the delivery
# filter), whose bodies and accounts must not differ. To be sourced by sh, with $plain and $zc being their addresses,
# and $name varnishd's.

set -eu

asked=0

# ask PATH CURL-ARGUMENTS...: through both; the bodies must be the same. The last one is left in "got".
ask() {
	path=$1
	shift
	for listener in plain zc; do
		eval "address=\$$listener"
		# What becomes of the connection is in the log.
		curl -sS --max-time 20 -o "$listener.body" "$@" "http://$address$path" 2>"$listener.err" ||
			echo "curl: $?" >>"$listener.body"
	done
	asked=$((asked + 1))
	cmp plain.body zc.body || { head -c 300 plain.body; echo; head -c 300 zc.body; exit 1; }
	mv zc.body got
}

# part FILE PATH FIRST-LAST: asks for this part of what the file holds.
part() {
	ask "$2" -r "$3"
	tail -c +$((${3%-*} + 1)) "$1" 2>/dev/null | head -c $((${3#*-} - ${3%-*} + 1)) | cmp - got
}

# log LISTENER: what varnishd says of the requests that came there, less what must differ: transaction numbers, and
# our own filter.
log() {
	varnishlog -n "$name" -d -g raw -i ReqStart,ReqURL,RespStatus,Debug,VdpAcct,ReqAcct,SessClose,Error 2>/dev/null >"$1.raw"
	awk -v listener="$1" '
		$2 == "ReqStart" { here[$1] = $NF == listener }
		here[$1] && $2 != "ReqStart" && !($2 == "VdpAcct" && $4 == "objmapper") { line = $2; for (i = 4; i <= NF; i++) line = line " " $i; print line }
	' "$1.raw"
}

# same_accounts: of all requests so far.
same_accounts() {
	tries=0
	until log plain >plain.log && log zc >zc.log && [ "$(grep -c '^ReqAcct' plain.log)" -ge "$asked" ] &&
		[ "$(grep -c '^ReqAcct' zc.log)" -ge "$asked" ]; do
		tries=$((tries + 1))
		[ $tries -lt 500 ] || { echo "the log is incomplete"; cat plain.log zc.log; exit 1; }
		sleep 0.01
	done
	diff plain.log zc.log
}

# counts COUNTER: its value, by a glob.
counts() {
	varnishstat -n "$name" -1 -f "$1" | awk '{ n += $2 } END { print n + 0 }'
}

# expect NAME OPERATOR NUMBER: of a counter in OBJM.s0.
expect() {
	value=$(counts "OBJM.s0.$1")
	[ "$value" "$2" "$3" ] || { echo "$1 is $value, expected $2 $3"; varnishstat -n "$name" -1 -f 'OBJM.*copy*'; exit 1; }
}
