// The mark that every event of the simulated model server carries in its text: when it was sent, and its place in the
// stream. Both ends run on one machine and read one clock, so a mark tells a client how long its event was on the way.
#ifndef MARK_H
#define MARK_H

#include <stdint.h>
#include <time.h>

enum { MARK_TIME_DIGITS = 19, MARK_PLACE_DIGITS = 6, MARK_BYTES = 1 + MARK_TIME_DIGITS + 1 + MARK_PLACE_DIGITS };

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static inline void write_digits(char *at, int count, uint64_t value) {
    while (count--) {
        at[count] = (char)('0' + value % 10);
        value /= 10;
    }
}

static inline int read_digits(const char *at, int count, uint64_t *value) {
    for (*value = 0; count--; at++) {
        if (*at < '0' || *at > '9')
            return 0;
        *value = *value * 10 + (uint64_t)(*at - '0');
    }
    return 1;
}

// "@<nanoseconds>:<place>"
static inline void write_mark(char *at, uint64_t sent_ns, uint64_t place) {
    at[0] = '@';
    write_digits(at + 1, MARK_TIME_DIGITS, sent_ns);
    at[1 + MARK_TIME_DIGITS] = ':';
    write_digits(at + 2 + MARK_TIME_DIGITS, MARK_PLACE_DIGITS, place);
}

// Whether a mark begins at `at`, which has MARK_BYTES bytes.
static inline int read_mark(const char *at, uint64_t *sent_ns, uint64_t *place) {
    return at[0] == '@' && read_digits(at + 1, MARK_TIME_DIGITS, sent_ns) && at[1 + MARK_TIME_DIGITS] == ':' &&
           read_digits(at + 2 + MARK_TIME_DIGITS, MARK_PLACE_DIGITS, place);
}

#endif
