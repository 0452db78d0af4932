//! Tells `--version` the commit that the program was built from.

fn main() {
    objmapper_build::emit_version();
}
