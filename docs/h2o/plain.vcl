# /etc/varnish/default.vcl before objmapper: Varnish in front of H2O.
vcl 4.1;

backend h2o {
	.host = "127.0.0.1";
	.port = "8080";
}
