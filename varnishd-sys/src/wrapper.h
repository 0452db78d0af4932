/* What Varnish, or Vinyl Cache, installs of its internals. storage/storage.h, cache/cache_obj.h and cache/cache_objhead.h are
 * not installed: their declarations are in the Rust modules beside this file. */
#include <sys/types.h>
#include <sys/socket.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>

#if __has_include("cache/cache_vinyld.h")
#  include "cache/cache_vinyld.h"
#else
#  include "cache/cache_varnishd.h"
#endif
#include "cache/cache_filter.h"
#include "cache/cache_director.h"
#include "cache/cache_backend.h"
#include "vcl.h"
#include "vre.h"
#include "vmod_abi.h"
#include "vas.h"
#include "vcs.h"
#include "vnum.h"
#include "vsb.h"
#include "vtim.h"
#include "vrt_obj.h"

/* The attribute table, so that a Varnish with other attributes is noticed when we are compiled. */
enum objm_fixattr_size {
#define OBJ_FIXATTR(U, l, s) OBJM_SIZE_##U = (s),
#include "tbl/obj_attr.h"
	OBJM_SIZE__END
};

/* The VCL variables of a stevedore, in the order of their slots in struct stevedore. */
enum objm_stv_var {
#define VRTSTVVAR(nm, vt, ct, def) OBJM_STV_VAR_##nm,
#include "tbl/vrt_stv_var.h"
	OBJM_STV_VAR__COUNT
};
