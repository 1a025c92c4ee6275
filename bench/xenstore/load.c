/*
 * Load for a xenstore, ours or another: as many requests as it answers in so many milliseconds, each connection with one
 * in flight. Prints the operations per second.
 *
 *   xenstore-load SOCKET ping CLIENTS MILLISECONDS           a READ and a WRITE in turn, by each client
 *   xenstore-load SOCKET transaction CLIENTS MILLISECONDS    START, READ, WRITE, END, counted as one
 *   xenstore-load SOCKET watch CLIENTS MILLISECONDS          one writes, the others hear of it; events are counted
 */
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <xen/io/xs_wire.h>

#define MOST_CLIENTS 64
#define BUFFER 16384

struct client {
	int fd, step;
	uint32_t transaction;
	char path[64];
	size_t filled;
	char buffer[BUFFER];
};

static struct client clients[MOST_CLIENTS];
static struct pollfd polled[MOST_CLIENTS];
static unsigned count;
static unsigned long operations;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void request(struct client *client, uint32_t type, uint32_t transaction, const void *payload, uint32_t length)
{
	char message[sizeof(struct xsd_sockmsg) + 256];
	struct xsd_sockmsg header = {.type = type, .req_id = 1, .tx_id = transaction, .len = length};

	memcpy(message, &header, sizeof(header));
	memcpy(message + sizeof(header), payload, length);
	if (send(client->fd, message, sizeof(header) + length, MSG_NOSIGNAL) != (ssize_t)(sizeof(header) + length))
		die("send");
}

static void write_node(struct client *client, uint32_t transaction)
{
	char payload[128];
	size_t length = strlen(client->path) + 1;

	memcpy(payload, client->path, length);
	length += sprintf(payload + length, "value %lu", operations % 1000000);
	request(client, XS_WRITE, transaction, payload, length);
}

static void read_node(struct client *client, uint32_t transaction)
{
	request(client, XS_READ, transaction, client->path, strlen(client->path) + 1);
}

/* Receives what there is, at least a byte, and hands on each whole message. */
static void receive(struct client *client, void (*on)(struct client *, struct xsd_sockmsg *, char *))
{
	ssize_t got = recv(client->fd, client->buffer + client->filled, BUFFER - client->filled, 0);
	size_t at = 0;

	if (got <= 0)
		die("recv");
	client->filled += got;
	while (client->filled - at >= sizeof(struct xsd_sockmsg)) {
		struct xsd_sockmsg header;
		memcpy(&header, client->buffer + at, sizeof(header));
		if (client->filled - at < sizeof(header) + header.len)
			break;
		if (header.type == XS_ERROR) {
			fprintf(stderr, "the xenstore answers %.*s\n", (int)header.len, client->buffer + at + sizeof(header));
			exit(1);
		}
		on(client, &header, client->buffer + at + sizeof(header));
		at += sizeof(header) + header.len;
	}
	memmove(client->buffer, client->buffer + at, client->filled - at);
	client->filled -= at;
}

static void ping(struct client *client, struct xsd_sockmsg *header, char *payload)
{
	operations++;
	if (++client->step % 2)
		read_node(client, 0);
	else
		write_node(client, 0);
}

static void transaction(struct client *client, struct xsd_sockmsg *header, char *payload)
{
	switch (header->type) {
	case XS_TRANSACTION_START:
		client->transaction = strtoul(payload, NULL, 10);
		read_node(client, client->transaction);
		return;
	case XS_READ:
		write_node(client, client->transaction);
		return;
	case XS_WRITE:
		if (client->transaction) {
			request(client, XS_TRANSACTION_END, client->transaction, "T", 2);
			return;
		}
		break;
	default:
		operations++;
	}
	client->transaction = 0;
	request(client, XS_TRANSACTION_START, 0, "", 1);
}

static unsigned awaited;

static void watch(struct client *client, struct xsd_sockmsg *header, char *payload)
{
	if (header->type == XS_WATCH_EVENT)
		operations++;
	if (--awaited)
		return;
	awaited = count;
	write_node(&clients[0], 0);
}

static void nothing(struct client *client, struct xsd_sockmsg *header, char *payload)
{
	client->step++;
}

static void connect_to(struct client *client, const char *path, unsigned number)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
	client->fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (client->fd < 0 || connect(client->fd, (void *)&address, sizeof(address)))
		die(path);
	sprintf(client->path, "/bench/client-%u/device/vbd/51712/state", number);
	write_node(client, 0);
	while (client->step < 1)
		receive(client, nothing);
	polled[number] = (struct pollfd){.fd = client->fd, .events = POLLIN};
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

int main(int argc, char **argv)
{
	void (*on)(struct client *, struct xsd_sockmsg *, char *) = ping;
	double began, wanted, passed;

	if (argc != 5 || (count = atoi(argv[3])) < 1 || count > MOST_CLIENTS)
		return 2;
	wanted = atof(argv[4]);
	for (unsigned i = 0; i < count; i++)
		connect_to(&clients[i], argv[1], i);
	if (!strcmp(argv[2], "transaction")) {
		on = transaction;
	} else if (!strcmp(argv[2], "watch")) {
		char payload[128];
		int length = sprintf(payload, "%s%ctoken", clients[0].path, 0) + 1;
		on = watch;
		for (unsigned i = 1; i < count; i++) {
			request(&clients[i], XS_WATCH, 0, payload, length);
			/* The answer and the first event. */
			while (clients[i].step < 3)
				receive(&clients[i], nothing);
		}
		awaited = count;
	}
	began = now();
	for (unsigned i = 0; i < (on == watch ? 1 : count); i++)
		write_node(&clients[i], 0);
	do {
		if (count == 1) {
			receive(&clients[0], on);
		} else {
			if (poll(polled, count, -1) < 0)
				die("poll");
			for (unsigned i = 0; i < count; i++)
				if (polled[i].revents)
					receive(&clients[i], on);
		}
		passed = now() - began;
	} while (passed < wanted);
	printf("%.0f\n", operations / passed * 1e3);
	return 0;
}
