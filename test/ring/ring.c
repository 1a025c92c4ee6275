/*
 * Both ends of a ring as the macros of <xen/io/ring.h> work them: reads one command a line, and prints for each what
 * the macro gave, the four shared indexes and the four private ones. The parameter is the number of pages.
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

static blkif_front_ring_t front;
static blkif_back_ring_t back;

static void start(blkif_sring_t *sring, unsigned index, size_t size)
{
    memset(sring, 0xa5, size);
    SHARED_RING_INIT(sring);
    if (index) {
        sring->req_prod = sring->rsp_prod = index;
        sring->req_event = sring->rsp_event = index + 1;
    }
    FRONT_RING_ATTACH(&front, sring, index, size);
    BACK_RING_ATTACH(&back, sring, index, size);
}

static int front_command(char command)
{
    int result = 0;

    switch (command) {
    case 'p': /* push */
        RING_GET_REQUEST(&front, front.req_prod_pvt)->id = front.req_prod_pvt;
        front.req_prod_pvt++;
        break;
    case 'q': /* publish */
        RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&front, result);
        break;
    case 'n': /* pending */
        result = RING_HAS_UNCONSUMED_RESPONSES(&front);
        break;
    case 'c': /* consume */
        result = RING_GET_RESPONSE(&front, front.rsp_cons)->id;
        front.rsp_cons++;
        break;
    case 'f': /* final check */
        RING_FINAL_CHECK_FOR_RESPONSES(&front, result);
        result = !!result;
        break;
    case 'e': /* free slots */
        result = RING_FREE_REQUESTS(&front);
        break;
    default:
        exit(2);
    }
    return result;
}

static int back_command(char command)
{
    int result = 0;

    switch (command) {
    case 'N': /* pending */
        result = RING_HAS_UNCONSUMED_REQUESTS(&back);
        break;
    case 'C': { /* consume */
        blkif_request_t request;
        RING_COPY_REQUEST(&back, back.req_cons, &request);
        back.req_cons++;
        result = request.id;
        break;
    }
    case 'R': /* respond */
        RING_GET_RESPONSE(&back, back.rsp_prod_pvt)->id = ~back.rsp_prod_pvt;
        back.rsp_prod_pvt++;
        break;
    case 'Q': /* publish */
        RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&back, result);
        break;
    case 'F': /* final check */
        RING_FINAL_CHECK_FOR_REQUESTS(&back, result);
        result = !!result;
        break;
    case 'O': /* may another be consumed? */
        result = !RING_REQUEST_CONS_OVERFLOW(&back, back.req_cons);
        break;
    default:
        exit(2);
    }
    return result;
}

int main(int argc, char **argv)
{
    size_t size = 4096 * (argc == 2 ? atoi(argv[1]) : 1);
    blkif_sring_t *sring = aligned_alloc(4096, size);
    char line[64];

    while (fgets(line, sizeof(line), stdin)) {
        unsigned index = strtoul(line + 1, NULL, 10);
        int result = 0;

        if (line[0] == 's')
            start(sring, index, size);
        else if (line[0] == '<') { /* a hostile frontend claims requests */
            sring->req_prod = index;
            result = RING_REQUEST_PROD_OVERFLOW(&back, index) ? -1 : (int)RING_HAS_UNCONSUMED_REQUESTS(&back);
        } else if (line[0] == '>') { /* a hostile backend claims responses */
            sring->rsp_prod = index;
            result = RING_RESPONSE_PROD_OVERFLOW(&front, index) ? -1 : (int)RING_HAS_UNCONSUMED_RESPONSES(&front);
        } else if (line[0] >= 'a')
            result = front_command(line[0]);
        else
            result = back_command(line[0]);
        printf("%d %u %u %u %u %u %u %u %u\n", result, sring->req_prod, sring->req_event, sring->rsp_prod,
               sring->rsp_event, front.req_prod_pvt, front.rsp_cons, back.rsp_prod_pvt, back.req_cons);
    }
    return 0;
}
