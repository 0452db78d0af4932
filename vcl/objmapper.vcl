# What any VCL with a director of objmapper's wants. To be included behind the import:
#
#     vcl 4.1;
#     import objmapper;
#     include "objmapper.vcl";
#
#     sub vcl_init {
#         new om = objmapper.director();
#         om.set_backend(h2o);
#     }
#     sub vcl_recv {
#         set req.backend_hint = om.backend();
#     }
#
# It decides nothing about what is cached:
#
# * PURGE of one URL from this machine, here and in objmapper, before it is answered;
# * req.hash_always_miss asks the backend, and what it says takes the record's place;
# * a varnishd that is the backend of another one does not wait for itself;
# * what comes from objmapper keeps the lifetime that was decided when it was published;
# * bodies that the storage engine has in files are sent from there, without a copy.
#
# Without a director it is PURGE and the delivery.

acl objmapper_purgers {
	"localhost";
}

sub vcl_recv {
	# The fetch of a varnishd whose backend this one is: a request that waits for that fetch may be before it here.
	if (objmapper.is_fetch()) {
		set req.hash_ignore_busy = true;
	}
	if (req.method == "PURGE") {
		if (client.ip !~ objmapper_purgers) {
			return (synth(405));
		}
		return (purge);
	}
}

sub vcl_purge {
	if (!objmapper.purge()) {
		return (synth(503, "Not purged in objmapper"));
	}
	# Varnish has purged its cache before it came here: once more, for what came from objmapper in between.
	if (req.restarts == 0) {
		return (restart);
	}
}

# A forced refresh is one of the record, too, and a request that waits for no other one waits for no varnishd.
sub vcl_miss {
	if (req.hash_always_miss) {
		objmapper.refresh();
	}
	if (req.hash_ignore_busy) {
		objmapper.ignore_busy();
	}
}

sub vcl_backend_response {
	# While the backend does not answer, a stale record is an answer, and no reason to make its URL uncacheable.
	if (objmapper.restore() && objmapper.status() == "stale") {
		return (deliver);
	}
}

# The end of vcl_deliver: resp.do_esi cannot be set any more afterwards. A vcl_deliver that returns by itself does not come here:
# it can do the same.
sub vcl_builtin_deliver {
	objmapper.deliver();
}
