#pragma once

// Storage that Swift cannot declare: words of the thread, and a word that readers reach without a call.

#include <stdint.h>

#define MARTLET_THREAD_WORD __thread __attribute__((tls_model("initial-exec")))

// What readers of a thread that has no record yet find in its place: its first word says that it needs a slow path.
struct martlet_unregistered_record {
	uint64_t state;
} __attribute__((aligned(64)));

extern struct martlet_unregistered_record martlet_unregistered_record;

// The thread's reader record.
extern MARTLET_THREAD_WORD void *martlet_thread_record;
// A small number of the thread, from 1 on; 0 before it has one.
extern MARTLET_THREAD_WORD uint32_t martlet_thread_number;

static inline void *martlet_get_thread_record(void)
{
	return martlet_thread_record;
}

// NULL: the thread has none any more.
static inline void martlet_set_thread_record(void *record)
{
	martlet_thread_record = record ? record : &martlet_unregistered_record;
}

static inline void *martlet_unregistered_record_address(void)
{
	return &martlet_unregistered_record;
}

static inline uint32_t martlet_get_thread_number(void)
{
	return martlet_thread_number;
}

static inline void martlet_set_thread_number(uint32_t number)
{
	martlet_thread_number = number;
}

// How many mappings of this thread succeed before the rest fail, for tests; negative without a limit.
extern MARTLET_THREAD_WORD int64_t martlet_mappings_left;

static inline void martlet_set_mappings_left(int64_t count)
{
	martlet_mappings_left = count;
}

// Whether a mapping may succeed.
static inline int martlet_take_mapping(void)
{
	if (martlet_mappings_left < 0) return 1;
	if (martlet_mappings_left == 0) return 0;
	martlet_mappings_left--;
	return 1;
}

// The grace periods that all threads of the process take part in; see GracePeriodLine in Swift.
struct martlet_grace_period_line {
	uint64_t counter;
} __attribute__((aligned(64)));

extern struct martlet_grace_period_line martlet_thread_grace_periods;

static inline void *martlet_thread_grace_period_line(void)
{
	return &martlet_thread_grace_periods;
}

// Whether the thread has been made to take the signals of faults.
extern MARTLET_THREAD_WORD int32_t martlet_thread_takes_faults;

static inline int32_t martlet_get_thread_takes_faults(void)
{
	return martlet_thread_takes_faults;
}

static inline void martlet_set_thread_takes_faults(void)
{
	martlet_thread_takes_faults = 1;
}

// How often the thread has entered the core without having left it, and the signals that came meanwhile and are put off to the
// end: bit n - 1 is signal n. A handler on the thread may look at both at any moment.
extern MARTLET_THREAD_WORD uint32_t martlet_thread_core_depth;
extern MARTLET_THREAD_WORD uint64_t martlet_thread_deferred_signals;

static inline void martlet_enter_core(void)
{
	__atomic_store_n(&martlet_thread_core_depth, martlet_thread_core_depth + 1, __ATOMIC_RELAXED);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

static inline uint64_t martlet_exchange_deferred_signals(uint64_t value)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	uint64_t old = __atomic_load_n(&martlet_thread_deferred_signals, __ATOMIC_RELAXED);
	__atomic_store_n(&martlet_thread_deferred_signals, value, __ATOMIC_RELAXED);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	return old;
}

// One instruction each: a handler may come between any two.
static inline void martlet_defer_signals(uint64_t signals)
{
	__atomic_fetch_or(&martlet_thread_deferred_signals, signals, __ATOMIC_RELAXED);
}

static inline void martlet_forget_deferred_signals(uint64_t signals)
{
	__atomic_fetch_and(&martlet_thread_deferred_signals, ~signals, __ATOMIC_RELAXED);
}

static inline uint64_t martlet_get_deferred_signals(void)
{
	return __atomic_load_n(&martlet_thread_deferred_signals, __ATOMIC_RELAXED);
}

// Returns the signals to unblock, if the thread is outside now. Handlers run from the first store on.
static inline uint64_t martlet_leave_core(void)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	__atomic_store_n(&martlet_thread_core_depth, martlet_thread_core_depth - 1, __ATOMIC_RELAXED);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (__builtin_expect(martlet_thread_core_depth || !martlet_get_deferred_signals(), 1)) return 0;
	return martlet_exchange_deferred_signals(0);
}

static inline uint32_t martlet_get_core_depth(void)
{
	return __atomic_load_n(&martlet_thread_core_depth, __ATOMIC_RELAXED);
}

// Whether the thread forks, and so holds every lock that a child needs.
extern MARTLET_THREAD_WORD int32_t martlet_thread_forks;

static inline int32_t martlet_get_thread_forks(void)
{
	return martlet_thread_forks;
}

static inline void martlet_set_thread_forks(int32_t value)
{
	martlet_thread_forks = value;
}

// The thread's id, once it takes the signal that ends KVM_RUN of the kernel; 0 before.
extern MARTLET_THREAD_WORD int32_t martlet_thread_kick_id;

static inline int32_t martlet_get_thread_kick_id(void)
{
	return martlet_thread_kick_id;
}

static inline void martlet_set_thread_kick_id(int32_t id)
{
	martlet_thread_kick_id = id;
}
