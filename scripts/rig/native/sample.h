// A sample of times, kept whole, told as its quantiles in microseconds.
#ifndef SAMPLE_H
#define SAMPLE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
    uint32_t *values; // in units of 100 ns: up to seven minutes
    size_t count, room;
} sample;

static inline void sample_add(sample *s, uint64_t ns) {
    if (s->count == s->room) {
        s->room = s->room * 2 + 65536;
        if (!(s->values = realloc(s->values, sizeof *s->values * s->room))) {
            perror("realloc");
            exit(1);
        }
    }
    s->values[s->count++] = ns / 100 > UINT32_MAX ? UINT32_MAX : (uint32_t)(ns / 100);
}

static inline int sample_compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static inline void sample_print(const char *name, sample *s) {
    static const struct {
        const char *name;
        double share;
    } quantiles[] = {{"p50", .5}, {"p90", .9}, {"p99", .99}, {"max", 1}};
    printf("\"%s\":{", name);
    if (s->count)
        qsort(s->values, s->count, sizeof *s->values, sample_compare);
    for (size_t i = 0; s->count && i < sizeof quantiles / sizeof *quantiles; i++) {
        size_t place = (size_t)(quantiles[i].share * (double)(s->count - 1));
        printf("%s\"%s\":%.1f", i ? "," : "", quantiles[i].name, s->values[place] / 10.0);
    }
    printf("}");
}

#endif
