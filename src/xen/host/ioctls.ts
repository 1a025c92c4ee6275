/**
 * The ioctls of Xen's device files and the layout of their arguments: <xen/gntdev.h>, <xen/gntalloc.h> and <xen/evtchn.h>
 * of Linux, as they are for programs of 64 bits. Offsets are bytes; fields whose offset is no multiple of 4 share the
 * word before it.
 */

/** _IOC(_IOC_NONE, type, number, size) of <asm-generic/ioctl.h>; every request of these devices is of that kind. */
function request(type: "G" | "E", number: number, byteLength: number): number {
  return (byteLength << 16) | (type.charCodeAt(0) << 8) | number;
}

/** struct ioctl_gntdev_map_grant_ref; a reference is { u32 domid, ref }. */
export const MapGrantRef = { count: 0, index: 8, references: 16, byteLength: 24 } as const;
export const GRANT_REFERENCE_BYTES = 8;
export const IOCTL_GNTDEV_MAP_GRANT_REF: number = request("G", 0, MapGrantRef.byteLength);

/** struct ioctl_gntdev_unmap_grant_ref */
export const UnmapGrantRef = { index: 0, count: 8, byteLength: 16 } as const;
export const IOCTL_GNTDEV_UNMAP_GRANT_REF: number = request("G", 1, UnmapGrantRef.byteLength);

/** struct ioctl_gntdev_grant_copy */
export const CopyGrants = { count: 0, segments: 8, byteLength: 16 } as const;
export const IOCTL_GNTDEV_GRANT_COPY: number = request("G", 8, CopyGrants.byteLength);
/** struct gntdev_grant_copy_segment. An end is { void *virt } or { u32 ref; u16 offset, domid }; `flags` lies above the
 * length, in its word. */
export const CopySegment = {
  source: 0,
  destination: 8,
  length: 16,
  flags: 18,
  status: 20,
  byteLength: 24,
} as const;
/** grant_table.h: which ends are grants. */
export const GNTCOPY_source_gref = 1;
export const GNTCOPY_dest_gref = 2;

/** struct ioctl_gntalloc_alloc_gref; `flags` lies above the domid, in its word. */
export const AllocGref = {
  domid: 0,
  flags: 2,
  count: 4,
  index: 8,
  reference: 16,
  byteLength: 24,
} as const;
export const IOCTL_GNTALLOC_ALLOC_GREF: number = request("G", 5, AllocGref.byteLength);
export const GNTALLOC_FLAG_WRITABLE = 1;

/** struct ioctl_gntalloc_dealloc_gref */
export const DeallocGref = { index: 0, count: 8, byteLength: 16 } as const;
export const IOCTL_GNTALLOC_DEALLOC_GREF: number = request("G", 6, DeallocGref.byteLength);

// Arguments of event channels are a number or two; what binds returns the port.
export const IOCTL_EVTCHN_BIND_INTERDOMAIN: number = request("E", 1, 8);
export const IOCTL_EVTCHN_BIND_UNBOUND_PORT: number = request("E", 2, 4);
export const IOCTL_EVTCHN_UNBIND: number = request("E", 3, 4);
export const IOCTL_EVTCHN_NOTIFY: number = request("E", 4, 4);
