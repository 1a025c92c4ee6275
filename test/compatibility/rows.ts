/**
 * The protocol, row by row: what there is in the field, and what we do about it. docs/compatibility.md is made of this
 * table and of the tests that declared, in a run in which they passed, which rows they show.
 */

export interface Row {
  readonly id: string;
  /** What it is, in the field's words. */
  readonly item: string;
  /** What our backend or frontend does. */
  readonly ours: string;
  /** Why no test of this project can show it here; a row without it must be shown by a test. */
  readonly notShown?: string;
}

export interface Section {
  readonly title: string;
  readonly rows: readonly Row[];
}

const row = (id: string, item: string, ours: string, notShown?: string): Row => ({
  id,
  item,
  ours,
  ...(notShown === undefined ? {} : { notShown }),
});

/** What needs a real hypervisor below the same port. */
const HOST = "needs a Xen host";

export const sections: readonly Section[] = [
  {
    title: "Operations",
    rows: [
      row("1.1", "READ", "both ends"),
      row("1.2", "WRITE", "both ends"),
      row(
        "1.3",
        "WRITE_BARRIER",
        "backend: drains every queue, flushes, writes durably; frontend: where flush is not offered",
      ),
      row(
        "1.4",
        "FLUSH_DISKCACHE without segments",
        "both ends; answered OKAY on a read-only vbd, where Linux' backend may refuse",
      ),
      row(
        "1.5",
        "FLUSH_DISKCACHE with data",
        "backend: flushes, then writes durably; frontend never sends it",
      ),
      row("1.6", "RESERVED_1 (packet)", "backend answers EOPNOTSUPP"),
      row("1.7", "DISCARD", "both ends, where the store can"),
      row(
        "1.8",
        "DISCARD, secure flag",
        "backend passes it to the store, which refuses what it cannot promise; discard-secure says which",
      ),
      row("1.9", "INDIRECT", "both ends; backend up to 256 segments, frontend asks for 32"),
      row("1.10", "An unknown operation", "backend answers EOPNOTSUPP and the ring lives on"),
      row(
        "1.11",
        "Statuses OKAY, ERROR, EOPNOTSUPP",
        "backend sends these three; frontend takes any other for ERROR",
      ),
      row("1.12", "At most 11 segments in a slot", "backend checks, frontend keeps to it"),
      row("1.13", "first_sect <= last_sect <= 7", "backend checks both"),
      row("1.14", "End of device, 64-bit overflow", "backend checks; frontend never asks"),
      row("1.15", "Alignment to the logical block", "backend checks the sector and every segment"),
      row("1.16", "No segments", "legal for flush and barrier alone"),
      row(
        "1.17",
        "The response to INDIRECT carries the inner operation",
        "backend sends it, also with an error; frontend insists on it",
      ),
    ],
  },
  {
    title: "Ring, ABIs, transport",
    rows: [
      row("2.1", "native ABI", "both ends"),
      row("2.2", "x86_32-abi", "both ends"),
      row("2.3", "x86_64-abi", "both ends"),
      row("2.4", "No `protocol` key", "x86_32-abi, as Linux and tapback have it"),
      row("2.5", "An unknown `protocol`", "fatal, with the value in the error node"),
      row("2.6", "Several ring pages by `ring-page-order`", "both ends, up to 16 pages"),
      row("2.7", "Several ring pages by `num-ring-pages`", "both ends"),
      row(
        "2.8",
        "A page count that is no power of two",
        "the ring has the slots that fit, rounded down to a power of two",
      ),
      row("2.9", "One page under `ring-ref`", "both ends; `ring-ref0` is taken too"),
      row("2.10", "Several queues", "both ends"),
      row("2.11", "Notification hold-off and final check", "both ends"),
      row(
        "2.12",
        "A private copy of each request (XSA-155)",
        "each shared word is read once; checks look at the copy",
      ),
      row(
        "2.13",
        "An impossible request index",
        "backend halts that ring, says so, and does not spin",
      ),
      row(
        "2.14",
        "Responses that nobody asked for",
        "frontend checks index, id, state and operation; the disk is disabled",
      ),
      row("2.15", "Padding of responses (XSA-216)", "zeroed"),
      row("2.16", "Late end of interrupt (XSA-332)", "work in a wake-up is bounded on both ends"),
      row("2.17", "Polling instead of events", "frontend: dump path only"),
      row(
        "2.18",
        "Grant copy",
        "not used by the drivers; grants are mapped",
        "the embedded machine maps at memory speed; on a host it is a choice still to be measured",
      ),
      row(
        "2.19",
        "Bounce buffers",
        "frontend copies through its own granted pages, so that no caller's page is shared",
      ),
    ],
  },
  {
    title: "Keys of the frontend's directory",
    rows: [
      row("3.2.backend", "`backend`, `backend-id`", "read at connect, and again at resume"),
      row("3.2.state", "`state`", "1 to 6"),
      row("3.2.virtual-device", "`virtual-device`", "read; decimal, hexadecimal and octal"),
      row("3.2.virtual-device-ext", "`virtual-device-ext`", "read where the other is missing"),
      row(
        "3.2.device-type",
        "`device-type`",
        "written by our toolstack; CD-ROM shows in the info bits",
      ),
      row("3.2.trusted", "`trusted`", "0: pages are cleared before they are shared"),
      row("3.2.protocol", "`protocol`", "written and read"),
      row("3.2.ring-ref", "`ring-ref`", "written and read"),
      row("3.2.ring-refN", "`ring-ref0` ...", "written and read"),
      row("3.2.ring-page-order", "`ring-page-order`", "written and read; too large is fatal"),
      row("3.2.num-ring-pages", "`num-ring-pages`", "written and read"),
      row("3.2.event-channel", "`event-channel`", "written and read"),
      row(
        "3.2.multi-queue-num-queues",
        "`multi-queue-num-queues`",
        "written and read; 0 or too many is fatal",
      ),
      row("3.2.feature-persistent", "`feature-persistent`", "written and read"),
      row(
        "3.2.feature-large-sector-size",
        "`feature-large-sector-size`",
        "ignored, as the protocol says since 2024, unless that dialect was asked for",
      ),
      row("3.2.windows", "`feature-surprise-remove`, `target-id` ...", "ignored"),
    ],
  },
  {
    title: "States",
    rows: [
      row(
        "3.4",
        "Any order of states",
        "neither end crashes, hangs or leaks, whatever the other writes",
      ),
      row(
        "3.4.toolstack",
        "The toolstack writes both states as 1",
        "our toolstack does; both ends start from there",
      ),
      row(
        "3.4.initwait",
        "Backend publishes its limits and goes to 2",
        "yes; frontend also takes one that starts at 3 or 4",
      ),
      row(
        "3.4.initialised",
        "Frontend writes its ring and goes to 3",
        "yes; backend also takes one that never waited for 2",
      ),
      row("3.4.connected", "Backend maps, publishes the device, goes to 4", "yes"),
      row("3.4.direct", "Frontend goes from 1 to 4 directly", "backend takes 4 for 3"),
      row(
        "3.4.resize",
        "New size: `sectors`, then the same state again",
        "in one transaction; frontend reads it again",
      ),
      row(
        "3.4.unplug",
        "Hot unplug: backend goes to 5",
        "frontend closes when it is not in use, or is made to",
      ),
      row(
        "3.4.closed",
        "Frontend 6: backend 6; unregisters where `online` is 0",
        "yes; with `online` 1 the device stays",
      ),
      row(
        "3.4.reconnect",
        "The next frontend writes 1 after it saw 6",
        "backend goes to 2 only then",
      ),
      row("3.4.reconfiguring", "States 7 and 8", "ignored"),
    ],
  },
  {
    title: "Persistent grants",
    rows: [
      row("4.1.1", "`feature-persistent` on both sides", "both ends"),
      row("4.1.2", "Cache by reference, for each ring", "yes"),
      row("4.1.3", "`max_persistent_grants`, 1056", "yes, for each ring"),
      row("4.1.4", "Beyond the limit: mapped for the request", "yes"),
      row("4.1.5", "Purge of the least recently used", "yes"),
      row(
        "4.1.6",
        "Unmapped when unused for 60 s",
        "yes; no timer while there is nothing to unmap",
      ),
      row("4.1.7", "Unmapping in batches, later; bounded free pages", "yes"),
      row("4.1.8", "Persistent pages are mapped writable", "yes"),
      row("4.1.9", "Nothing stays mapped after a disconnect (XSA-371)", "counted back to zero"),
    ],
  },
  {
    title: "Indirect requests",
    rows: [
      row("4.2.1", "Advertised maximum", "256"),
      row("4.2.2", "Used by the frontend", "what both allow, 32 by default"),
      row(
        "4.2.3",
        "8 pages of 512 segments at most",
        "backend reads only the pages that the count needs",
      ),
      row(
        "4.2.4",
        "Inner operation",
        "READ, WRITE and, as FreeBSD sends it, WRITE_BARRIER; anything else is an error",
      ),
      row("4.2.5", "Indirect pages granted persistently", "both ends"),
      row("4.2.6", "Flush, barrier and discard stay direct", "yes"),
    ],
  },
  {
    title: "Flush, barrier, order",
    rows: [
      row("4.3.1", "`feature-barrier`", "written and read"),
      row("4.3.2", "`feature-flush-cache`", "written and read"),
      row("4.3.3", "Flush rather than barrier", "frontend"),
      row("4.3.4", "Forced unit access", "a write and a flush after it"),
      row("4.3.5", "Drain before a barrier", "backend, over all queues"),
      row(
        "4.3.6",
        "EOPNOTSUPP switches a feature off",
        "frontend tries the other way; backend rewrites the node",
      ),
      row("4.3.7", "Ordered writes one at a time where there is no barrier", "frontend"),
      row(
        "4.3.8",
        "Flushes suppressed by the administrator",
        "refused: what was flushed must be on the disk",
        "refused on purpose",
      ),
    ],
  },
  {
    title: "Discard",
    rows: [
      row("4.4.1", "`feature-discard` where the store can", "yes"),
      row("4.4.2", "`discard-enable` = 0", "honoured"),
      row("4.4.3", "`discard-granularity`, `discard-alignment`", "written and read"),
      row("4.4.4", "`discard-secure`", "written and read"),
      row("4.4.5", "Range check", "before anything is done"),
      row("4.4.6", "EOPNOTSUPP switches discard off", "frontend"),
      row("4.4.7", "Read-only vbd", "refuses discards"),
    ],
  },
  {
    title: "Geometry and kind",
    rows: [
      row(
        "4.5.1",
        "`sector-size` other than 512",
        "backend: when asked for; frontend: any power of two",
      ),
      row(
        "4.5.2",
        "`physical-sector-size`",
        "written and read; not above the logical size means none",
      ),
      row("4.5.3", "Read-only bit", "written and read"),
      row("4.5.4", "CD-ROM and removable bits", "written and read"),
      row(
        "4.5.5",
        "Media change",
        "none: a new vbd",
        "refused on purpose: a toolstack attaches another vbd",
      ),
      row("4.5.6", "A write to a read-only vbd", "an error, on both ends"),
      row("4.5.7", "64-bit sector counts", "up to 2^53 bytes"),
    ],
  },
  {
    title: "Life cycle",
    rows: [
      row("4.6.1", "Resize while in use", "both ends"),
      row("4.6.2", "Suspend", "frontend stops pushing; nothing is lost"),
      row("4.6.3", "Resume", "frontend connects anew and issues again what was in flight"),
      row("4.6.4", "Suspend cancelled", "frontend goes on"),
      row("4.6.5", "Close while in use", "deferred to the last user, or forced"),
      row("4.6.6", "Users of the disk", "counted"),
      row("4.6.7", "Death of the frontend", "backend gives rings and pages back"),
      row("4.6.8", "A second frontend on the same device", "yes"),
      row("4.6.9", "Unplug of emulated disks", "", HOST),
      row(
        "4.6.10",
        "`physical-device` changed at run time",
        "not looked at: a disk is named by its specification",
        "refused on purpose",
      ),
    ],
  },
  {
    title: "Flow control and resources",
    rows: [
      row("4.7.1", "Grants run out", "frontend waits for the callback"),
      row("4.7.2", "Freezes by named reason", "frontend counts them"),
      row("4.7.3", "Longest transfer", "from the negotiated segments; longer requests are cut"),
      row("4.7.4", "Pool of requests bound to the ring", "backend"),
      row("4.7.5", "Grants in batches", "one call for all pages of a request"),
      row("4.7.6", "A pause after an error", "backend, for that ring alone"),
      row(
        "4.7.7",
        "Neighbours joined",
        "pages that lie side by side are one piece of memory for the store",
      ),
      row(
        "4.7.8",
        "Errors of mapping are values (XSA-362, 365)",
        "exactly what was mapped is unmapped",
      ),
    ],
  },
  {
    title: "Numbers and names",
    rows: [
      row("4.8.1", "Extended numbers", "both ways"),
      row("4.8.2", "xvd, sd, hd", "both ways"),
      row("4.8.3", "Partitions: 15, or 255 extended", "both ways"),
      row("4.8.4", "A vbd that is a partition", "both ways"),
      row("4.8.5", "Names beyond xvdz", "both ways"),
      row("4.8.6", "Ranges in use", "a number is attached once"),
    ],
  },
  {
    title: "Watching and turning",
    rows: [
      row(
        "4.9.1",
        "oo_req, rd_req, wr_req, f_req, ds_req, rd_sect, wr_sect",
        "in `vbdkit stats`, `top` and Prometheus text",
      ),
      row("4.9.2", "`physical_device`, `mode` in sysfs", "`vbdkit info`"),
      row("4.9.3", "Module parameters", "by their own names"),
      row("4.9.4", "FreeBSD's dev.xbd sysctls", "by their own names"),
      row(
        "4.9.5",
        "FreeBSD's backend sysctls",
        "counters under Linux' names instead",
        "refused on purpose: one set of names",
      ),
      row(
        "4.9.6",
        "Statistics in shared memory",
        "the control socket instead",
        "refused on purpose: one way to ask",
      ),
      row("4.9.7", "Ring use, segments for each request", "counted"),
      row("4.9.8", "Counters by operation", "counted"),
      row("4.9.9", "Counters of shortages", "counted by reason"),
      row("4.9.10", "Trace points", "diagnostics channels"),
    ],
  },
  {
    title: "Encodings of the number",
    rows: [
      row("5.1", "`1<<28 | disk<<8 | partition`", "read and made"),
      row("5.2", "`202<<8 | disk<<4 | partition`", "read and made"),
      row("5.3", "`8<<8 | disk<<4 | partition`", "read and made"),
      row("5.4", "`3<<8 | disk<<6 | partition`", "read and made"),
      row("5.5", "`22<<8 | (disk-2)<<6 | partition`", "read and made"),
      row("5.6", "`2<<28` and above", "reserved: refused"),
    ],
  },
  {
    title: "Others",
    rows: [
      row("4.10.2", "One request at a time, polled (GRUB)", "backend serves it"),
      row(
        "4.10.8",
        "A backend that is not trusted",
        "frontend shows it nothing but the data of requests",
      ),
      row("8.12", "errno values as statuses (NetBSD 2018)", "frontend takes them for errors"),
      row("8.13", "The inner operation in the response to INDIRECT", "backend sends it"),
    ],
  },
];

/** Every row, by its number. */
export const rows: ReadonlyMap<string, Row> = new Map(
  sections.flatMap((section) => section.rows).map((each) => [each.id, each]),
);
