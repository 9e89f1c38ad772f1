#include "CReference.h"
#include <stdlib.h>

struct reference_object *reference_current;

void reference_set_current(uint64_t value)
{
	reference_current = malloc(sizeof(*reference_current));
	reference_current->value = value;
}

uint64_t reference_plain(uint64_t count)
{
	uint64_t sum = 0;
	for (uint64_t i = 0; i < count; i++) {
		struct reference_object *object = *(struct reference_object *volatile *)&reference_current;
		sum += object->value;
	}
	return sum;
}
