// A function whose code is changed before each call, as a just-in-time compiler's patching does.

#include "workload.h"

#include <string.h>
#include <sys/mman.h>

uint64_t rewriting(void) {
    static uint8_t *code;
    if (code == NULL) {
        code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (code == MAP_FAILED) fail("mmap");
        // mov eax, imm32; ret
        code[0] = 0xb8;
        code[5] = 0xc3;
    }
    uint64_t sum = 0;
    for (uint32_t time = 0; time < 4096; time++) {
        uint32_t immediate = time * 2654435761u;
        memcpy(code + 1, &immediate, sizeof immediate);
        __asm__ volatile("" : : : "memory");
        sum = mix(sum, ((uint32_t(*)(void))code)());
    }
    return sum;
}
