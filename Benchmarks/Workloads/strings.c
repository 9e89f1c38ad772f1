// The repeated string instructions that kernels and libraries copy and clear with.

#include "workload.h"

// At a distance that is no power of two, so that no cache of translations maps both to one place.
static struct {
    uint8_t source[1 << 20], between[37 * 4096], target[1 << 20];
} memory __attribute__((aligned(4096)));

static uint8_t *const source = memory.source, *const target = memory.target;

static uint64_t sum_of(const uint8_t *bytes, size_t size) {
    uint64_t sum = 0;
    for (size_t offset = 0; offset < size; offset += 1021) sum = mix(sum, bytes[offset]);
    return sum;
}

static uint64_t copy(size_t size, int times) {
    if (source[1] == 0)
        for (size_t offset = 0; offset < sizeof memory.source; offset++) source[offset] = (uint8_t)(offset * 7 + offset / 4096);
    for (int time = 0; time < times; time++) {
        void *to = target;
        const void *from = source;
        size_t left = size;
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(left) : : "memory");
    }
    return sum_of(target, size);
}

static uint64_t fill(size_t size, int times) {
    for (int time = 0; time < times; time++) {
        void *to = target;
        size_t left = size;
        __asm__ volatile("rep stosb" : "+D"(to), "+c"(left) : "a"(time) : "memory");
    }
    return sum_of(target, size);
}

uint64_t movsb_64k(void) { return copy(65536, 256); }
uint64_t movsb_1m(void) { return copy(1 << 20, 16); }
uint64_t stosb_64k(void) { return fill(65536, 256); }
uint64_t stosb_1m(void) { return fill(1 << 20, 16); }
