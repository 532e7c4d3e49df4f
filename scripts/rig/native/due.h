// A queue of streams by the time their next event is due: a binary heap, whose members know their place in it.
#ifndef DUE_H
#define DUE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
    uint64_t due_ns;
    int place; // in the queue; -1: not in it
} dated;

typedef struct {
    dated **members;
    int count, room;
} due_queue;

static inline void due_put(due_queue *q, int place, dated *d) {
    q->members[place] = d;
    d->place = place;
}

// Put the member at `place` where its time belongs.
static inline void due_settle(due_queue *q, int place) {
    dated *d = q->members[place];
    for (int above; place && q->members[above = (place - 1) / 2]->due_ns > d->due_ns; place = above)
        due_put(q, place, q->members[above]);
    for (int below; (below = 2 * place + 1) < q->count; place = below) {
        if (below + 1 < q->count && q->members[below + 1]->due_ns < q->members[below]->due_ns)
            below++;
        if (q->members[below]->due_ns >= d->due_ns)
            break;
        due_put(q, place, q->members[below]);
    }
    due_put(q, place, d);
}

static inline void due_add(due_queue *q, dated *d) {
    if (q->count == q->room) {
        q->room = q->room * 2 + 64;
        if (!(q->members = realloc(q->members, sizeof *q->members * (size_t)q->room))) {
            perror("realloc");
            exit(1);
        }
    }
    due_put(q, q->count++, d);
    due_settle(q, d->place);
}

static inline void due_remove(due_queue *q, dated *d) {
    int place = d->place;
    if (place < 0)
        return;
    d->place = -1;
    if (place != --q->count) {
        due_put(q, place, q->members[q->count]);
        due_settle(q, place);
    }
}

#endif
