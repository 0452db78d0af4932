//! The boilerplate between VCL and this library, from `vmod_objmapper.vcc` by Varnish's own vmodtool.py, and bindings
//! to what it declares, so that the compiler compares our functions with it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const VCC: &str = "vmod_objmapper.vcc";
const REFERENCE: &str = "../docs/vmod_objmapper.rst";

fn main() {
    let varnish = objmapper_build::find_varnish().unwrap_or_else(|error| error.exit());
    varnish.emit();
    println!("cargo::rerun-if-changed={VCC}");
    println!("cargo::rerun-if-changed={REFERENCE}");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));

    run_vmodtool(varnish.module, &out);
    compare_reference(&out);

    // vmodtool.py's C expects autoconf's header.
    std::fs::write(out.join("config.h"), "").expect("cargo's OUT_DIR is writable");
    cc::Build::new()
        .file(out.join("vcc_if.c"))
        .include(&out)
        .includes(&varnish.include_paths)
        // Only what a Rust cdylib defines in Rust is exported: see ffi.rs.
        .define("Vmod_objmapper_Data", "objmapper_vmod_data")
        .warnings(false)
        .compile("vcc_if");
    // Its threads and statics outlive a VCL that uses it.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");

    let bindings = bindgen::Builder::default()
        .header_contents(
            "wrapper.h",
            "#include \"config.h\"\n#include \"cache/cache.h\"\n#include \"vcl.h\"\n#include \"vcc_if.h\"\n",
        )
        .clang_arg(format!("-I{}", out.display()))
        .clang_args(varnish.include_args())
        .allowlist_function("vmod_.*")
        .allowlist_type("vmod_data|vmod_objmapper_.*")
        // The types of arguments are what the crate `varnishd` declares.
        .allowlist_recursively(false)
        .raw_line("use varnishd::raw::signatures::*;")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .layout_tests(false)
        .generate_comments(false)
        .use_core()
        .generate()
        .unwrap_or_else(|error| fail(&format!("bindgen cannot read what vmodtool.py made: {error}")));
    bindings.write_to_file(out.join("vcc_if.rs")).expect("cargo's OUT_DIR is writable");
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    std::process::exit(1)
}

fn run_vmodtool(module: &str, out: &Path) {
    let tool = pkg_config::get_variable(module, "vmodtool").unwrap_or_else(|error| fail(&error.to_string()));
    // What it makes names its source as it is called here: the reference must be the same in every checkout.
    std::fs::copy(VCC, out.join(VCC)).unwrap_or_else(|error| fail(&format!("{VCC}: {error}")));
    let made = Command::new("python3").arg(&tool).arg("--strict").arg(VCC).current_dir(out).output();
    match made {
        Ok(made) if made.status.success() => {}
        Ok(made) => fail(&format!(
            "{tool} {VCC}: {}{}",
            String::from_utf8_lossy(&made.stdout).replace('\n', " "),
            String::from_utf8_lossy(&made.stderr).replace('\n', " ")
        )),
        Err(error) => fail(&format!("python3 cannot be run, which Varnish's vmodtool.py needs: {error}")),
    }
}

/// The reference in `docs/` is what vmodtool.py makes; it is written by `OBJM_WRITE_REFERENCE=1 cargo build`.
fn compare_reference(out: &Path) {
    println!("cargo::rerun-if-env-changed=OBJM_WRITE_REFERENCE");
    let made = std::fs::read_to_string(out.join("vmod_objmapper.rst")).unwrap_or_else(|error| fail(&error.to_string()));
    if env::var_os("OBJM_WRITE_REFERENCE").is_some() {
        std::fs::write(REFERENCE, &made).unwrap_or_else(|error| fail(&format!("{REFERENCE}: {error}")));
        return;
    }
    // A package of this crate alone has no docs/.
    match std::fs::read_to_string(REFERENCE) {
        Ok(kept) if kept == made => {}
        Ok(_) => fail(
            "docs/vmod_objmapper.rst is not what vmod_objmapper.vcc says: run OBJM_WRITE_REFERENCE=1 cargo build -p vmod_objmapper",
        ),
        Err(_) => println!("cargo::warning=docs/vmod_objmapper.rst is missing: not compared"),
    }
}
