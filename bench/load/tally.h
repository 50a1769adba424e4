/* Who got what: each subscriber's place in each of its channels, and how long deliveries took. */
#ifndef TALLY_H
#define TALLY_H

#include <stdint.h>

/* A subscriber's place in one channel. Sequence numbers begin at 1. */
struct track {
    uint32_t last; /* highest number seen; 0 = none yet */
    uint64_t seen; /* bit i: last - i was seen */
};

struct tally {
    uint64_t delivered;
    uint64_t skipped;    /* numbers passed over, whether or not they came later */
    uint64_t reordered;  /* came after a higher number */
    uint64_t duplicated; /* came again */
    uint64_t foreign;    /* of a channel that this subscriber had not asked for */
};

/* Latencies in ns, in buckets 1/16 apart: 0 to 35 minutes within 6 %. */
enum { BUCKETS = 38 * 16 };

struct histogram {
    uint64_t count[BUCKETS];
    uint64_t total;
    uint64_t greatest;
};

void tally_delivery(struct tally *tally, struct track *track, uint32_t sequence);
void histogram_add(struct histogram *histogram, uint64_t ns);
uint64_t histogram_quantile(const struct histogram *histogram, double quantile);

#endif
