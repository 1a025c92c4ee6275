/*
 * What <xen/io/blkif.h>, <xen/io/ring.h> and <xen/io/protocols.h> say, as JSON, one value per line.
 *   facts           every constant and size
 *   slots SEED N    N slots of random bytes, and what the structures read in them
 *   read            what the structures read in the slots given on stdin, in hexadecimal
 *   responses SEED N, read-responses    the same for responses
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define xen_mb() __sync_synchronize()
#define xen_rmb() __sync_synchronize()
#define xen_wmb() __sync_synchronize()
#include <xen/xen.h>
#include <xen/io/blkif.h>
#include <xen/io/protocols.h>

typedef union {
    blkif_request_t rw;
    blkif_request_discard_t discard;
    blkif_request_indirect_t indirect;
    blkif_response_t response;
    uint8_t bytes[sizeof(union blkif_sring_entry)];
} slot_t;

static uint64_t state;

/* xorshift64*: the same everywhere, and the seed is printed by the test. */
static uint32_t next(void)
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)((state * 0x2545F4914F6CDD1DULL) >> 32);
}

static unsigned smaller(unsigned a, unsigned b)
{
    return a < b ? a : b;
}

static void print_hex(const uint8_t *bytes, size_t size)
{
    printf("\"hex\":\"");
    for (size_t i = 0; i < size; i++)
        printf("%02x", bytes[i]);
    printf("\"");
}

static void print_halves(const char *name, uint64_t value)
{
    printf(",\"%sLow\":%u,\"%sHigh\":%u", name, (uint32_t)value, name, (uint32_t)(value >> 32));
}

static void print_discard(const blkif_request_discard_t *request)
{
    print_halves("id", request->id);
    print_halves("sector", request->sector_number);
    print_halves("discardSectors", request->nr_sectors);
    printf(",\"handle\":%u,\"discardFlag\":%u", request->handle, request->flag);
}

static void print_indirect(const blkif_request_indirect_t *request)
{
    unsigned per_page = 4096 / sizeof(struct blkif_request_segment);
    unsigned pages = (request->nr_segments + per_page - 1) / per_page;

    print_halves("id", request->id);
    print_halves("sector", request->sector_number);
    printf(",\"handle\":%u,\"indirectOperation\":%u", request->handle, request->indirect_op);
    printf(",\"indirectSegmentCount\":%u,\"indirectReferences\":[", request->nr_segments);
    for (unsigned i = 0; i < smaller(pages, BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST); i++)
        printf("%s%u", i ? "," : "", request->indirect_grefs[i]);
    printf("]");
}

static void print_rw(const blkif_request_t *request)
{
    unsigned count = smaller(request->nr_segments, BLKIF_MAX_SEGMENTS_PER_REQUEST);

    print_halves("id", request->id);
    print_halves("sector", request->sector_number);
    printf(",\"handle\":%u,\"segmentCount\":%u", request->handle, request->nr_segments);
    printf(",\"references\":[");
    for (unsigned i = 0; i < count; i++)
        printf("%s%u", i ? "," : "", request->seg[i].gref);
    printf("],\"firstSectors\":[");
    for (unsigned i = 0; i < count; i++)
        printf("%s%u", i ? "," : "", request->seg[i].first_sect);
    printf("],\"lastSectors\":[");
    for (unsigned i = 0; i < count; i++)
        printf("%s%u", i ? "," : "", request->seg[i].last_sect);
    printf("]");
}

static void print_request(const slot_t *slot)
{
    uint8_t operation = slot->rw.operation;

    printf("{");
    print_hex(slot->bytes, sizeof(slot->bytes));
    printf(",\"operation\":%u", operation);
    if (operation == BLKIF_OP_DISCARD)
        print_discard(&slot->discard);
    else if (operation == BLKIF_OP_INDIRECT)
        print_indirect(&slot->indirect);
    else if (operation <= BLKIF_OP_FLUSH_DISKCACHE)
        print_rw(&slot->rw);
    else
        print_halves("id", slot->rw.id);
    printf("}\n");
}

/* The bytes of no field, or-ed together: what would leak. */
static unsigned padding(const blkif_response_t *response)
{
    blkif_response_t fields;
    const uint8_t *bytes = (const uint8_t *)response, *mask = (const uint8_t *)&fields;
    unsigned leak = 0;

    memset(&fields, 0, sizeof(fields));
    memset(&fields.id, 0xff, sizeof(fields.id));
    memset(&fields.operation, 0xff, sizeof(fields.operation));
    memset(&fields.status, 0xff, sizeof(fields.status));
    for (size_t i = 0; i < sizeof(fields); i++)
        leak |= bytes[i] & ~mask[i];
    return leak;
}

