/*
 * A frontend in C, as a domain of its own process: the machine's folder is all it knows (docs/process-link.md), Xen's
 * headers give it the ring, libxenstore the xenstore. It connects to a backend, fills the disk twice and reads it with
 * every word compared, measures the loads that it is asked for, and closes.
 *
 *   ring-load FOLDER DOMID FRONTEND-PATH RING-ORDER PERSISTENT
 *
 * Each line of standard input, `read|write PAGES DEPTH SECONDS`, is a load. It answers with a line of JSON when it has
 * filled the disk, and after each load; every page that is read must say which it is and when it was written, and what a
 * load wrote is read again. It ends with status 1 and a line on standard error at the first thing that is wrong.
 */
#define _GNU_SOURCE
#define __XEN_INTERFACE_VERSION__ 0x00040d00
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xenstore.h>
#define xen_mb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define xen_rmb() xen_mb()
#define xen_wmb() xen_mb()
#include <xen/xen.h>
#include <xen/io/blkif.h>

#define PAGE 4096u
#define SECTORS_PER_PAGE 8u
#define MAX_DEPTH 256u
#define PAGES_PER_REQUEST BLKIF_MAX_SEGMENTS_PER_REQUEST
#define FIRST_REFERENCE 8u
#define PORT 1u

static void fail(const char *what)
{
	fprintf(stderr, "ring-load: %s (%s)\n", what, strerror(errno));
	exit(1);
}

