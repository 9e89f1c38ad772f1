#include "CFuzzer.h"

#include <signal.h>
#include <stdlib.h>

static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
static struct sigaction previous[NSIG];
static char stack[1 << 18];

static void handle(int number, siginfo_t *info, void *context) {
    previous[number].sa_sigaction(number, info, context);
    struct sigaction now;
    if (sigaction(number, NULL, &now) != 0 || now.sa_handler == SIG_DFL) abort();
}

void fuzzer_catch_crashes(void) {
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    if (sigaltstack(&alternate, NULL) != 0) abort();
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
        if (sigaction(signals[i], &action, &previous[signals[i]]) != 0) abort();
        if (!(previous[signals[i]].sa_flags & SA_SIGINFO)) abort();
    }
}
