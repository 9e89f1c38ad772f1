// libFuzzer's entry point, and a signal handler that makes it see crashes next to translated code.
#ifndef CFUZZER_H
#define CFUZZER_H

#include <stddef.h>
#include <stdint.h>

// Runs `callback` on mutated inputs as the command line says. Part of the compiler's runtime library.
int LLVMFuzzerRunDriver(int *argc, char ***argv, int (*callback)(const uint8_t *data, size_t size));

// Puts a handler in front of those installed for SIGSEGV, SIGBUS, SIGFPE and SIGILL. Where they give up, by restoring
// the default action, it aborts, and libFuzzer saves the input. It runs on a stack of its own, so that a stack
// overflow is seen, too.
void fuzzer_catch_crashes(void);

#endif
