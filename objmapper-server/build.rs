//! Tells `--version` the commit that objmapperd was built from.

fn main() {
    objmapper_build::emit_version();
}
