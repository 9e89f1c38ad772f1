// What a workload is. Every workload does the same work in every round, so each round gives the same checksum.

#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <stddef.h>
#include <stdint.h>

struct workload {
    const char *name;
    // The work of one round, and a checksum of its result.
    uint64_t (*round)(void);
    // What one round counts as: the figure is nanoseconds per operation.
    uint64_t operations;
};

uint64_t sieve(void);
uint64_t interpreter(void);
uint64_t nbody_sse2(void);
uint64_t nbody_x87(void);
uint64_t matmul(void);
uint64_t sha256(void);
uint64_t quicksort(void);
uint64_t gzip(void);
uint64_t movsb_64k(void);
uint64_t movsb_1m(void);
uint64_t stosb_64k(void);
uint64_t stosb_1m(void);
uint64_t rewriting(void);
uint64_t getpid_call(void);
uint64_t page_fault(void);
uint64_t fork_exec(void);
uint64_t context_switch(void);
uint64_t chase_32k(void);
uint64_t chase_16m(void);
uint64_t port_output(void);

// Runs the same work on one thread and then on two at once, and reports both figures.
void measure_threads(void);

// Nanoseconds of CLOCK_MONOTONIC.
uint64_t now(void);

// Says on the console that a timed section starts, and waits until the words have left.
void begin(const char *name);

// Says on the console how a timed section ended.
void end(const char *name, uint64_t nanoseconds, uint64_t operations, uint64_t checksum);

// How long a timed section lasts at least, in nanoseconds.
extern uint64_t duration;

// Prints what failed and ends the process.
_Noreturn void fail(const char *what);

// One step of a checksum (FNV-1a over 64-bit words).
static inline uint64_t mix(uint64_t sum, uint64_t value) { return (sum ^ value) * 0x100000001b3; }

// The next number of a reproducible sequence (xorshift64).
static inline uint64_t random_next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

#endif
