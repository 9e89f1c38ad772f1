// SHA-256 of 64 KiB in plain C: rotations, additions and table look-ups.
//
// Source: FIPS 180-4, sections 4.1.2, 4.2.2 and 6.2. The round constants are the fractional parts of the cube roots of the
// first 64 primes, and the initial values those of the square roots of the first 8; both are computed here.

#include "workload.h"

static uint32_t constants[64], initial[8];

// The first 32 fractional bits of the `degree`-th root of `value`.
static uint32_t root_fraction(uint64_t value, int degree) {
    // The greatest root with 32 fractional bits whose power does not exceed value · 2^(32·degree).
    unsigned __int128 low = 0, high = (unsigned __int128)32 << 32;
    while (high - low > 1) {
        unsigned __int128 middle = (low + high) / 2;
        // A cube would not fit 128 bits, so its last factor is compared by division.
        unsigned __int128 square = middle * middle;
        int fits = degree == 2 ? square <= (unsigned __int128)value << 64
                               : square / 65536 * middle <= (unsigned __int128)value << 80;
        if (fits) low = middle;
        else high = middle;
    }
    return (uint32_t)low;
}

static void prepare(void) {
    int found = 0;
    for (uint64_t candidate = 2; found < 64; candidate++) {
        int prime = 1;
        for (uint64_t divisor = 2; divisor * divisor <= candidate; divisor++)
            if (candidate % divisor == 0) prime = 0;
        if (!prime) continue;
        constants[found] = root_fraction(candidate, 3);
        if (found < 8) initial[found] = root_fraction(candidate, 2);
        found++;
    }
}

static inline uint32_t rotate(uint32_t value, int count) { return value >> count | value << (32 - count); }

static void compress(uint32_t state[8], const uint8_t block[64]) {
    uint32_t words[64];
    for (int index = 0; index < 16; index++)
        words[index] = (uint32_t)block[index * 4] << 24 | (uint32_t)block[index * 4 + 1] << 16
            | (uint32_t)block[index * 4 + 2] << 8 | block[index * 4 + 3];
    for (int index = 16; index < 64; index++) {
        uint32_t early = words[index - 15], late = words[index - 2];
        words[index] = words[index - 16] + (rotate(early, 7) ^ rotate(early, 18) ^ early >> 3) + words[index - 7]
            + (rotate(late, 17) ^ rotate(late, 19) ^ late >> 10);
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int index = 0; index < 64; index++) {
        uint32_t first = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + constants[index]
            + words[index];
        uint32_t second = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + first;
        d = c, c = b, b = a, a = first + second;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

uint64_t sha256(void) {
    static uint8_t message[65536];
    if (constants[0] == 0) {
        prepare();
        uint64_t random = 1;
        for (size_t index = 0; index < sizeof message; index++) message[index] = (uint8_t)random_next(&random);
    }
    uint32_t state[8];
    for (int index = 0; index < 8; index++) state[index] = initial[index];
    for (size_t offset = 0; offset < sizeof message; offset += 64) compress(state, message + offset);
    // The padding block is left out: it would be one more of the same.
    return (uint64_t)state[0] << 32 | state[7];
}
