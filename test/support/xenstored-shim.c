/*
 * The libraries that Xen's own xenstored talks to a hypervisor with (libxenctrl, libxenevtchn, libxengnttab, and two
 * files of /proc/xen), without one. With LD_PRELOAD, Debian's xenstored serves its Unix socket as it is, and plays all
 * of its ring code for domains: what a guest would do with its ring is done here, for whoever connects to the Unix
 * socket $VBDKIT_DIRECTORY/domain-DOMID, which is there as long as the domain is introduced.
 *
 *   gcc -shared -fPIC -O2 -o shim.so xenstored-shim.c -lpthread
 *   VBDKIT_DIRECTORY=/tmp/abc XENSTORED_RUNDIR=/tmp/abc LD_PRELOAD=shim.so xenstored --no-fork
 *
 * Domains 1 to 15 exist. A line "dead 4", "shutdown 4" or "alive 4" to the socket $VBDKIT_DIRECTORY/hypervisor changes
 * what one is, raises VIRQ_DOM_EXC and is answered "ok" when the daemon has looked. A guest whose ring tells of an error
 * hangs up. The daemon's clock runs a million times faster, so that what
 * it rates by the second (writes of guests) never waits.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <xenctrl.h>
#include <xen/io/xs_wire.h>

#define PAGE 4096
#define LAST_DOMID 15
#define VIRQ_PORT 7
#define FIRST_PORT 16
#define CLOCK_FACTOR 1000000ull

static void die(const char *what)
{
	perror(what);
	_exit(127);
}

/* ---- event channels: one pipe of ports to the daemon, one eventfd to each guest ---- */

static int events[2] = {-1, -1};
static int raised[FIRST_PORT + LAST_DOMID + 1];

static void raise_port(uint32_t port)
{
	if (__atomic_exchange_n(&raised[port], 1, __ATOMIC_SEQ_CST))
		return;
	if (write(events[1], &port, sizeof(port)) != sizeof(port))
		die("event");
}

/* ---- guests ---- */

struct guest {
	struct xenstore_domain_interface *ring;
	int listener, bell, gone;
	uint32_t domid;
	/* Of whoever moves the indexes of the ring. */
	pthread_mutex_t lock;
};

static struct guest *guests[LAST_DOMID + 1];

/* Where the daemon introduces a domain again, it binds the port anew and then empties the ring, while a guest would hold
 * still. So from the unbinding until the daemon waits for something else, the guest has no part in the ring. */
static struct guest *held;

static void hold(struct guest *guest)
{
	if (held)
		pthread_mutex_unlock(&held->lock);
	held = guest;
	if (held)
		pthread_mutex_lock(&held->lock);
}

static void guest_path(struct sockaddr_un *address, const char *name, int domid)
{
	address->sun_family = AF_UNIX;
	snprintf(address->sun_path, sizeof(address->sun_path), "%s/%s", getenv("VBDKIT_DIRECTORY"), name);
	if (domid >= 0)
		sprintf(address->sun_path + strlen(address->sun_path), "-%d", domid);
}

static int listen_at(const char *name, int domid)
{
	struct sockaddr_un address;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	guest_path(&address, name, domid);
	unlink(address.sun_path);
	if (fd < 0 || bind(fd, (void *)&address, sizeof(address)) || listen(fd, 8))
		die(address.sun_path);
	return fd;
}

