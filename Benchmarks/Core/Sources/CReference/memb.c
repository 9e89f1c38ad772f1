#define _LGPL_SOURCE
#include <urcu/urcu-memb.h>
#include "CReference.h"

void reference_register_memb(void)
{
	urcu_memb_register_thread();
}

uint64_t reference_urcu_memb(uint64_t count)
{
	uint64_t sum = 0;
#pragma clang loop unroll_count(4)
	for (uint64_t i = 0; i < count; i++) {
		urcu_memb_read_lock();
		sum += rcu_dereference(reference_current)->value;
		urcu_memb_read_unlock();
	}
	return sum;
}
