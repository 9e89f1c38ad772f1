#pragma once

// Storage that Swift cannot declare: words of the thread, and a word that readers reach without a call.

#include <stdint.h>

#define MARTLET_THREAD_WORD __thread __attribute__((tls_model("initial-exec")))

// The thread's reader record; NULL before its first read section.
extern MARTLET_THREAD_WORD void *martlet_thread_record;
// A small number of the thread, from 1 on; 0 before it has one.
extern MARTLET_THREAD_WORD uint32_t martlet_thread_number;

static inline void *martlet_get_thread_record(void)
{
	return martlet_thread_record;
}

static inline void martlet_set_thread_record(void *record)
{
	martlet_thread_record = record;
}

static inline uint32_t martlet_get_thread_number(void)
{
	return martlet_thread_number;
}

static inline void martlet_set_thread_number(uint32_t number)
{
	martlet_thread_number = number;
}

// The grace periods that all threads of the process take part in; see GracePeriodLine in Swift.
struct martlet_grace_period_line {
	uint64_t counter;
	uint32_t sleeping;
} __attribute__((aligned(64)));

extern struct martlet_grace_period_line martlet_thread_grace_periods;

static inline void *martlet_thread_grace_period_line(void)
{
	return &martlet_thread_grace_periods;
}
