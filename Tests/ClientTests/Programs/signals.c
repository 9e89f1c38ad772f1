// Signals of a client that runs a vCPU: they end KVM_RUN with EINTR, and their handlers run outside of it.
#include "client.h"

// Old functions are part of what is tested.
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

static struct client client;
static volatile sig_atomic_t handled;
static volatile int64_t value;
static sigjmp_buf place_to_go;

struct sender {
	pthread_t target;
	int signal;
	long delay;
};

static void *send_later(void *argument)
{
	struct sender *sender = argument;
	sleep_milliseconds(sender->delay);
	pthread_kill(sender->target, sender->signal);
	return NULL;
}

static void count(int signal)
{
	(void)signal;
	handled++;
}

// Runs the vCPU until a signal that another thread sends after a while ends it.
static int run_until(int signal)
{
	struct sender sender = {pthread_self(), signal, 20};
	pthread_t thread;
	pthread_create(&thread, NULL, send_later, &sender);
	int result = ioctl(client.vcpu, KVM_RUN, 0);
	int error = errno;
	pthread_join(thread, NULL);
	errno = error;
	return result;
}

static void bare_handler(void)
{
	signal(SIGUSR1, count);
	handled = 0;
	FAILS(EINTR, run_until(SIGUSR1));
	CHECK(handled == 1 && client.run->exit_reason == KVM_EXIT_INTR);
	// One that is installed after the first run works, too, and the old one is known.
	struct sigaction action = {.sa_handler = count}, old;
	CHECK(sigaction(SIGUSR2, &action, &old) == 0 && old.sa_handler == SIG_DFL);
	FAILS(EINTR, run_until(SIGUSR2));
	CHECK(handled == 2);
	CHECK(sigaction(SIGUSR2, NULL, &old) == 0 && old.sa_handler == count);
	CHECK(signal(SIGUSR2, SIG_IGN) == count);
	CHECK(signal(SIGUSR2, count) == SIG_IGN);
	FAILS(EINTR, run_until(SIGUSR2));
	CHECK(handled == 3);
}

// A handler may issue requests to the vCPU that it interrupted.
static void ask(int signal, siginfo_t *information, void *context)
{
	(void)signal, (void)context;
	struct kvm_regs registers;
	CHECK(ioctl(client.vcpu, KVM_GET_REGS, &registers) == 0);
	value = registers.rip;
	handled = information->si_code;
	client.run->immediate_exit = 1;
}

static void requests_in_a_handler(void)
{
	struct sigaction action = {.sa_sigaction = ask, .sa_flags = SA_SIGINFO};
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	value = 0;
	FAILS(EINTR, run_until(SIGUSR1));
	CHECK(value == CODE && handled == SI_TKILL);
	FAILS(EINTR, ioctl(client.vcpu, KVM_RUN, 0));
	client.run->immediate_exit = 0;
}

static void leave(int signal)
{
	(void)signal;
	siglongjmp(place_to_go, 1);
}

// A handler may jump out, and the vCPU can be used afterwards.
static void jump_out_of_a_handler(void)
{
	signal(SIGUSR1, leave);
	if (sigsetjmp(place_to_go, 1) == 0) {
		run_until(SIGUSR1);
		CHECK(!"the handler has returned");
	}
	struct kvm_regs registers;
	CHECK(ioctl(client.vcpu, KVM_GET_REGS, &registers) == 0);
	signal(SIGUSR1, count);
	handled = 0;
	FAILS(EINTR, run_until(SIGUSR1));
	CHECK(handled == 1);
}

