# One cache for several varnishd on one machine: what one of them has fetched, the others have.
#
#     objmapperd --socket /run/objmapper/objmapper.sock …
#     varnishd -n a -a :6081 -E …/libstevedore_objmapper.so \
#              -s objmapper,10G,socket=/run/objmapper/objmapper.sock -f shared-cache.vcl …
#     varnishd -n b -a :6082 -E …/libstevedore_objmapper.so \
#              -s objmapper,10G,socket=/run/objmapper/objmapper.sock -f shared-cache.vcl …
#
# The director uses the storage engine's objmapperd, so that what it finds there becomes the body of Varnish's
# object without a copy. It works with any other storage too, by a copy, when it is told the socket:
# objmapper.director(socket = "/run/objmapper/objmapper.sock").

vcl 4.1;

import objmapper;

sub vcl_backend_response {
	# For a look at what it does: hit, miss, revalidated, stale or bypass, as of the time when Varnish fetched it. Before
	# the include, which does not come back for a stale record.
	set beresp.http.X-objmapper = objmapper.status();
}

include "objmapper.vcl";

backend h2o {
	.host = "127.0.0.1";
	.port = "8080";
}

sub vcl_init {
	# Varnishd with the same prefix share.
	objmapper.set_uri_prefix("cdn://example.com");
	new om = objmapper.director();
	om.set_backend(h2o);
}

sub vcl_recv {
	set req.backend_hint = om.backend();
}
