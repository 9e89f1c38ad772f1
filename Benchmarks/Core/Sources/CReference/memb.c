#define _LGPL_SOURCE
#include <urcu/urcu-memb.h>
#include "CReference.h"

void reference_register_memb(void)
{
	urcu_memb_register_thread();
}

static inline uint64_t read_once(void)
{
	urcu_memb_read_lock();
	uint64_t value = rcu_dereference(reference_current)->value;
	urcu_memb_read_unlock();
	return value;
}

uint64_t reference_urcu_memb(uint64_t count)
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
