/* What only C can call: a va_list cannot be made in Rust. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "vdef.h"
#include "vrt.h"

void *objm_vsc_alloc(struct vsc_seg **seg, const char *class, size_t size,
    const unsigned char *document, size_t len, const char *fmt, ...);

/* Makes a segment of counters (Varnish: common/common_vsc.c). */
void *
objm_vsc_alloc(struct vsc_seg **seg, const char *class, size_t size,
    const unsigned char *document, size_t len, const char *fmt, ...)
{
	va_list ap;
	void *counters;

	va_start(ap, fmt);
#ifdef HAVE_VSC_ALLOCV
	counters = VRT_VSC_Allocv(NULL, seg, class, size, document, len, fmt, ap);
#else
	counters = VRT_VSC_Alloc(NULL, seg, class, size, document, len, fmt, ap);
#endif
	va_end(ap);
	return (counters);
}
