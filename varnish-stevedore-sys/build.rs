//! Generates the bindings to the installed part of varnishd's internals.

use std::env;
use std::path::PathBuf;

fn main() {
    let varnish = objmapper_build::find_varnish().unwrap_or_else(|e| e.exit());
    varnish.emit();
    println!("cargo::rerun-if-changed=src/wrapper.h");

    let bindings = bindgen::Builder::default()
        .header("src/wrapper.h")
        .clang_args(varnish.include_args())
        .allowlist_type("objcore|boc|boc_state_e|obj_attr|storeobj|worker|vsb|params|objm_.*|storage|bgthread_t|oc_flags|vsl_log|vas_e|pthread_.*")
        .allowlist_function("pthread_join|VSL_Setup|VSL_Flush|VAS_Fail|VSB_printf|VSB_bcat|VSB_quote|VCS_String|VNUM_2bytes|WRK_BgThread|ObjWaitExtend|ObjIterate|VSLb|VTIM_real|STV_.*")
        .allowlist_var("(OBJCORE|BOC|WORKER)_MAGIC|OC_F_.*|OBJ_ITER_.*|VMOD_ABI_Version|cache_param|OC_EF_.*")
        .opaque_type("pthread_.*|lock|VSC_.*")
        .blocklist_function("STV_.*")
        .blocklist_type("FILE|_IO_.*")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_debug(false)
        .layout_tests(true)
        .generate_comments(false)
        .use_core()
        .generate_cstr(true)
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
        .generate()
        .unwrap_or_else(|e| {
            println!("cargo::error=bindgen cannot read Varnish {}'s headers: {e}", varnish.version);
            std::process::exit(1)
        });
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
    bindings.write_to_file(out).expect("cargo's OUT_DIR is writable");
}
