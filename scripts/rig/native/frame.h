// A client's WebSocket frames (RFC 6455, section 5.2): always whole, always masked, always with the same mask.
#ifndef FRAME_H
#define FRAME_H

#include "bytes.h"

enum { TEXT = 1, CLOSE = 8, PING = 9, PONG = 10 };

// Add a frame with this text to `to`.
static inline void add_frame(bytes *to, int kind, const char *text, size_t size) {
    static const unsigned char mask[4] = {0x37, 0xfa, 0x21, 0x3d};
    unsigned char head[14] = {(unsigned char)(0x80 | kind)};
    size_t wide = size < 126 ? 0 : size < 65536 ? 2 : 8, at = 2;
    head[1] = (unsigned char)(0x80 | (wide == 8 ? 127 : wide ? 126 : size));
    for (size_t i = wide; i--; at++)
        head[at] = (unsigned char)(size >> (8 * i));
    memcpy(head + at, mask, sizeof mask);
    bytes_add(to, head, at + sizeof mask);
    size_t payload = to->size;
    bytes_add(to, text, size);
    for (size_t i = 0; i < size; i++)
        bytes_at(to)[payload + i] = (char)(bytes_at(to)[payload + i] ^ mask[i % 4]);
}

#endif
