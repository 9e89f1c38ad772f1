// A byte-code machine whose loop is a `switch`: an indirect jump for each instruction.

#include "workload.h"

enum operation { PUSH, LOAD, STORE, ADD, MULTIPLY, XOR, DECREMENT, JUMP_IF_NOT_ZERO, HALT };

// counter = 100000; do { sum = (sum * 31 + counter) ^ 7 … } while (--counter). 13 instructions in each turn.
static const int32_t program[] = {
    PUSH,  100000, STORE, 0,                                   // counter
    PUSH,  1,      STORE, 1,                                   // sum
    LOAD,  1,      PUSH,  31, MULTIPLY, LOAD,  0, ADD,         // offset 8
    PUSH,  7,      XOR,   STORE, 1,
    LOAD,  0,      DECREMENT, STORE, 0,
    LOAD,  0,      JUMP_IF_NOT_ZERO, 8,
    HALT,
};

uint64_t interpreter(void) {
    uint64_t stack[16], variables[2] = {0, 0};
    uint64_t *top = stack;
    const int32_t *next = program;
    for (;;) {
        switch ((enum operation)*next++) {
        case PUSH: *top++ = (uint64_t)*next++; break;
        case LOAD: *top++ = variables[*next++]; break;
        case STORE: variables[*next++] = *--top; break;
        case ADD: top--; top[-1] += top[0]; break;
        case MULTIPLY: top--; top[-1] *= top[0]; break;
        case XOR: top--; top[-1] ^= top[0]; break;
        case DECREMENT: top[-1]--; break;
        case JUMP_IF_NOT_ZERO: next = *--top != 0 ? program + *next : next + 1; break;
        case HALT: return variables[1];
        }
    }
}
