//! The VCL of every varnishd of the benchmark.

use std::net::SocketAddr;
use std::path::Path;

/// Only the origin: everything else is Varnish's own.
pub fn plain(origin: SocketAddr) -> String {
    format!("vcl 4.1;\nbackend origin {{ .host = \"{}\"; .port = \"{}\"; }}\n", origin.ip(), origin.port())
}

/// The header line of every request for hits and misses, so that all are of one length: whether it is delivered without a copy.
pub fn zero_copy(on: bool) -> String {
    format!("X-Bench-Zero-Copy: {}\r\n", u8::from(on))
}

/// With our delivery filter for those requests that ask for it: see [`zero_copy`].
pub fn with_zero_copy(origin: SocketAddr, vmod: &Path) -> String {
    format!(
        "{}import objmapper from \"{}\";\n\
         sub vcl_deliver {{\n\
         \tif (req.http.X-Bench-Zero-Copy == \"1\") {{ objmapper.deliver(); }}\n\
         }}\n",
        plain(origin),
        vmod.display()
    )
}

/// With the director before the origin; `store` is its arguments.
///
/// A request may choose: `X-Bench-Director: 0` goes to the origin directly, `X-Bench-Publish: 0` is not published,
/// `X-Bench-Once: 1` does not stay in the cache if it comes from the second level, so that the next request finds it there
/// again.
pub fn with_director(origin: SocketAddr, vmod: &Path, store: &str) -> String {
    format!(
        "{}import objmapper from \"{}\";\n\
         sub vcl_init {{\n\
         \tnew om = objmapper.director({store});\n\
         \tom.set_backend(origin);\n\
         }}\n\
         sub vcl_backend_fetch {{\n\
         \tif (bereq.http.X-Bench-Director == \"0\") {{ set bereq.backend = origin; }} else {{ set bereq.backend = om.backend(); }}\n\
         }}\n\
         sub vcl_backend_response {{\n\
         \tif (bereq.http.X-Bench-Publish == \"0\") {{ om.publish(false); }}\n\
         \tset beresp.http.X-Bench-L2 = om.status();\n\
         \tif (objmapper.restore()) {{\n\
         \t\tif (bereq.http.X-Bench-Once == \"1\") {{\n\
         \t\t\tset beresp.ttl = 0s;\n\
         \t\t\tset beresp.grace = 0s;\n\
         \t\t\tset beresp.keep = 0s;\n\
         \t\t}}\n\
         \t\treturn (deliver);\n\
         \t}}\n\
         }}\n",
        plain(origin),
        vmod.display()
    )
}
