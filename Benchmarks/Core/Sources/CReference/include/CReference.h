#pragma once

// The same work as the Swift side of the benchmark, done by C libraries.

#include <stdint.h>

// What readers follow: a pointer that a writer might replace.
struct reference_object {
	uint64_t value;
};
extern struct reference_object *reference_current;

void reference_set_current(uint64_t value);

// Each returns the sum of the values it read, `count` times; a multiple of four, which is what a turn of its loop reads.

// A plain load and a dereference.
uint64_t reference_plain(uint64_t count);

// liburcu: read lock, dereference, read unlock, of three flavours; with the functions inlined.
uint64_t reference_urcu_qsbr(uint64_t count);
uint64_t reference_urcu_qsbr_quiescent(uint64_t count);
uint64_t reference_urcu_memb(uint64_t count);
uint64_t reference_urcu_mb(uint64_t count);

// Called once by the thread that measures.
void reference_register_qsbr(void);
void reference_register_memb(void);
void reference_register_mb(void);
