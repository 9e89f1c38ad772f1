// Compresses 256 KiB of generated words with zlib, as gzip -6 does.

#include "workload.h"

#include <stdio.h>
#include <string.h>
#include <zlib.h>

enum { size = 262144 };

static void generate(uint8_t *text) {
    uint64_t random = 7;
    size_t length = 0;
    while (length < size) {
        // Small numbers are likelier, so some words are frequent.
        uint64_t word = random_next(&random) % (1 + random_next(&random) % 4000);
        char buffer[24];
        int bytes = snprintf(buffer, sizeof buffer, "%llx%s ", (unsigned long long)(word * 2654435761u), word % 7 ? "" : ".\n");
        for (int index = 0; index < bytes && length < size; index++) text[length++] = (uint8_t)buffer[index];
    }
}

uint64_t gzip(void) {
    static uint8_t text[size], compressed[size];
    static z_stream stream;
    if (stream.state == NULL) {
        generate(text);
        if (deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK) fail("deflateInit2");
    }
    deflateReset(&stream);
    stream.next_in = text;
    stream.avail_in = size;
    stream.next_out = compressed;
    stream.avail_out = size;
    if (deflate(&stream, Z_FINISH) != Z_STREAM_END) fail("deflate");
    return mix(crc32(0, compressed, (uInt)stream.total_out), stream.total_out);
}
