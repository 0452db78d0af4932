//! Refuses an unsupported Varnish before anything else does.

fn main() {
    match objmapper_build::find_varnish() {
        Ok(varnish) => varnish.emit(),
        Err(error) => error.exit(),
    }
}
