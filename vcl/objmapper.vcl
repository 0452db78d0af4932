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
# * PURGE and BAN from this machine, for every varnishd that uses the same store and prefix, before they are answered:
#
#     PURGE /url                                 one URL, with all its variants
#     PURGE /url    Soft-Purge: 1                the same; it is served while the backend is asked (grace), or asked (keep)
#     PURGE /       Xkey-Purge: TAG TAG …        all that has one of these tags (header xkey; the director's argument tags)
#     PURGE /       Xkey-Softpurge: TAG TAG …    the same, softly
#     BAN /         Ban: obj.http.A ~ "b" && …   all that the condition matches: as of std.ban() and varnishadm ban
#
#   200: done, in the store and here, and the others are at it; 503: the store did not confirm, try again; 400: there is no such
#   ban; 405: not from here. A BAN without that header is left to the VCL below.
# * req.hash_always_miss asks the backend, and what it says takes the record's place;
# * a varnishd that is the backend of another one does not wait for itself;
# * what comes from objmapper keeps the lifetime that was decided when it was published;
# * bodies that the storage engine has in files are sent from there, without a copy.
#
# Without a director it is PURGE of one URL, BAN and the delivery.
#
# The ACL sees the address that client.ip is. Behind a TLS terminator, a balancer or a tunnel on this machine that is this machine's own
# for every client, unless it speaks the PROXY protocol (-a …,PROXY): then let nothing but a socket of its own in, before the include:
#
#     varnishd -a :80,PROXY -a admin=127.0.0.1:6082 …
#     sub vcl_recv {
#         if ((req.method == "PURGE" || req.method == "BAN") && local.socket != "admin") { return (synth(405)); }
#     }

import std;

acl objmapper_purgers {
	"localhost";
}

sub vcl_recv {
	# The fetch of a varnishd whose backend this one is: a request that waits for that fetch may be before it here.
	if (objmapper.is_fetch()) {
		set req.hash_ignore_busy = true;
	}
	if (req.method == "PURGE" || (req.method == "BAN" && req.http.Ban)) {
		if (client.ip !~ objmapper_purgers) {
			return (synth(405));
		}
		if (req.method == "BAN") {
			if (!std.ban(req.http.Ban)) {
				return (synth(400, std.ban_error()));
			}
			return (synth(200, "Banned"));
		}
		if (req.http.Xkey-Purge) {
			if (objmapper.purge_tags(req.http.Xkey-Purge) < 0) {
				return (synth(503, "Not purged in objmapper"));
			}
			return (synth(200, "Purged"));
		}
		if (req.http.Xkey-Softpurge) {
			if (objmapper.purge_tags(req.http.Xkey-Softpurge, soft = true) < 0) {
				return (synth(503, "Not purged in objmapper"));
			}
			return (synth(200, "Purged"));
		}
		if (req.http.Soft-Purge) {
			# The look-up is for vcl_hash, whose key is purged.
			set req.hash_ignore_busy = true;
			return (hash);
		}
		return (purge);
	}
}

# What a fetch brings after the store has confirmed is new; the cache is purged once more after that.
sub vcl_purge {
	if (!objmapper.purge()) {
		return (synth(503, "Not purged in objmapper"));
	}
}

sub objmapper_soft_purge {
	if (req.method == "PURGE") {
		if (!objmapper.purge(soft = true)) {
			return (synth(503, "Not purged in objmapper"));
		}
		return (synth(200, "Purged"));
	}
}

sub vcl_hit {
	call objmapper_soft_purge;
}

sub vcl_pass {
	call objmapper_soft_purge;
}

# A forced refresh is one of the record, too, and a request that waits for no other one waits for no varnishd.
sub vcl_miss {
	call objmapper_soft_purge;
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
