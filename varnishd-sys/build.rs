//! Generates the bindings to the installed part of varnishd's internals, and compiles what only C can call.

use std::env;
use std::path::PathBuf;

fn main() {
    let varnish = objmapper_build::find_varnish().unwrap_or_else(|e| e.exit());
    varnish.emit();
    varnish.emit_capabilities();
    println!("cargo::rerun-if-changed=src/wrapper.h");
    compile_shim(&varnish);

    let bindings = bindgen::Builder::default()
        .header("src/wrapper.h")
        .clang_args(varnish.include_args())
        // What a storage engine needs.
        .allowlist_type("objcore|boc|boc_state_e|obj_attr|storeobj|worker|vsb|params|objm_.*|storage|bgthread_t|oc_flags|oc_exp_flags|vsl_log|vas_e|pthread_.*")
        .allowlist_function("pthread_join|VSL_(Setup|Alloc)|VSL_Flush|VAS_Fail|VSB_printf|VSB_bcat|VSB_quote|VCS_String|VNUM_2bytes|WRK_BgThread|ObjWaitExtend|ObjIterate|VSLb|VTIM_real|STV_.*")
        .allowlist_var("(OBJCORE|BOC|WORKER)_MAGIC|OC_F_.*|OBJ_ITER_.*|VMOD_ABI_Version|cache_param|OC_EF_.*")
        // What a director and its fetch filter need.
        .allowlist_type("busyobj|req|http|http_conn|body_status|vfp|vfp_ctx|vfp_entry|vfp_status|vrt_ctx|vrt_endpoint|director|vcldir|vdi_methods|vmod_priv|vmod_priv_methods|VSL_tag_e|obj_flags|objcore_flags|director_state_e|stream_close|ws|txt|vre|vre_limits|lock|stevedore|vcl")
        .allowlist_function("VDI_.*|VFP_.*|HTTP_.*|http_.*|VRE_.*|VRT_(priv_task|priv_task_get|AddDirector|DelDirector|Assign_Backend|Healthy|DirectorResolve|fail|handling|GetHdr|SetHdr|Format_Proxy|vsl|INT_string|INT_Strands2)|VSL.*|WS_.*|Obj(Has|Get|Set|Check|Iterate|Copy|Subscribe|Unsubscribe).*|EXP_.*|RFC2616_.*|VTIM_.*|Lck__.*|THR_.*|BAN_(Time|FindBan|Build|AddTest|Commit|Abandon)|VBO_.*|VBF_Get_Filter_List|VCL_(Rel|Ref|StackVFP)")
        .allowlist_var("DIGEST_LEN|OEV_.*|BS_.*|VFP_.*|HTTP_.*|HTTPH_.*|H_If_(None_Match|Modified_Since)|VRE_.*|SC_.*|SLT_.*|OF_.*|(BUSYOBJ|REQ|BOC|DIRECTOR|VCLDIR|VDI_METHODS|VRT_CTX|VMOD_PRIV_METHODS|WS|VRE|VFP|VFP_CTX|VFP_ENTRY|HTTP|HTTP_CONN)_MAGIC|VDI_.*|DIR_S_.*|VCL_MET_.*")
        // What a delivery filter needs.
        .allowlist_type("VCL_(BACKEND|BOOL|BYTES|DURATION|INT|REAL|STRANDS|STRING|TIME)|vdp|vdp_ctx|vdp_entry|vdp_action|transport|vcl_event_e")
        .allowlist_function("VDP_(bytes|Push)|VCL_StackVDP|VRT_(Add|Remove)Filter|VRT_(r|l)_resp_filters|VAS_errtxt")
        .allowlist_var("(VDP_CTX|VDP_ENTRY|STRANDS)_MAGIC")
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
            println!("cargo::error=bindgen cannot read {}'s headers: {e}", varnish.name());
            std::process::exit(1)
        });
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
    bindings.write_to_file(out).expect("cargo's OUT_DIR is writable");
}

fn compile_shim(varnish: &objmapper_build::Varnish) {
    println!("cargo::rerun-if-changed=src/shim.c");
    let mut shim = cc::Build::new();
    shim.file("src/shim.c").includes(&varnish.include_paths);
    if varnish.branch.capabilities.contains(&"vsc_allocv") {
        shim.define("HAVE_VSC_ALLOCV", None);
    }
    shim.compile("varnishd_shim");
}
