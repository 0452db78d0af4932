# Small bodies in malloc, large ones in objmapper: two storages with limits of their own, so that large bodies never
# push small ones out.
#
#     varnishd -E …/libstevedore_objmapper.so -s small=malloc,1G -s large=objmapper,50G -f by-size.vcl …
#
# A body without Content-Length may be of any size and goes to objmapper, where it starts in heap and moves when it
# passes the threshold.

vcl 4.1;

import std;

backend h2o {
	.host = "127.0.0.1";
	.port = "8080";
}

sub vcl_backend_response {
	if (beresp.http.Content-Length && std.integer(beresp.http.Content-Length, 0) < 65536) {
		set beresp.storage = storage.small;
	} else {
		set beresp.storage = storage.large;
	}
}
