#define _LGPL_SOURCE
#include <urcu/urcu-qsbr.h>
#include "CReference.h"

void reference_register_qsbr(void)
{
	urcu_qsbr_register_thread();
}

static inline uint64_t read_once(void)
{
	urcu_qsbr_read_lock();
	uint64_t value = rcu_dereference(reference_current)->value;
	urcu_qsbr_read_unlock();
	return value;
}

uint64_t reference_urcu_qsbr(uint64_t count)
{
	uint64_t sum = 0;
	for (uint64_t i = 0; i < count; i += 4) {
		sum += read_once();
		sum += read_once();
		sum += read_once();
		sum += read_once();
	}
	return sum;
}

uint64_t reference_urcu_qsbr_quiescent(uint64_t count)
{
	uint64_t sum = 0;
	for (uint64_t i = 0; i < count; i += 4) {
		sum += read_once();
		urcu_qsbr_quiescent_state();
		sum += read_once();
		urcu_qsbr_quiescent_state();
		sum += read_once();
		urcu_qsbr_quiescent_state();
		sum += read_once();
		urcu_qsbr_quiescent_state();
	}
	return sum;
}
