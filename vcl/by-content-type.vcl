# Storage by Content-Type: media in objmapper, everything else in malloc.
#
#     varnishd -E …/libstevedore_objmapper.so -s heap=malloc,1G -s media=objmapper,50G -f by-content-type.vcl …

vcl 4.1;

backend h2o {
	.host = "127.0.0.1";
	.port = "8080";
}

sub vcl_backend_response {
	if (beresp.http.Content-Type ~ "^(video|audio|image)/") {
		set beresp.storage = storage.media;
	} else {
		set beresp.storage = storage.heap;
	}
}
