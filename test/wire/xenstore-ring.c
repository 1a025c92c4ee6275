/* What <xen/io/xs_wire.h> says of the page that a domain shares with the xenstore: one "name value" per line. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <xen/grant_table.h>
#include <xen/io/xs_wire.h>

#define FIELD(name) printf(#name " %zu\n", offsetof(struct xenstore_domain_interface, name))
#define FACT(name) printf(#name " %d\n", (int)(name))

int main(void)
{
	FIELD(req);
	FIELD(rsp);
	FIELD(req_cons);
	FIELD(req_prod);
	FIELD(rsp_cons);
	FIELD(rsp_prod);
	FIELD(server_features);
	FIELD(connection);
	FIELD(error);
	FACT(XENSTORE_RING_SIZE);
	FACT(XENSTORE_SERVER_FEATURE_RECONNECTION);
	FACT(XENSTORE_SERVER_FEATURE_ERROR);
	FACT(XENSTORE_CONNECTED);
	FACT(XENSTORE_RECONNECT);
	FACT(XENSTORE_ERROR_NONE);
	FACT(XENSTORE_ERROR_COMM);
	FACT(XENSTORE_ERROR_RINGIDX);
	FACT(XENSTORE_ERROR_PROTO);
	FACT(GNTTAB_RESERVED_XENSTORE);
	return 0;
}
