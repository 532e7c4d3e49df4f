// What a message of llm-mux.v1 is about: its envelope, which is its end, behind the data; or all of it.
#ifndef MUX_H
#define MUX_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { NO_RID = -1 };

typedef struct {
    const char *type; // and what follows it, `size` bytes; NULL: it is no message
    size_t size;
    uint64_t rid, seq; // the number behind the r; without one (uint64_t)NO_RID
} envelope;

static inline uint64_t number_behind(const envelope *e, const char *name, uint64_t otherwise) {
    const char *found = memmem(e->type, e->size, name, strlen(name));
    return found ? strtoull(found + strlen(name), NULL, 10) : otherwise;
}

// The last type in the message is the envelope's: what an upstream says stands before it.
static inline envelope read_envelope(const char *message, size_t size) {
    static const char type[] = "\"type\":\"";
    envelope e = {.rid = (uint64_t)NO_RID};
    for (size_t at = size; at-- > 0;)
        if (message[at] == '"' && size - at >= sizeof type && !memcmp(message + at, type, sizeof type - 1)) {
            e.type = message + at + sizeof type - 1;
            e.size = size - at - (sizeof type - 1);
            e.rid = number_behind(&e, "\"rid\":\"r", e.rid);
            e.seq = number_behind(&e, "\"seq\":", 0);
            break;
        }
    return e;
}

static inline int is_of(const envelope *e, const char *type) {
    size_t size = strlen(type);
    return e->type && e->size > size && !memcmp(e->type, type, size) && e->type[size] == '"';
}

#endif
