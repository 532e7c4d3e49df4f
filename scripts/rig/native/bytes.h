// A growing run of bytes: added at its end, taken from its front, always followed by a NUL that is not part of it.
#ifndef BYTES_H
#define BYTES_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char *memory;
    size_t start, size, room;
} bytes;

static inline char *bytes_at(bytes *b) { return b->memory + b->start; }

// Make room for `more` bytes after the end.
static inline void bytes_reserve(bytes *b, size_t more) {
    if (b->memory && b->start + b->size + more < b->room)
        return;
    if (b->start) {
        memmove(b->memory, b->memory + b->start, b->size);
        b->start = 0;
    }
    if (!b->memory || b->size + more >= b->room) {
        b->room = (b->size + more) * 2 + 256;
        if (!(b->memory = realloc(b->memory, b->room))) {
            perror("realloc");
            exit(1);
        }
    }
    b->memory[b->size] = 0;
}

static inline void bytes_grown(bytes *b, size_t by) {
    b->size += by;
    b->memory[b->start + b->size] = 0;
}

static inline void bytes_add(bytes *b, const void *data, size_t size) {
    bytes_reserve(b, size);
    memcpy(bytes_at(b) + b->size, data, size);
    bytes_grown(b, size);
}

static inline void bytes_drop(bytes *b, size_t size) {
    b->size -= size;
    b->start = b->size ? b->start + size : 0;
    if (b->memory)
        b->memory[b->start + b->size] = 0;
}

static inline void bytes_clear(bytes *b) { bytes_drop(b, b->size); }

static inline void bytes_free(bytes *b) {
    free(b->memory);
    memset(b, 0, sizeof *b);
}

#endif
