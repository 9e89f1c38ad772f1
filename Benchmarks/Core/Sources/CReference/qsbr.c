#define _LGPL_SOURCE
#include <urcu/urcu-qsbr.h>
#include "CReference.h"

void reference_register_qsbr(void)
{
	urcu_qsbr_register_thread();
}

uint64_t reference_urcu_qsbr(uint64_t count)
{
	uint64_t sum = 0;
#pragma clang loop unroll_count(4)
	for (uint64_t i = 0; i < count; i++) {
		urcu_qsbr_read_lock();
		sum += rcu_dereference(reference_current)->value;
		urcu_qsbr_read_unlock();
	}
	return sum;
}

uint64_t reference_urcu_qsbr_quiescent(uint64_t count)
{
	uint64_t sum = 0;
#pragma clang loop unroll_count(4)
	for (uint64_t i = 0; i < count; i++) {
		urcu_qsbr_read_lock();
		sum += rcu_dereference(reference_current)->value;
		urcu_qsbr_read_unlock();
		urcu_qsbr_quiescent_state();
	}
	return sum;
}
