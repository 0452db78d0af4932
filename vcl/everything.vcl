# Everything in objmapper.
#
#     varnishd -E /usr/lib/x86_64-linux-gnu/varnish/libstevedore_objmapper.so \
#              -s objmapper,10G -f /etc/varnish/everything.vcl …
#
# With one storage there is nothing to choose: bodies up to the threshold (64 KiB, option `threshold`) live in
# varnishd's heap, larger ones in objmapper, all under the one limit of 10 GB.
# With `-s objmapper,10G,socket=/run/objmapper/objmapper.sock` they live in a running objmapperd.

vcl 4.1;

backend h2o {
	.host = "127.0.0.1";
	.port = "8080";
}