/* Moves what it can from the client to the ring and from the ring to the client; false when the client has ended. */
static int pump(struct guest *guest, int client, int readable)
{
	struct xenstore_domain_interface *ring = guest->ring;
	int moved = 0;

	if (readable) {
		uint32_t at = MASK_XENSTORE_IDX(ring->req_prod);
		uint32_t room = XENSTORE_RING_SIZE - (ring->req_prod - __atomic_load_n(&ring->req_cons, __ATOMIC_ACQUIRE));
		uint32_t piece = XENSTORE_RING_SIZE - at < room ? XENSTORE_RING_SIZE - at : room;
		ssize_t got = piece ? recv(client, ring->req + at, piece, MSG_DONTWAIT) : -1;
		if (got == 0)
			return 0;
		if (got > 0) {
			__atomic_store_n(&ring->req_prod, ring->req_prod + got, __ATOMIC_RELEASE);
			moved = 1;
		}
	}
	for (;;) {
		uint32_t at = MASK_XENSTORE_IDX(ring->rsp_cons);
		uint32_t full = __atomic_load_n(&ring->rsp_prod, __ATOMIC_ACQUIRE) - ring->rsp_cons;
		uint32_t piece = XENSTORE_RING_SIZE - at < full ? XENSTORE_RING_SIZE - at : full;
		ssize_t sent = piece ? send(client, ring->rsp + at, piece, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
		if (sent <= 0)
			break;
		__atomic_store_n(&ring->rsp_cons, ring->rsp_cons + sent, __ATOMIC_RELEASE);
		moved = 1;
	}
	if (moved)
		raise_port(FIRST_PORT + guest->domid);
	return 1;
}

static void *run_guest(void *argument)
{
	struct guest *guest = argument;
	struct xenstore_domain_interface *ring = guest->ring;
	int client = -1, over = 0;

	while (!__atomic_load_n(&guest->gone, __ATOMIC_SEQ_CST)) {
		int full = ring->req_prod - ring->req_cons == XENSTORE_RING_SIZE;
		int waiting = ring->rsp_prod != ring->rsp_cons;
		struct pollfd fds[2] = {
			{.fd = guest->bell, .events = POLLIN},
			{.fd = over ? -1 : client >= 0 ? client : guest->listener, .events = POLLIN},
		};
		if (client >= 0)
			fds[1].events = (full ? 0 : POLLIN) | (waiting ? POLLOUT : 0);
		if (ppoll(fds, 2, NULL, NULL) < 0)
			die("poll");
		if (fds[0].revents) {
			uint64_t count;
			if (read(guest->bell, &count, sizeof(count)) < 0)
				die("bell");
		}
		if (client >= 0 && __atomic_load_n(&ring->error, __ATOMIC_ACQUIRE)) {
			close(client);
			client = -1;
			over = 1;
		}
		if (__atomic_load_n(&guest->gone, __ATOMIC_SEQ_CST) || over)
			continue;
		if (client < 0) {
			if (fds[1].revents)
				client = accept4(guest->listener, NULL, NULL, SOCK_CLOEXEC);
			continue;
		}
		pthread_mutex_lock(&guest->lock);
		over = !pump(guest, client, fds[1].revents & (POLLIN | POLLHUP | POLLERR));
		pthread_mutex_unlock(&guest->lock);
	}
	if (client >= 0)
		close(client);
	close(guest->listener);
	close(guest->bell);
	munmap(ring, PAGE);
	free(guest);
	return NULL;
}

static struct xenstore_domain_interface *start_guest(uint32_t domid)
{
	struct guest *guest = calloc(1, sizeof(*guest));
	pthread_t thread;

	guest->domid = domid;
	pthread_mutex_init(&guest->lock, NULL);
	guest->ring = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	guest->bell = eventfd(0, EFD_CLOEXEC);
	guest->listener = listen_at("domain", domid);
	guests[domid] = guest;
	if (pthread_create(&thread, NULL, run_guest, guest) || pthread_detach(thread))
		die("guest");
	return guest->ring;
}

static void ring_bell(struct guest *guest)
{
	uint64_t one = 1;

	if (write(guest->bell, &one, sizeof(one)) < 0)
		die("bell");
}

/* ---- libxengnttab: the ring of a domain is the only page ever mapped ---- */

void *xengnttab_open(void *logger, unsigned flags)
{
	return calloc(1, 64);
}

int xengnttab_close(void *handle)
{
	return 0;
}

int xengnttab_set_max_grants(void *handle, uint32_t count)
{
	return 0;
}

void *xengnttab_map_grant_ref(void *handle, uint32_t domid, uint32_t reference, int protection)
{
	if (domid >= 1 && domid <= LAST_DOMID && guests[domid] == NULL)
		return start_guest(domid);
	errno = EINVAL;
	return NULL;
}

int xengnttab_unmap(void *handle, void *address, uint32_t count)
{
	for (int domid = 1; domid <= LAST_DOMID; domid++) {
		struct guest *guest = guests[domid];
		struct sockaddr_un name;
		if (guest == NULL || guest->ring != address)
			continue;
		guests[domid] = NULL;
		hold(NULL);
		guest_path(&name, "domain", domid);
		unlink(name.sun_path);
		__atomic_store_n(&guest->gone, 1, __ATOMIC_SEQ_CST);
		ring_bell(guest);
	}
	return 0;
}

/* ---- libxenevtchn ---- */

void *xenevtchn_open(void *logger, unsigned flags)
{
	if (pipe2(events, O_CLOEXEC))
		die("events");
	return calloc(1, 64);
}

void *xenevtchn_fdopen(void *logger, int fd, unsigned flags)
{
	return xenevtchn_open(logger, flags);
}

int xenevtchn_close(void *handle)
{
	return 0;
}

int xenevtchn_fd(void *handle)
{
	return events[0];
}

int xenevtchn_bind_virq(void *handle, unsigned virq)
{
	return VIRQ_PORT;
}

int xenevtchn_bind_interdomain(void *handle, uint32_t domid, uint32_t port)
{
	return domid <= LAST_DOMID ? FIRST_PORT + (int)domid : -1;
}

int xenevtchn_pending(void *handle)
{
	uint32_t port;

	if (read(events[0], &port, sizeof(port)) != sizeof(port))
		return -1;
	__atomic_store_n(&raised[port], 0, __ATOMIC_SEQ_CST);
	return port;
}

int xenevtchn_notify(void *handle, uint32_t port)
{
	if (port >= FIRST_PORT && guests[port - FIRST_PORT])
		ring_bell(guests[port - FIRST_PORT]);
	return 0;
}

/* The daemon has looked at the states of all domains. */
static sem_t looked;

int xenevtchn_unmask(void *handle, uint32_t port)
{
	if (port == VIRQ_PORT)
		sem_post(&looked);
	return 0;
}

int xenevtchn_unbind(void *handle, uint32_t port)
{
	if (port >= FIRST_PORT)
		hold(guests[port - FIRST_PORT]);
	return 0;
}

/* ---- libxenctrl ---- */

enum { ALIVE, SHUTDOWN, DEAD };
static int states[LAST_DOMID + 1];

static void *run_hypervisor(void *argument)
{
	int listener = (int)(intptr_t)argument;

	for (;;) {
		int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		char line[64] = "", word[16] = "";
		unsigned domid = 0;
		if (client < 0)
			die("hypervisor");
		if (read(client, line, sizeof(line) - 1) > 0 && sscanf(line, "%15s %u", word, &domid) == 2 && domid <= LAST_DOMID) {
			int state = !strcmp(word, "dead") ? DEAD : !strcmp(word, "shutdown") ? SHUTDOWN : ALIVE;
			__atomic_store_n(&states[domid], state, __ATOMIC_SEQ_CST);
			raise_port(VIRQ_PORT);
			while (sem_wait(&looked))
				;
			if (write(client, "ok\n", 3) < 0)
				perror("hypervisor");
		}
		close(client);
	}
	return NULL;
}

xc_interface *xc_interface_open(xentoollog_logger *log, xentoollog_logger *domain_log, unsigned flags)
{
	pthread_t thread;

	sem_init(&looked, 0, 0);
	if (pthread_create(&thread, NULL, run_hypervisor, (void *)(intptr_t)listen_at("hypervisor", -1)) ||
	    pthread_detach(thread))
		die("hypervisor");
	return calloc(1, 64);
}

int xc_interface_close(xc_interface *handle)
{
	return 0;
}

int xc_domain_getinfo(xc_interface *handle, uint32_t first, unsigned most, xc_dominfo_t *info)
{
	int state = first > LAST_DOMID ? DEAD : __atomic_load_n(&states[first], __ATOMIC_SEQ_CST);

	memset(info, 0, sizeof(*info));
	info->domid = first;
	info->running = state == ALIVE;
	info->shutdown = state == SHUTDOWN;
	return state == DEAD ? 0 : 1;
}

/* ---- the C library: what the kernel of domain 0 says of its own ring, and time ---- */

int open(const char *path, int flags, ...)
{
	static int (*real)(const char *, int, ...);
	va_list arguments;
	int mode;

	if (!strcmp(path, "/proc/xen/xsd_kva") || !strcmp(path, "/proc/xen/xsd_port")) {
		int fd = memfd_create("xsd", MFD_CLOEXEC);
		if (fd < 0 || (strstr(path, "kva") ? ftruncate(fd, PAGE) : pwrite(fd, "1\n", 2, 0) != 2))
			die(path);
		return fd;
	}
	if (real == NULL)
		real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
	va_start(arguments, flags);
	mode = va_arg(arguments, int);
	va_end(arguments);
	return real(path, flags, mode);
}

/* Of the daemon alone: guests wait with ppoll. */
int poll(struct pollfd *fds, nfds_t count, int timeout)
{
	struct timespec time = {timeout / 1000, timeout % 1000 * 1000000};

	hold(NULL);
	/* The daemon says of what else has changed in a ring, but not of an error. */
	for (int domid = 1; domid <= LAST_DOMID; domid++)
		if (guests[domid] && guests[domid]->ring->error)
			ring_bell(guests[domid]);
	return ppoll(fds, count, timeout < 0 ? NULL : &time, NULL);
}

int clock_gettime(clockid_t id, struct timespec *time)
{
	static int (*real)(clockid_t, struct timespec *);
	int result;

	if (real == NULL)
		real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	result = real(id, time);
	if (result == 0 && id == CLOCK_MONOTONIC) {
		unsigned long long nanoseconds = time->tv_nsec * CLOCK_FACTOR;
		time->tv_sec = time->tv_sec * CLOCK_FACTOR + nanoseconds / 1000000000;
		time->tv_nsec = nanoseconds % 1000000000;
	}
	return result;
}
