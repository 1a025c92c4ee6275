/*
 * A block frontend as small as it can be, in a process of its own: a domain of an embedded machine by
 * docs/process-link.md, Xen's headers and libxenstore. It connects, writes a page, reads it back, and closes.
 *
 *   gcc -o frontend frontend.c -lxenstore && ./frontend FOLDER DOMID FRONTEND-PATH
 *
 * 05-process-link.ts builds it and gives it a machine and a disk. Where a peer is not trusted, check more than this
 * does: the header's numbers, the response's id.
 */
#define _GNU_SOURCE
#define __XEN_INTERFACE_VERSION__ 0x00040d00
#define xen_mb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define xen_rmb() xen_mb()
#define xen_wmb() xen_mb()
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xenstore.h>
#include <xen/xen.h>
#include <xen/io/blkif.h>

#define CHECK(condition) ((condition) ? (void)0 : (perror(#condition), exit(1)))
enum { PAGE = 4096, PORT = 1, RING = 8, DATA = 9 }; /* our port, and our two references: 0 to 7 are reserved */

struct domain { uint8_t *memory; uint32_t *entries, *upcall, *pending, *mask, *ports, first; int bell; };

static struct domain self, peer;
static struct xs_handle *store;
static const char *folder, *front;
static char *back;
static uint32_t peer_domid;
static blkif_front_ring_t ring;

static struct domain open_domain(unsigned domid)
{
	char path[512];
	struct stat stat;
	snprintf(path, sizeof path, "%s/domain-%u/memory", folder, domid);
	int file = open(path, O_RDWR);
	CHECK(file >= 0 && fstat(file, &stat) == 0 && (fcntl(file, F_GET_SEALS) & F_SEAL_SHRINK));
	uint8_t *memory = mmap(NULL, stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	const uint32_t *header = (const uint32_t *)memory;
	CHECK(memory != MAP_FAILED && header[0] == 0x6b646276 && header[1] == 1 && header[2] == domid && header[3] == 1);
	uint32_t *events = (uint32_t *)(memory + (size_t)header[7] * PAGE);
	snprintf(path, sizeof path, "%s/domain-%u/events", folder, domid);
	int bell = open(path, O_RDWR | O_NONBLOCK);
	CHECK(bell >= 0);
	return (struct domain){memory, (uint32_t *)(memory + (size_t)header[5] * PAGE), events, events + 0x200 / 4,
			       events + 0x400 / 4, events + 0x1000 / 4, header[9], bell};
}

static char *read_node(const char *directory, const char *key)
{
	char path[512];
	unsigned length;
	snprintf(path, sizeof path, "%s/%s", directory, key);
	return xs_read(store, XBT_NULL, path, &length);
}

static void write_node(const char *key, const char *value)
{
	char path[512];
	snprintf(path, sizeof path, "%s/%s", front, key);
	CHECK(xs_write(store, XBT_NULL, path, value, strlen(value)));
}

static void wait_for_backend(int state)
{
	for (char *text = read_node(back, "state"); !text || atoi(text) != state; text = read_node(back, "state"))
		free(text), usleep(1000); /* a driver watches the node instead */
}

/* Frame first: with the first word the grant is there. */
static uint8_t *grant(uint32_t reference, uint32_t frame)
{
	self.entries[reference * 2 + 1] = frame;
	__atomic_store_n(&self.entries[reference * 2], peer_domid << 16 | 1, __ATOMIC_SEQ_CST);
	return self.memory + (size_t)frame * PAGE;
}

static void notify(void)
{
	uint32_t remote = __atomic_load_n(&self.ports[PORT], __ATOMIC_SEQ_CST) & 0xfff, bit = 1u << remote % 32;
	uint32_t before = __atomic_fetch_or(&peer.pending[remote / 32], bit, __ATOMIC_SEQ_CST);
	uint32_t mask = __atomic_load_n(&peer.mask[remote / 32], __ATOMIC_SEQ_CST);
	uint64_t one = 1;
	if (!((before | mask) & bit) && __atomic_exchange_n(peer.upcall, 1, __ATOMIC_SEQ_CST) == 0)
		(void)!write(peer.bell, &one, sizeof one); /* a bell that is full has been rung */
}

static void wait_for_event(void)
{
	struct pollfd bell = {.fd = self.bell, .events = POLLIN};
	uint64_t rung[64];
	CHECK(poll(&bell, 1, 10000) == 1 && read(self.bell, rung, sizeof rung) > 0);
	__atomic_store_n(self.upcall, 0, __ATOMIC_SEQ_CST);
	__atomic_fetch_and(&self.pending[0], ~(1u << PORT), __ATOMIC_SEQ_CST);
}

static void request(int operation, uint64_t sector)
{
	int wanted, more;
	blkif_request_t *slot = RING_GET_REQUEST(&ring, ring.req_prod_pvt++);
	*slot = (blkif_request_t){.operation = operation, .nr_segments = 1, .id = 1, .sector_number = sector};
	slot->seg[0] = (struct blkif_request_segment){.gref = DATA, .first_sect = 0, .last_sect = 7};
	RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&ring, wanted);
	if (wanted)
		notify();
	for (;;) {
		RING_FINAL_CHECK_FOR_RESPONSES(&ring, more); /* asks for an event where there is none yet */
		if (more)
			break;
		wait_for_event();
	}
	CHECK(RING_GET_RESPONSE(&ring, ring.rsp_cons++)->status == BLKIF_RSP_OKAY);
}

int main(int count, char **arguments)
{
	char path[512], text[16];
	CHECK(count == 4);
	folder = arguments[1], front = arguments[3];
	snprintf(path, sizeof path, "%s/domain-%s/xenstored.sock", folder, arguments[2]);
	setenv("XENSTORED_PATH", path, 1);
	CHECK((store = xs_open(0)) && (back = read_node(front, "backend")));
	peer_domid = atoi(read_node(front, "backend-id"));
	self = open_domain(atoi(arguments[2])), peer = open_domain(peer_domid);

	wait_for_backend(2); /* InitWait */
	blkif_sring_t *shared = (blkif_sring_t *)grant(RING, self.first);
	uint8_t *data = grant(DATA, self.first + 1);
	SHARED_RING_INIT(shared);
	FRONT_RING_INIT(&ring, shared, PAGE);
	__atomic_store_n(&self.ports[PORT], peer_domid << 16 | 1 << 12, __ATOMIC_SEQ_CST); /* unbound: an offer */
	snprintf(text, sizeof text, "%d", RING), write_node("ring-ref", text);
	snprintf(text, sizeof text, "%d", PORT), write_node("event-channel", text);
	write_node("protocol", sizeof(void *) == 8 ? "x86_64-abi" : "x86_32-abi");
	write_node("state", "3"); /* Initialised */
	wait_for_backend(4);
	write_node("state", "4"); /* Connected */

	memset(data, 'x', PAGE);
	request(BLKIF_OP_WRITE, 8);
	memset(data, 0, PAGE);
	request(BLKIF_OP_READ, 8);
	CHECK(data[0] == 'x' && data[PAGE - 1] == 'x');
	printf("read back what was written, on a disk of %s sectors\n", read_node(back, "sectors"));

	write_node("state", "5"); /* Closing */
	wait_for_backend(5);
	write_node("state", "6"); /* Closed */
	wait_for_backend(6);
	return 0;
}