// The thread blocks a signal that nobody handles, lets it through during the run, and takes it with sigwait().
static void mask_and_wait(void)
{
	signal(SIGUSR1, SIG_DFL);
	sigset_t set, pending;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	char room[sizeof(struct kvm_signal_mask) + 8];
	struct kvm_signal_mask *mask = (struct kvm_signal_mask *)room;
	mask->len = 8;
	memset(mask->sigset, 0, 8);
	CHECK(ioctl(client.vcpu, KVM_SET_SIGNAL_MASK, mask) == 0);
	for (int i = 0; i < 3; i++) {
		FAILS(EINTR, run_until(SIGUSR1));
		sigpending(&pending);
		CHECK(sigismember(&pending, SIGUSR1));
		// Still there: the next run ends at once.
		FAILS(EINTR, ioctl(client.vcpu, KVM_RUN, 0));
		int taken = 0;
		CHECK(sigwait(&set, &taken) == 0 && taken == SIGUSR1);
		sigpending(&pending);
		CHECK(!sigismember(&pending, SIGUSR1));
	}
	// A signal that both masks block ends nothing.
	memset(mask->sigset, 0xff, 8);
	CHECK(ioctl(client.vcpu, KVM_SET_SIGNAL_MASK, mask) == 0);
	client.run->immediate_exit = 0;
	signal(SIGUSR2, count);
	pthread_kill(pthread_self(), SIGUSR1);
	handled = 0;
	CHECK(ioctl(client.vcpu, KVM_SET_SIGNAL_MASK, NULL) == 0);
	FAILS(EINTR, run_until(SIGUSR2));
	CHECK(handled >= 1);
	int taken;
	CHECK(sigwait(&set, &taken) == 0);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

// Real-time signals queue: none is lost, and each has its value.
static void collect(int signal, siginfo_t *information, void *context)
{
	(void)signal, (void)context;
	value += information->si_value.sival_int;
	handled++;
}

static void *send_many(void *argument)
{
	pthread_t target = *(pthread_t *)argument;
	sleep_milliseconds(10);
	for (int i = 1; i <= 100; i++) {
		union sigval number = {.sival_int = i};
		while (pthread_sigqueue(target, SIGRTMIN + 3, number) == EAGAIN) sched_yield();
	}
	return NULL;
}

static void queued_signals(void)
{
	struct sigaction action = {.sa_sigaction = collect, .sa_flags = SA_SIGINFO};
	CHECK(sigaction(SIGRTMIN + 3, &action, NULL) == 0);
	handled = value = 0;
	pthread_t self = pthread_self(), thread;
	pthread_create(&thread, NULL, send_many, &self);
	while (handled < 100) FAILS(EINTR, ioctl(client.vcpu, KVM_RUN, 0));
	pthread_join(thread, NULL);
	CHECK(handled == 100 && value == 5050);
}

// The client's own faults, and those of its requests.
static uint8_t *protected_page;

static void repair(int signal, siginfo_t *information, void *context)
{
	(void)signal, (void)context;
	CHECK(information->si_addr == protected_page);
	handled++;
	mprotect(protected_page, 4096, PROT_READ | PROT_WRITE);
}

static void faults(void)
{
	struct sigaction action = {.sa_sigaction = repair, .sa_flags = SA_SIGINFO}, old;
	CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
	CHECK(sigaction(SIGSEGV, NULL, &old) == 0 && old.sa_sigaction == repair);
	protected_page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	handled = 0;
	*(volatile uint8_t *)protected_page = 1;
	CHECK(handled == 1);
	mprotect(protected_page, 4096, PROT_NONE);
	FAILS(EFAULT, ioctl(client.vcpu, KVM_GET_REGS, protected_page));
	CHECK(handled == 1);
}

// With a handler that issues requests itself, at any moment of requests and runs.
static volatile sig_atomic_t is_over;

static void ask_again(int signal)
{
	(void)signal;
	int saved = errno;
	struct kvm_regs registers;
	CHECK(ioctl(client.vcpu, KVM_GET_REGS, &registers) == 0);
	handled++;
	errno = saved;
}

static void *send_until_over(void *argument)
{
	pthread_t target = *(pthread_t *)argument;
	for (unsigned i = 0; !is_over; i++) {
		pthread_kill(target, SIGUSR1);
		for (volatile unsigned wait = i * 7919 & 4095; wait > 0; wait--) {
		}
	}
	return NULL;
}

static void storm(int has_mask)
{
	struct sigaction action = {.sa_handler = ask_again};
	char room[sizeof(struct kvm_signal_mask) + 8];
	struct kvm_signal_mask *admitted = (struct kvm_signal_mask *)room;
	admitted->len = 8;
	memset(admitted->sigset, 0, 8);
	CHECK(ioctl(client.vcpu, KVM_SET_SIGNAL_MASK, has_mask ? admitted : NULL) == 0);
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	pthread_t self = pthread_self(), thread;
	handled = is_over = 0;
	pthread_create(&thread, NULL, send_until_over, &self);
	struct kvm_sregs special;
	for (int i = 0; i < 3000; i++) {
		CHECK(ioctl(client.vcpu, KVM_GET_SREGS, &special) == 0);
		FAILS(EINTR, ioctl(client.vcpu, KVM_RUN, 0));
		void *again = mmap(NULL, 4096, PROT_READ, MAP_SHARED, client.vcpu, 0);
		CHECK(again != MAP_FAILED && munmap(again, 4096) == 0);
	}
	is_over = 1;
	pthread_join(thread, NULL);
	CHECK(handled >= 3000);
	CHECK(ioctl(client.vcpu, KVM_SET_SIGNAL_MASK, NULL) == 0);
	sigset_t mask;
	CHECK(pthread_sigmask(SIG_BLOCK, NULL, &mask) == 0 && !sigismember(&mask, SIGUSR1));
}

// A handler during which its signal may come again.
static void come_again(int signal)
{
	struct kvm_regs registers;
	CHECK(ioctl(client.vcpu, KVM_GET_REGS, &registers) == 0);
	if (++handled % 3) raise(signal);
	handled += 100;
}

static void interruptible_handler(void)
{
	struct sigaction action = {.sa_handler = come_again, .sa_flags = SA_NODEFER};
	CHECK(sigaction(SIGUSR2, &action, NULL) == 0);
	handled = 0;
	FAILS(EINTR, run_until(SIGUSR2));
	CHECK(handled == 303);
}

// System V's functions, and a signal of a fault that somebody sends.
static void other_ways(void)
{
	CHECK(sigset(SIGUSR1, ask_again) == ask_again);
	handled = 0;
	FAILS(EINTR, run_until(SIGUSR1));
	CHECK(handled == 1 && sigset(SIGUSR1, SIG_HOLD) == ask_again && sigset(SIGUSR1, count) == SIG_HOLD);
	CHECK(siginterrupt(SIGUSR1, 1) == 0 && signal(SIGUSR1, count) == count);
	struct sigaction action;
	CHECK(sigaction(SIGUSR1, NULL, &action) == 0 && !(action.sa_flags & SA_RESTART));
	CHECK(siginterrupt(SIGUSR1, 0) == 0);
	CHECK(signal(SIGBUS, ask_again) == SIG_DFL);
	handled = 0;
	FAILS(EINTR, run_until(SIGBUS));
	CHECK(handled == 1 && signal(SIGBUS, SIG_DFL) == ask_again);
}

// The default action of a signal that only the mask of runs lets through is not taken.
static void default_action_behind_the_mask(void)
{
	char room[sizeof(struct kvm_signal_mask) + 8];
	struct kvm_signal_mask *mask = (struct kvm_signal_mask *)room;
	mask->len = 8;
	memset(mask->sigset, 0, 8);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	CHECK(ioctl(client.vcpu, KVM_SET_SIGNAL_MASK, mask) == 0);
	CHECK(signal(SIGUSR2, count) != SIG_ERR && signal(SIGUSR2, SIG_DFL) == count);
	FAILS(EINTR, run_until(SIGUSR2));
	int taken;
	CHECK(sigwait(&set, &taken) == 0 && taken == SIGUSR2);
	CHECK(ioctl(client.vcpu, KVM_SET_SIGNAL_MASK, NULL) == 0);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

// A handler that blocks all signals, those of faults among them, may pass a bad address.
static void fail(int signal)
{
	(void)signal;
	FAILS(EFAULT, ioctl(client.vcpu, KVM_GET_REGS, 4096));
	handled++;
}

static void full_mask(void)
{
	struct sigaction action = {.sa_handler = fail};
	sigfillset(&action.sa_mask);
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	handled = 0;
	FAILS(EINTR, run_until(SIGUSR1));
	CHECK(handled == 1);
	sigset_t all, old;
	sigfillset(&all);
	CHECK(pthread_sigmask(SIG_SETMASK, &all, &old) == 0);
	FAILS(EFAULT, ioctl(client.vcpu, KVM_GET_REGS, 4096));
	CHECK(pthread_sigmask(SIG_SETMASK, &old, NULL) == 0);
}

// Children that set handlers: of vfork(), which share the memory, and of fork(), while other threads set some, too.
static void *set_handlers(void *argument)
{
	(void)argument;
	while (!is_over) signal(SIGUSR2, count);
	return NULL;
}

static void children(void)
{
	signal(SIGUSR1, count);
	pid_t child = vfork();
	if (child == 0) {
		signal(SIGUSR1, SIG_DFL);
		_exit(0);
	}
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	handled = 0;
	FAILS(EINTR, run_until(SIGUSR1));
	CHECK(handled == 1);

	is_over = 0;
	pthread_t thread;
	pthread_create(&thread, NULL, set_handlers, NULL);
	for (int i = 0; i < 50; i++) {
		child = fork();
		if (child == 0) {
			alarm(60);
			signal(SIGUSR2, SIG_IGN);
			_exit(open("/dev/kvm", O_RDWR) >= 0 ? 0 : 1);
		}
		CHECK(waitpid(child, &status, 0) == child && status == 0);
	}
	is_over = 1;
	pthread_join(thread, NULL);
}

static void halt(void)
{
	struct client halted = make_client(halt_code, sizeof halt_code, 1);
	struct client running = client;
	client = halted;
	signal(SIGUSR1, count);
	handled = 0;
	FAILS(EINTR, run_until(SIGUSR1));
	CHECK(handled == 1);
	client = running;
}

int main(void)
{
	signal(SIGUSR1, count);
	client = make_client(loop_code, sizeof loop_code, 0);
	bare_handler();
	requests_in_a_handler();
	jump_out_of_a_handler();
	mask_and_wait();
	queued_signals();
	storm(0);
	storm(1);
	interruptible_handler();
	other_ways();
	default_action_behind_the_mask();
	full_mask();
	children();
	faults();
	halt();
	puts("passed");
}
