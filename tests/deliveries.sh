# For the cases z*.vtc: the same requests through two listeners of one varnishd, "plain" and "zc" (with the delivery
# filter), whose bodies and accounts must not differ. To be sourced by sh, with $plain and $zc being their addresses,
# and $name varnishd's.

set -eu

asked=0

# What varnishncsa's formats of its own begin with.
case $(varnishncsa -V 2>&1) in
*vinyl-cache*) product=Vinyl ;;
*) product=Varnish ;;
esac

# warm PATH...: has these fetched, and waits until they are stored, so that both listeners find the same. Not compared.
warm() {
	for path; do
		curl -sS --max-time 20 -H "Host: z" -H "X-Warm: 1" -o warm.body "http://$plain$path"
	done
	expect '*.g_writing' -eq 0
}

# ask PATH CURL-ARGUMENTS...: through both; the bodies must be the same. The last one is left in "got".
ask() {
	path=$1
	shift
	for listener in plain zc; do
		eval "address=\$$listener"
		# curl makes no file of no body.
		: >"$listener.body"
		# What becomes of the connection is in the log, the Host too.
		curl -sS --max-time 20 -H "Host: z" -o "$listener.body" "$@" "http://$address$path" 2>"$listener.err" ||
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
# our own filter; and less what was asked to be warm.
log() {
	varnishlog -n "$name" -d -g raw -i ReqStart,ReqHeader,ReqURL,RespStatus,Debug,VdpAcct,ReqAcct,SessClose,Error 2>/dev/null >"$1.raw"
	awk -v listener="$1" '
		NR == FNR { if ($4 == "X-Warm:") warm[$1] = 1; next }
		$2 == "ReqStart" { here[$1] = $NF == listener && !warm[$1] }
		here[$1] && $2 !~ /^Req(Start|Header)$/ && !($2 == "VdpAcct" && $4 == "objmapper") { line = $2; for (i = 4; i <= NF; i++) line = line " " $i; print line }
	' "$1.raw" "$1.raw"
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

# ncsa LISTENER FORMAT: what varnishncsa logs of the requests that came there, and of what ESI included in them.
ncsa() {
	varnishncsa -n "$name" -d -c -E -g request -q "ReqStart[3] eq '$1'" -F "%{$product:side}x $2" 2>/dev/null | sed -n 's/^c //p'
}

# same_ncsa LINES: of all requests so far, for which there must be so many lines from either listener. All but times,
# addresses and transaction numbers is compared; of a request with "abort" in its query not the bytes of the response,
# which are a matter of when it is noticed that the client went away. The lines are left in "zc.ncsa".
same_ncsa() {
	format="%s %b %O %I \"%r\" %m %U %q %H %{$product:hitmiss}x %{$product:handling}x %{Content-Length}o %{VSL:ReqAcct}x"
	tries=0
	until ncsa plain "$format" >plain.ncsa && ncsa zc "$format" >zc.ncsa &&
		[ "$(wc -l <plain.ncsa)" -ge "$1" ] && [ "$(wc -l <zc.ncsa)" -ge "$1" ]; do
		tries=$((tries + 1))
		[ $tries -lt 500 ] || break
		sleep 0.01
	done
	for listener in plain zc; do
		[ "$(wc -l <$listener.ncsa)" -eq "$1" ] || { echo "not $1 lines"; cat $listener.ncsa; exit 1; }
		awk '/[?]abort/ { $2 = $3 = $(NF - 1) = $NF = "?" } { print }' $listener.ncsa >$listener.sent
	done
	diff plain.sent zc.sent
}

# counts COUNTER: its value, by a glob.
counts() {
	varnishstat -n "$name" -1 -f "$1" | awk '{ n += $2 } END { print n + 0 }'
}

# expect NAME OPERATOR NUMBER: waits for it of a counter in OBJM.s0, or with a NAME like s1.c_zero_copy or *.c_zero_copy of
# others. A delivery is counted when it is over, and its client may know that first.
expect() {
	case $1 in
	*.*) counter=OBJM.$1 ;;
	*) counter=OBJM.s0.$1 ;;
	esac
	tries=0
	until value=$(counts "$counter") && [ "$value" "$2" "$3" ]; do
		tries=$((tries + 1))
		[ $tries -lt 200 ] || { echo "$1 is $value, expected $2 $3"; varnishstat -n "$name" -1 -f 'OBJM.*copy*'; exit 1; }
		sleep 0.01
	done
}
