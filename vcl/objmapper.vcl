# To be included by a VCL that uses objmapper as its storage:
#
#     vcl 4.1;
#     include "objmapper.vcl";
#
# It adds what any such set-up wants and decides nothing about what is cached: PURGE of one URL from this machine,
# which frees the body in objmapper too.

acl objmapper_purgers {
	"localhost";
}

sub vcl_recv {
	if (req.method == "PURGE") {
		if (client.ip !~ objmapper_purgers) {
			return (synth(405));
		}
		return (purge);
	}
}
