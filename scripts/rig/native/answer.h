// Reads one HTTP/1.1 answer from bytes of any cut: its head, then its body by length, in chunks, or until the end.
#ifndef ANSWER_H
#define ANSWER_H

#include "bytes.h"

#include <stdint.h>
#include <strings.h>

typedef enum {
    IN_HEAD,
    IN_LENGTH,
    IN_REST, // the body is whatever comes until the connection ends
    IN_CHUNK_SIZE,
    IN_CHUNK_EXTENSION,
    IN_CHUNK,
    AFTER_CHUNK,
    IN_TRAILER,
    UPGRADED, // what follows is another protocol's
    WHOLE,
    NOT_HTTP,
} answer_state;

typedef struct {
    answer_state state;
    int status, keeps_alive;
    uint64_t left; // of the length or the chunk; in a trailer, the bytes of its line so far
    bytes head;
} answer;

static inline void answer_begin(answer *a) {
    a->state = IN_HEAD;
    a->status = 0;
    bytes_clear(&a->head);
}

// The key that every handshake of ours sends is RFC 6455's own example, so its answer is known too (section 1.3).
static const char handshake_key[] = "dGhlIHNhbXBsZSBub25jZQ==";
static const char handshake_answer[] = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

static inline const char *answer_header(const char *head, const char *name) {
    const char *found = strcasestr(head, name);
    return found ? found + strlen(name) : NULL;
}

static inline void answer_judge_head(answer *a) {
    const char *head = bytes_at(&a->head);
    int minor = 1;
    if (sscanf(head, "HTTP/1.%d %d", &minor, &a->status) != 2) {
        a->state = NOT_HTTP;
        return;
    }
    const char *length = answer_header(head, "\r\ncontent-length:");
    const char *connection = answer_header(head, "\r\nconnection:");
    a->keeps_alive = minor == 1;
    if (connection) {
        while (*connection == ' ')
            connection++;
        if (!strncasecmp(connection, "close", 5))
            a->keeps_alive = 0;
        else if (!strncasecmp(connection, "keep-alive", 10))
            a->keeps_alive = 1;
    }
    a->left = 0;
    if (a->status == 101)
        a->state = strstr(head, handshake_answer) ? UPGRADED : NOT_HTTP;
    else if (a->status < 200)
        answer_begin(a); // an interim answer; the real one follows
    else if (answer_header(head, "\r\ntransfer-encoding: chunked"))
        a->state = IN_CHUNK_SIZE;
    else if (length) {
        a->left = strtoull(length, NULL, 10);
        a->state = a->left ? IN_LENGTH : WHOLE;
    } else {
        a->keeps_alive = 0;
        a->state = IN_REST;
    }
}

// The bytes of `data` that belong to the head, which is judged when it is whole.
static inline size_t answer_read_head(answer *a, const char *data, size_t size) {
    size_t before = a->head.size;
    bytes_add(&a->head, data, size);
    char *end = strstr(bytes_at(&a->head), "\r\n\r\n");
    if (!end)
        return size;
    end[2] = 0;
    size_t used = (size_t)(end + 4 - bytes_at(&a->head)) - before;
    answer_judge_head(a);
    return used;
}

static inline int answer_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

// One byte of the framing around chunks.
static inline void answer_read_framing(answer *a, char c) {
    int digit = answer_digit(c);
    switch (a->state) {
    case IN_CHUNK_SIZE:
        if (digit >= 0) {
            a->left = a->left * 16 + (uint64_t)digit;
            return;
        }
        if (c != '\r' && c != ';' && c != ' ' && c != '\n') {
            a->state = NOT_HTTP;
            return;
        }
        a->state = IN_CHUNK_EXTENSION;
        __attribute__((fallthrough)); // the line may end here
    case IN_CHUNK_EXTENSION:
        if (c == '\n')
            a->state = a->left ? IN_CHUNK : IN_TRAILER;
        return;
    case AFTER_CHUNK:
        if (c == '\n')
            a->state = IN_CHUNK_SIZE;
        else if (c != '\r')
            a->state = NOT_HTTP;
        return;
    default: // IN_TRAILER
        if (c == '\n') {
            if (!a->left)
                a->state = WHOLE;
            a->left = 0;
        } else if (c != '\r')
            a->left++;
    }
}

// Read as far as the next piece of the body. Returns how many bytes of `data` were used; `*piece` and `*piece_size` are
// the body's bytes among them (0: none yet). The caller goes on with the rest until the state is one of the last three.
static inline size_t answer_read(answer *a, const char *data, size_t size, const char **piece, size_t *piece_size) {
    *piece = data;
    *piece_size = 0;
    switch (a->state) {
    case IN_HEAD:
        return answer_read_head(a, data, size);
    case IN_REST:
        return *piece_size = size;
    case IN_LENGTH:
    case IN_CHUNK:
        *piece_size = size < a->left ? size : (size_t)a->left;
        a->left -= *piece_size;
        if (!a->left)
            a->state = a->state == IN_LENGTH ? WHOLE : AFTER_CHUNK;
        return *piece_size;
    default:
        answer_read_framing(a, *data);
        return 1;
    }
}

#endif
