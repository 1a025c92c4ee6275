/* Prints what Linux's own headers say of the ioctls of Xen's device files, one "name value" a line. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
typedef uint32_t grant_ref_t;
typedef uint16_t domid_t;
#include <xen/evtchn.h>
#include <xen/gntalloc.h>
#include <xen/gntdev.h>

#define NUMBER(name) printf(#name " %lu\n", (unsigned long)(name))
#define FIELD(face, field, type, member) \
	printf(#face "." #field " %lu\n", (unsigned long)offsetof(type, member))
#define SIZE(face, type) printf(#face ".byteLength %lu\n", (unsigned long)sizeof(type))

int main(void)
{
	typedef struct ioctl_gntdev_map_grant_ref map;
	typedef struct ioctl_gntdev_unmap_grant_ref unmap;
	typedef struct ioctl_gntdev_grant_copy copy;
	typedef struct gntdev_grant_copy_segment segment;
	typedef struct ioctl_gntalloc_alloc_gref alloc;
	typedef struct ioctl_gntalloc_dealloc_gref dealloc;

	FIELD(MapGrantRef, count, map, count);
	FIELD(MapGrantRef, index, map, index);
	FIELD(MapGrantRef, references, map, refs);
	SIZE(MapGrantRef, map);
	printf("GRANT_REFERENCE_BYTES %lu\n", sizeof(struct ioctl_gntdev_grant_ref));
	NUMBER(IOCTL_GNTDEV_MAP_GRANT_REF);
	FIELD(UnmapGrantRef, index, unmap, index);
	FIELD(UnmapGrantRef, count, unmap, count);
	SIZE(UnmapGrantRef, unmap);
	NUMBER(IOCTL_GNTDEV_UNMAP_GRANT_REF);
	FIELD(CopyGrants, count, copy, count);
	FIELD(CopyGrants, segments, copy, segments);
	SIZE(CopyGrants, copy);
	NUMBER(IOCTL_GNTDEV_GRANT_COPY);
	FIELD(CopySegment, source, segment, source);
	FIELD(CopySegment, destination, segment, dest);
	FIELD(CopySegment, length, segment, len);
	FIELD(CopySegment, flags, segment, flags);
	FIELD(CopySegment, status, segment, status);
	SIZE(CopySegment, segment);
	FIELD(AllocGref, domid, alloc, domid);
	FIELD(AllocGref, flags, alloc, flags);
	FIELD(AllocGref, count, alloc, count);
	FIELD(AllocGref, index, alloc, index);
	FIELD(AllocGref, reference, alloc, gref_ids);
	SIZE(AllocGref, alloc);
	NUMBER(IOCTL_GNTALLOC_ALLOC_GREF);
	NUMBER(GNTALLOC_FLAG_WRITABLE);
	FIELD(DeallocGref, index, dealloc, index);
	FIELD(DeallocGref, count, dealloc, count);
	SIZE(DeallocGref, dealloc);
	NUMBER(IOCTL_GNTALLOC_DEALLOC_GREF);
	NUMBER(IOCTL_EVTCHN_BIND_INTERDOMAIN);
	NUMBER(IOCTL_EVTCHN_BIND_UNBOUND_PORT);
	NUMBER(IOCTL_EVTCHN_UNBIND);
	NUMBER(IOCTL_EVTCHN_NOTIFY);
	return 0;
}
