// A walk along a random cycle of pointers: each load waits for the one before.

#include "workload.h"

#include <stdlib.h>

static uint64_t chase(size_t bytes, uint32_t **memory) {
    size_t count = bytes / 64;
    if (*memory == NULL) {
        // One pointer (an index) in each cache line; Sattolo's algorithm makes a single cycle of all.
        *memory = aligned_alloc(4096, bytes);
        if (*memory == NULL) fail("aligned_alloc");
        uint64_t random = 3;
        for (size_t line = 0; line < count; line++) (*memory)[line * 16] = (uint32_t)line;
        for (size_t line = count - 1; line > 0; line--) {
            size_t other = random_next(&random) % line;
            uint32_t held = (*memory)[line * 16];
            (*memory)[line * 16] = (*memory)[other * 16];
            (*memory)[other * 16] = held;
        }
    }
    uint64_t line = 0;
    for (int time = 0; time < 100000; time++) line = (*memory)[line * 16];
    return line;
}

uint64_t chase_32k(void) {
    static uint32_t *memory;
    return chase(32768, &memory);
}

uint64_t chase_16m(void) {
    static uint32_t *memory;
    return chase(16777216, &memory);
}