#define CHECK(condition) \
	do { \
		if (!(condition)) \
			fail(#condition); \
	} while (0)

struct domain {
	uint8_t *memory;
	uint32_t *header;
	int bell;
};

enum { GRANT_FRAME = 5, EVENT_FRAME = 7, FIRST_FRAME = 9 };

static struct domain open_domain(const char *folder, unsigned domid)
{
	struct domain domain;
	struct stat stat;
	char path[256];

	snprintf(path, sizeof path, "%s/domain-%u/memory", folder, domid);
	int memory = open(path, O_RDWR | O_CLOEXEC);
	CHECK(memory >= 0 && fstat(memory, &stat) == 0);
	CHECK(fcntl(memory, F_GET_SEALS) & F_SEAL_SHRINK);
	domain.memory = mmap(NULL, stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	CHECK(domain.memory != MAP_FAILED);
	close(memory);
	domain.header = (uint32_t *)domain.memory;
	CHECK(domain.header[0] == 0x6b646276 && domain.header[1] == 1 && domain.header[2] == domid);
	snprintf(path, sizeof path, "%s/domain-%u/events", folder, domid);
	domain.bell = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	CHECK(domain.bell >= 0);
	return domain;
}

static uint8_t *frame(const struct domain *domain, uint32_t number)
{
	return domain->memory + (size_t)number * PAGE;
}

static uint32_t *event_word(const struct domain *domain, unsigned byte)
{
	return (uint32_t *)(frame(domain, domain->header[EVENT_FRAME]) + byte);
}

static struct domain self, peer;
static unsigned self_domid, peer_domid;
static struct xs_handle *store;
static char front[256], back[256];
static blkif_front_ring_t ring;
static uint32_t first_data_frame;
static uint64_t notifications;

static void grant(uint32_t reference, uint32_t page)
{
	uint32_t *entry = (uint32_t *)frame(&self, self.header[GRANT_FRAME]) + reference * 2;

	entry[1] = page;
	__atomic_store_n(&entry[0], 1u | peer_domid << 16, __ATOMIC_SEQ_CST);
}

static void notify(void)
{
	uint32_t word = __atomic_load_n(event_word(&self, 0x1000) + PORT, __ATOMIC_SEQ_CST);
	uint32_t remote = word & 0xfff;

	if ((word >> 12 & 15) != 2)
		return;
	notifications++;
	uint32_t bit = 1u << remote % 32;
	uint32_t before = __atomic_fetch_or(event_word(&peer, 0x200) + remote / 32, bit, __ATOMIC_SEQ_CST);
	uint32_t mask = __atomic_load_n(event_word(&peer, 0x400) + remote / 32, __ATOMIC_SEQ_CST);
	if ((before | mask) & bit)
		return;
	if (__atomic_exchange_n(event_word(&peer, 0), 1, __ATOMIC_SEQ_CST) == 0) {
		uint64_t one = 1;
		/* A bell that is full has been rung. */
		if (write(peer.bell, &one, sizeof one) < 0)
			CHECK(errno == EAGAIN);
	}
}

static void wait_for_event(void)
{
	struct pollfd bell = {.fd = self.bell, .events = POLLIN};
	uint64_t rung[64];

	CHECK(poll(&bell, 1, 10000) == 1);
	while (read(self.bell, rung, sizeof rung) > 0)
		;
	__atomic_store_n(event_word(&self, 0), 0, __ATOMIC_SEQ_CST);
	__atomic_fetch_and(event_word(&self, 0x200) + PORT / 32, ~(1u << PORT % 32), __ATOMIC_SEQ_CST);
}

static void write_key(const char *key, unsigned value)
{
	char path[320], text[16];

	snprintf(path, sizeof path, "%s/%s", front, key);
	snprintf(text, sizeof text, "%u", value);
	CHECK(xs_write(store, XBT_NULL, path, text, strlen(text)));
}

static uint64_t read_key(const char *directory, const char *key)
{
	char path[320];
	unsigned length;

	snprintf(path, sizeof path, "%s/%s", directory, key);
	char *text = xs_read(store, XBT_NULL, path, &length);
	uint64_t value = text ? strtoull(text, NULL, 10) : 0;
	free(text);
	return value;
}

static void wait_for_backend(unsigned state)
{
	for (int tries = 0; read_key(back, "state") != state; tries++) {
		CHECK(tries < 10000);
		usleep(1000);
	}
}

static uint8_t *data(unsigned slot, unsigned page)
{
	return frame(&self, first_data_frame + slot * PAGES_PER_REQUEST + page);
}

/* Every word of a page says where it belongs and when it was written; afterwards only the first and the last do. */
static uint64_t word_of(uint64_t page, uint32_t time, unsigned index)
{
	return page << 36 | (uint64_t)time << 12 | index;
}

static void fill(uint8_t *bytes, uint64_t page, uint32_t time)
{
	uint64_t *words = (uint64_t *)bytes;

	for (unsigned i = 0; i < PAGE / 8; i++)
		words[i] = word_of(page, time, i);
}

static int is_filled(const uint8_t *bytes, uint64_t page, uint32_t time)
{
	const uint64_t *words = (const uint64_t *)bytes;

	for (unsigned i = 0; i < PAGE / 8; i++)
		if (words[i] != word_of(page, time, i))
			return 0;
	return 1;
}

static void stamp(uint8_t *bytes, uint64_t page, uint32_t time)
{
	uint64_t *words = (uint64_t *)bytes;

	words[0] = word_of(page, time, 0);
	words[PAGE / 8 - 1] = word_of(page, time, PAGE / 8 - 1);
}

static int is_stamped(const uint8_t *bytes, uint64_t page, uint32_t time)
{
	const uint64_t *words = (const uint64_t *)bytes;

	return words[0] == word_of(page, time, 0) && words[PAGE / 8 - 1] == word_of(page, time, PAGE / 8 - 1);
}

static void put(unsigned operation, unsigned slot, uint64_t sector, unsigned pages)
{
	blkif_request_t *request = RING_GET_REQUEST(&ring, ring.req_prod_pvt);

	request->operation = operation;
	request->nr_segments = pages;
	request->handle = 0;
	request->id = slot;
	request->sector_number = sector;
	for (unsigned page = 0; page < pages; page++) {
		request->seg[page].gref = FIRST_REFERENCE + 16 + slot * PAGES_PER_REQUEST + page;
		request->seg[page].first_sect = 0;
		request->seg[page].last_sect = SECTORS_PER_PAGE - 1;
	}
	ring.req_prod_pvt++;
}

static void push(void)
{
	int wanted;

	RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&ring, wanted);
	if (wanted)
		notify();
}

static unsigned take(unsigned *slots)
{
	unsigned count = 0;
	int more;

	for (;;) {
		RING_IDX produced = ring.sring->rsp_prod;
		xen_rmb();
		for (; ring.rsp_cons != produced; ring.rsp_cons++) {
			blkif_response_t *response = RING_GET_RESPONSE(&ring, ring.rsp_cons);
			if (response->status != BLKIF_RSP_OKAY || response->id >= MAX_DEPTH)
				fail("a response with an error");
			slots[count++] = response->id;
		}
		if (count > 0)
			return count;
		RING_FINAL_CHECK_FOR_RESPONSES(&ring, more);
		if (!more)
			wait_for_event();
	}
}

/* How often each page was written, as it says itself. */
static uint32_t *written;
static uint64_t disk_pages;

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

enum how { FILL, COMPARE, STAMP, LOOK };

struct load {
	enum how how;
	unsigned pages, depth; /* of a request; requests in flight */
	uint64_t requests; /* no more than these, or 0 ... */
	double limit; /* ... until so many seconds have passed */
};

static void prepare(enum how how, uint8_t *bytes, uint64_t page)
{
	if (how == FILL)
		fill(bytes, page, ++written[page]);
	else if (how == STAMP)
		stamp(bytes, page, ++written[page]);
	else if (how == COMPARE)
		memset(bytes, 0xee, PAGE);
}

static int is_right(enum how how, const uint8_t *bytes, uint64_t page)
{
	if (how == COMPARE)
		return is_filled(bytes, page, written[page]);
	return how != LOOK || is_stamped(bytes, page, written[page]);
}

/* Places of the disk in a shuffled order, over and over: no two requests in flight touch the same. */
static uint32_t *shuffled(uint32_t count)
{
	uint32_t *order = malloc(count * sizeof *order), random = 1;

	CHECK(order);
	for (uint32_t i = 0; i < count; i++)
		order[i] = i;
	for (uint32_t i = count - 1; i > 0; i--) {
		random = random * 1103515245 + 12345;
		uint32_t other = (random >> 8) % (i + 1), place = order[i];
		order[i] = order[other];
		order[other] = place;
	}
	return order;
}

/* Carries a load out and returns how many requests it had. */
static uint64_t run(struct load load)
{
	uint32_t places = disk_pages / load.pages, *order = shuffled(places);
	unsigned free_slots[MAX_DEPTH], free_count = load.depth, ended[MAX_DEPTH];
	unsigned operation = load.how == FILL || load.how == STAMP ? BLKIF_OP_WRITE : BLKIF_OP_READ;
	uint64_t page_of[MAX_DEPTH], sent = 0, done = 0;
	double end = seconds() + load.limit;

	CHECK(load.depth <= RING_SIZE(&ring) && load.depth < places);
	for (unsigned i = 0; i < load.depth; i++)
		free_slots[i] = i;
	for (;;) {
		int going_on = load.requests > 0 ? sent < load.requests : seconds() < end;
		for (; going_on && free_count > 0; going_on = load.requests == 0 || sent < load.requests) {
			unsigned slot = free_slots[--free_count];
			uint64_t first = (uint64_t)order[sent++ % places] * load.pages;
			page_of[slot] = first;
			for (unsigned page = 0; page < load.pages; page++)
				prepare(load.how, data(slot, page), first + page);
			put(operation, slot, first * SECTORS_PER_PAGE, load.pages);
		}
		push();
		if (free_count == load.depth)
			break;
		unsigned count = take(ended);
		for (unsigned i = 0; i < count; i++) {
			unsigned slot = ended[i];
			for (unsigned page = 0; page < load.pages; page++)
				if (!is_right(load.how, data(slot, page), page_of[slot] + page))
					fail("a page that is not what was written");
			free_slots[free_count++] = slot;
		}
		done += count;
	}
	free(order);
	return done;
}

/* Goes over the whole disk once. */
static uint64_t sweep(enum how how)
{
	unsigned depth = RING_SIZE(&ring) < 32 ? RING_SIZE(&ring) : 32;

	return run((struct load){how, PAGES_PER_REQUEST, depth, disk_pages / PAGES_PER_REQUEST, 0});
}

static void verify(void)
{
	unsigned ended[MAX_DEPTH];
	uint64_t requests = sweep(FILL) + sweep(FILL) + sweep(COMPARE);

	put(BLKIF_OP_FLUSH_DISKCACHE, 0, 0, 0);
	push();
	CHECK(take(ended) == 1);
	printf("{\"verifiedRequests\": %" PRIu64 "}\n", requests);
}

static void measure(const char *operation, unsigned pages, unsigned depth, double limit)
{
	uint64_t before = notifications;
	int writes = strcmp(operation, "write") == 0;
	double began = seconds();

	CHECK(pages >= 1 && pages <= PAGES_PER_REQUEST && depth >= 1 && depth <= MAX_DEPTH);
	uint64_t done = run((struct load){writes ? STAMP : LOOK, pages, depth, 0, limit});
	double rate = done / (seconds() - began);
	uint64_t events = notifications - before;
	if (writes)
		sweep(LOOK);
	printf("{\"iops\": %.0f, \"requestsPerEvent\": %.2f}\n", rate, (double)done / (events ? events : 1));
}

static void connect_ring(unsigned order, unsigned persistent)
{
	uint32_t next = self.header[FIRST_FRAME], pages = 1u << order;
	uint8_t *bytes = frame(&self, next);
	char key[32];

	SHARED_RING_INIT((blkif_sring_t *)bytes);
	FRONT_RING_INIT(&ring, (blkif_sring_t *)bytes, pages * PAGE);
	for (unsigned page = 0; page < pages; page++, next++) {
		grant(FIRST_REFERENCE + page, next);
		snprintf(key, sizeof key, order == 0 ? "ring-ref" : "ring-ref%u", page);
		write_key(key, FIRST_REFERENCE + page);
	}
	first_data_frame = next;
	for (unsigned page = 0; page < MAX_DEPTH * PAGES_PER_REQUEST; page++)
		grant(FIRST_REFERENCE + 16 + page, next + page);
	__atomic_store_n(event_word(&self, 0x1000) + PORT, peer_domid << 16 | 1u << 12, __ATOMIC_SEQ_CST);
	write_key("event-channel", PORT);
	if (order > 0)
		write_key("ring-page-order", order);
	write_key("feature-persistent", persistent);
	char path[320];
	snprintf(path, sizeof path, "%s/protocol", front);
	CHECK(xs_write(store, XBT_NULL, path, "x86_64-abi", 10));
	write_key("state", 3);
	wait_for_backend(4);
	write_key("state", 4);
}

int main(int count, char **arguments)
{
	unsigned length, pages, depth;
	char path[320], operation[8];
	double limit;

	CHECK(count == 6);
	const char *folder = arguments[1];
	self_domid = atoi(arguments[2]);
	snprintf(front, sizeof front, "%s", arguments[3]);
	snprintf(path, sizeof path, "%s/domain-%u/xenstored.sock", folder, self_domid);
	setenv("XENSTORED_PATH", path, 1);
	CHECK(store = xs_open(0));
	snprintf(path, sizeof path, "%s/backend", front);
	char *text = xs_read(store, XBT_NULL, path, &length);
	CHECK(text);
	snprintf(back, sizeof back, "%s", text);
	peer_domid = read_key(front, "backend-id");
	self = open_domain(folder, self_domid);
	peer = open_domain(folder, peer_domid);
	wait_for_backend(2);
	connect_ring(atoi(arguments[4]), atoi(arguments[5]));
	/* What no request of 11 pages covers is left alone. */
	disk_pages = read_key(back, "sectors") / SECTORS_PER_PAGE / PAGES_PER_REQUEST * PAGES_PER_REQUEST;
	CHECK(disk_pages > 0 && (written = calloc(disk_pages, sizeof *written)));

	setvbuf(stdout, NULL, _IOLBF, 0);
	verify();
	while (scanf("%7s %u %u %lf", operation, &pages, &depth, &limit) == 4)
		measure(operation, pages, depth, limit);

	write_key("state", 5);
	wait_for_backend(5);
	write_key("state", 6);
	wait_for_backend(6);
	xs_close(store);
	return 0;
}
