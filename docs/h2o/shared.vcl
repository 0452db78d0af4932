# /etc/varnish/default.vcl with the shared second level: what this varnishd does not have is looked up in objmapper,
# and only then asked of H2O.
vcl 4.1;

import objmapper;

backend h2o {
	.path = "/run/h2o/h2o.sock";
	.probe = {
		.url = "/";
		.interval = 2s;
	}
}

sub vcl_init {
	# No socket named: the objmapperd of the storage engine (-s objmapper,…,socket=…), so that bodies are adopted
	# without a copy.
	new om = objmapper.director(prefix = "cdn://example.com");
	om.set_backend(h2o);
}

sub vcl_backend_response {
	# To see it work. Before the include, which ends this sub for a stale record that is served because H2O is down.
	set beresp.http.X-L2 = om.status();
}

include "objmapper.vcl";

sub vcl_recv {
	set req.backend_hint = om.backend();
}
