#include "tally.h"

void tally_delivery(struct tally *tally, struct track *track, uint32_t sequence) {
    tally->delivered++;
    if (sequence == track->last + 1) {
        track->seen = track->seen << 1 | 1;
        track->last = sequence;
        return;
    }
    if (sequence > track->last) {
        uint32_t step = sequence - track->last;
        tally->skipped += step - 1;
        track->seen = step < 64 ? track->seen << step | 1 : 1;
        track->last = sequence;
        return;
    }
    uint32_t back = track->last - sequence;
    /* What lies further back than the window is called a duplicate: it is wrong either way. */
    if (back < 64 && !(track->seen >> back & 1)) {
        track->seen |= (uint64_t)1 << back;
        tally->reordered++;
    } else {
        tally->duplicated++;
    }
}

static unsigned bucket_of(uint64_t ns) {
    if (ns < 16) return (unsigned)ns;
    unsigned log = 63 - (unsigned)__builtin_clzll(ns);
    unsigned bucket = (log - 3) * 16 + (unsigned)(ns >> (log - 4) & 15);
    return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static uint64_t bucket_start(unsigned bucket) {
    if (bucket < 16) return bucket;
    unsigned log = bucket / 16 + 3;
    return (uint64_t)(16 + bucket % 16) << (log - 4);
}

void histogram_add(struct histogram *histogram, uint64_t ns) {
    histogram->count[bucket_of(ns)]++;
    histogram->total++;
    if (ns > histogram->greatest) histogram->greatest = ns;
}

uint64_t histogram_quantile(const struct histogram *histogram, double quantile) {
    uint64_t rank = (uint64_t)(quantile * (double)histogram->total), passed = 0;
    for (unsigned bucket = 0; bucket < BUCKETS; bucket++) {
        passed += histogram->count[bucket];
        if (passed > rank) return bucket_start(bucket);
    }
    return histogram->greatest;
}
