# As shared.vcl, with PROXY protocol towards H2O: its access log has the addresses of clients.
#
# A connection tells one client's address, so varnishd opens one for each fetch: use it only if H2O needs the address.
vcl 4.1;

import objmapper;
include "objmapper.vcl";

backend h2o {
	.path = "/run/h2o/h2o-proxy.sock";
	.proxy_header = 1;
}

sub vcl_init {
	new om = objmapper.director(prefix = "cdn://example.com");
	om.set_backend(h2o);
}

sub vcl_recv {
	set req.backend_hint = om.backend();
}