static void print_response(const slot_t *slot)
{
    const blkif_response_t *response = &slot->response;

    printf("{");
    print_hex(slot->bytes, sizeof(slot->bytes));
    print_halves("id", response->id);
    printf(",\"operation\":%u,\"status\":%d", response->operation, response->status);
    printf(",\"padding\":%u}\n", padding(response));
}

static void random_slots(unsigned count, void (*print)(const slot_t *))
{
    slot_t slot;

    while (count--) {
        for (size_t i = 0; i < sizeof(slot.bytes); i++)
            slot.bytes[i] = next();
        if (next() % 8) {
            slot.rw.operation = next() % (BLKIF_OP_INDIRECT + 2);
            if (slot.rw.operation <= BLKIF_OP_FLUSH_DISKCACHE && next() % 4)
                slot.rw.nr_segments = next() % (BLKIF_MAX_SEGMENTS_PER_REQUEST + 1);
            if (slot.rw.operation == BLKIF_OP_INDIRECT && next() % 4)
                slot.indirect.nr_segments = next() % 4097;
        }
        print(&slot);
    }
}

static void given_slots(void (*print)(const slot_t *))
{
    char line[2 * sizeof(slot_t) + 2];
    slot_t slot;

    while (fgets(line, sizeof(line), stdin)) {
        for (size_t i = 0; i < sizeof(slot.bytes); i++) {
            unsigned byte;
            if (sscanf(line + 2 * i, "%2x", &byte) != 1)
                exit(2);
            slot.bytes[i] = byte;
        }
        print(&slot);
    }
}

#define NUMBER(name) printf("\"%s\":%d,", #name, (int)(name))
#define TEXT(name) printf("\"%s\":\"%s\",", #name, name)

static void print_facts(void)
{
    printf("{\"constants\":{");
    NUMBER(BLKIF_OP_READ);
    NUMBER(BLKIF_OP_WRITE);
    NUMBER(BLKIF_OP_WRITE_BARRIER);
    NUMBER(BLKIF_OP_FLUSH_DISKCACHE);
    NUMBER(BLKIF_OP_RESERVED_1);
    NUMBER(BLKIF_OP_DISCARD);
    NUMBER(BLKIF_OP_INDIRECT);
    NUMBER(BLKIF_RSP_OKAY);
    NUMBER(BLKIF_RSP_ERROR);
    NUMBER(BLKIF_RSP_EOPNOTSUPP);
    NUMBER(BLKIF_MAX_SEGMENTS_PER_REQUEST);
    NUMBER(BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST);
    NUMBER(BLKIF_DISCARD_SECURE);
    NUMBER(VDISK_CDROM);
    NUMBER(VDISK_REMOVABLE);
    NUMBER(VDISK_READONLY);
    TEXT(XEN_IO_PROTO_ABI_X86_32);
    TEXT(XEN_IO_PROTO_ABI_X86_64);
    TEXT(XEN_IO_PROTO_ABI_ARM);
    printf("\"BLKIF_SEGMENTS_PER_INDIRECT_PAGE\":%d},", (int)(4096 / sizeof(struct blkif_request_segment)));
    printf("\"native\":\"%s\",", XEN_IO_PROTO_ABI_NATIVE);
    printf("\"requestSize\":%d,", (int)sizeof(union blkif_sring_entry));
    printf("\"responseSize\":%d,", (int)sizeof(blkif_response_t));
    printf("\"idOffset\":%d,", (int)offsetof(blkif_request_t, id));
    printf("\"header\":{\"REQ_PROD\":%d,", (int)offsetof(blkif_sring_t, req_prod));
    printf("\"REQ_EVENT\":%d,", (int)offsetof(blkif_sring_t, req_event));
    printf("\"RSP_PROD\":%d,", (int)offsetof(blkif_sring_t, rsp_prod));
    printf("\"RSP_EVENT\":%d,", (int)offsetof(blkif_sring_t, rsp_event));
    printf("\"RING_HEADER_WORDS\":%d},\"ringSizes\":[", (int)offsetof(blkif_sring_t, ring));
    for (int pages = 1; pages <= 16; pages++)
        printf("%s%d", pages > 1 ? "," : "", (int)__RING_SIZE((blkif_sring_t *)0, 4096 * pages));
    printf("]}\n");
}

int main(int argc, char **argv)
{
    if (argc == 4) {
        state = strtoull(argv[2], NULL, 10) | 1;
        random_slots(atoi(argv[3]), strcmp(argv[1], "slots") ? print_response : print_request);
    } else if (argc == 2 && !strcmp(argv[1], "facts")) {
        print_facts();
    } else if (argc == 2) {
        given_slots(strcmp(argv[1], "read") ? print_response : print_request);
    } else {
        return 2;
    }
    return 0;
}
