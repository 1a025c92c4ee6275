/*
 * A domain in C over qemu-xen-block-shim.c, for test/xen/embedded/process-link.test.ts:
 *
 *   shim-check PEER PORT WRITABLE READONLY OTHERS
 *
 * maps and copies the two references, sees itself refused what it may not do, then answers two events of the port.
 * The peer wrote its page numbers (1, 2) into the first bytes; the last bytes are for our answer.
 */
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <xenevtchn.h>
#include <xengnttab.h>

#define CHECK(condition) \
	do { \
		if (!(condition)) { \
			fprintf(stderr, "line %d: %s (errno %d)\n", __LINE__, #condition, errno); \
			exit(1); \
		} \
	} while (0)

static int copy(xengnttab_handle *grants, int from, uint32_t peer, uint32_t reference, unsigned offset, void *local,
		unsigned length)
{
	xengnttab_grant_copy_segment_t segment = {.len = length, .flags = from ? GNTCOPY_source_gref : GNTCOPY_dest_gref};

	if (from) {
		segment.source.foreign.ref = reference;
		segment.source.foreign.offset = offset;
		segment.source.foreign.domid = peer;
		segment.dest.virt = local;
	} else {
		segment.dest.foreign.ref = reference;
		segment.dest.foreign.offset = offset;
		segment.dest.foreign.domid = peer;
		segment.source.virt = local;
	}
	CHECK(xengnttab_grant_copy(grants, 1, &segment) == 0);
	return segment.status;
}

/* The next port that is pending, as whoever polls its handle has it. */
static int next_port(xenevtchn_handle *events)
{
	struct pollfd readable = {.fd = xenevtchn_fd(events), .events = POLLIN};

	CHECK(poll(&readable, 1, 10000) == 1);
	return xenevtchn_pending(events);
}

int main(int count, char **arguments)
{
	CHECK(count == 6);
	uint32_t peer = atoi(arguments[1]), port = atoi(arguments[2]);
	uint32_t writable = atoi(arguments[3]), read_only = atoi(arguments[4]), others = atoi(arguments[5]);
	uint32_t both[2] = {read_only, writable};
	xengnttab_handle *grants = xengnttab_open(NULL, 0);
	xenevtchn_handle *events = xenevtchn_open(NULL, 0);
	char text[8] = "";
	CHECK(grants && events);

	/* In the other order than they lie in the peer's memory. */
	char *pages = xengnttab_map_domain_grant_refs(grants, 2, peer, both, PROT_READ);
	CHECK(pages && pages[0] == 2 && pages[4096] == 1);
	CHECK(xengnttab_map_grant_ref(grants, peer, read_only, PROT_READ | PROT_WRITE) == NULL);
	CHECK(xengnttab_map_grant_ref(grants, peer, others, PROT_READ) == NULL);
	CHECK(xengnttab_map_grant_ref(grants, peer, 0xffffffff, PROT_READ) == NULL);
	CHECK(xengnttab_map_grant_ref(grants, 99, writable, PROT_READ) == NULL);
	char *page = xengnttab_map_grant_ref(grants, peer, writable, PROT_READ | PROT_WRITE);
	CHECK(page && page[0] == 1);
	strcpy(page + 4088, "mapped");

	CHECK(copy(grants, 1, peer, writable, 4088, text, 8) == 0 && strcmp(text, "mapped") == 0);
	CHECK(copy(grants, 0, peer, writable, 4080, "copied", 7) == 0);
	CHECK(copy(grants, 0, peer, read_only, 0, "no", 2) == -1);
	CHECK(copy(grants, 1, peer, writable, 4090, text, 8) == -10);
	CHECK(copy(grants, 1, peer, others, 0, text, 8) == -1);

	int local = xenevtchn_bind_interdomain(events, peer, port);
	CHECK(local > 0);
	CHECK(xenevtchn_bind_interdomain(events, peer, port) < 0);
	CHECK(next_port(events) == local); /* of the binding */
	CHECK(xenevtchn_unmask(events, local) == 0);
	CHECK(xenevtchn_notify(events, local) == 0);
	for (int i = 0; i < 2; i++) {
		CHECK(next_port(events) == local);
		page[1]++;
		CHECK(xenevtchn_unmask(events, local) == 0);
		CHECK(xenevtchn_notify(events, local) == 0);
	}
	CHECK(xengnttab_unmap(grants, pages, 2) == 0);
	CHECK(xengnttab_unmap(grants, page, 1) == 0);
	CHECK(xengnttab_unmap(grants, page, 1) < 0);
	CHECK(xenevtchn_unbind(events, local) == 0);
	CHECK(xenevtchn_close(events) == 0 && xengnttab_close(grants) == 0);
	puts("ended well");
	return 0;
}
