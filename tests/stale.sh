# To be sourced by sh: waits until objects are stale.

# until_stale ADDRESS PATH...: until varnishd there answers a request with the header "Look" by 504, as the VCL of the
# cases does when the object is not fresh, or not there. The Host is that of varnishtest's clients.
until_stale() {
	address=$1
	shift
	for path in "$@"; do
		tries=0
		until status=$(curl -sS --max-time 10 -o /dev/null -w '%{http_code}' -H "Host: 127.0.0.1" -H "Look: 1" "http://$address$path") &&
			[ "$status" = 504 ]; do
			tries=$((tries + 1))
			[ $tries -lt 1000 ] || { echo "$path does not become stale, the last status is $status"; exit 1; }
			sleep 0.01
		done
	done
}
