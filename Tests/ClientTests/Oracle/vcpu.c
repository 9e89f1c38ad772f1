// Requests of a processor's descriptor: how it is run, and what it refuses.
#include "oracle.h"

GUEST(writes_port, 16, "mov $0x3f8, %dx\n 1: out %al, %dx\n inc %al\n jmp 1b\n");
GUEST(loops, 16, "jmp loops\n");
GUEST(halts, 16, "1: hlt\n jmp 1b\n");

static void running(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD(&m, writes_port);
	ASK("with an argument", m.vcpu, KVM_RUN, 1);
	run(&m);
	say_registers(&m);
	run(&m);
	close(m.vm);
	close(m.kvm);
	run(&m);
	say("closes on exec: %d", fcntl(m.vcpu, F_GETFD));
	char byte = 0;
	answer("read", (errno = 0, read(m.vcpu, &byte, 1)));
	answer("write", (errno = 0, write(m.vcpu, &byte, 1)));
	close(m.vcpu);
	ASK("closed", m.vcpu, KVM_RUN, 0);
	say("the mapping stays: exit %u", m.run->exit_reason);
}

static void immediate_exit(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD(&m, writes_port);
	m.run->immediate_exit = 1;
	m.run->exit_reason = 99;
	run(&m);
	say("reason %u", m.run->exit_reason);
	say_registers(&m);
	m.run->immediate_exit = 0;
	run(&m);
	m.run->immediate_exit = 1;
	// Ends the instruction, and nothing after it.
	run(&m);
	say("reason %u", m.run->exit_reason);
	say_registers(&m);
	m.run->immediate_exit = 0;
	run(&m);
}

static void interrupted(void)
{
	struct machine m = make_machine(PLAIN);
	handle_signal();
	LOAD(&m, loops);
	signal_later(50);
	run(&m);
	say("reason %u", m.run->exit_reason);
	struct machine halted = make_machine(WITH_CHIPS);
	LOAD(&halted, halts);
	signal_later(50);
	run(&halted);
	say("reason %u", halted.run->exit_reason);
	struct kvm_mp_state state;
	NEED(ioctl(halted.vcpu, KVM_GET_MP_STATE, &state) == 0);
	say("state %u", state.mp_state);
	say_registers(&halted);
}

static void signal_mask(void)
{
	struct machine m = make_machine(PLAIN);
	handle_signal();
	LOAD(&m, loops);
	struct {
		struct kvm_signal_mask header;
		uint64_t mask;
	} __attribute__((packed)) request = {.header.len = 4};
	ASK("mask of 4 bytes", m.vcpu, KVM_SET_SIGNAL_MASK, &request);
	request.header.len = 16;
	ASK("mask of 16 bytes", m.vcpu, KVM_SET_SIGNAL_MASK, &request);
	request.header.len = 8;
	ASK("empty mask", m.vcpu, KVM_SET_SIGNAL_MASK, &request);
	sigset_t blocked, pending;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &blocked, NULL);
	raise(SIGUSR1);
	run(&m);
	say("reason %u", m.run->exit_reason);
	sigpending(&pending);
	say("still pending: %d", sigismember(&pending, SIGUSR1));
	ASK("no mask", m.vcpu, KVM_SET_SIGNAL_MASK, NULL);
	m.run->immediate_exit = 1;
	run(&m);
	say("reason %u", m.run->exit_reason);
}

static void events(void)
{
	struct machine m = make_machine(PLAIN);
	struct kvm_interrupt interrupt = {.irq = 256};
	ASK("interrupt 256", m.vcpu, KVM_INTERRUPT, &interrupt);
	interrupt.irq = 0x20;
	ASK("interrupt", m.vcpu, KVM_INTERRUPT, &interrupt);
	ASK("interrupt again", m.vcpu, KVM_INTERRUPT, &interrupt);
	ASK("interrupt from nowhere", m.vcpu, KVM_INTERRUPT, NULL);
	ASK("unmaskable", m.vcpu, KVM_NMI, 0);
	ASK("unmaskable with an argument", m.vcpu, KVM_NMI, 1);
	struct machine chips = make_machine(WITH_CHIPS);
	ASK("interrupt with chips", chips.vcpu, KVM_INTERRUPT, &interrupt);
	struct machine split = make_machine(WITH_SPLIT_CHIPS);
	ASK("interrupt with split chips", split.vcpu, KVM_INTERRUPT, &interrupt);
	ASK("interrupt with split chips, again", split.vcpu, KVM_INTERRUPT, &interrupt);
	ASK("clock control", m.vcpu, KVM_KVMCLOCK_CTRL, 0);
}

static void multiprocessing(void)
{
	static const char *const names[] = {"without chips", "with chips", "with split chips"};
	const int options[] = {PLAIN, WITH_CHIPS, WITH_SPLIT_CHIPS};
	for (int i = 0; i < 3; i++) {
		struct machine m = make_machine(options[i]);
		int second = add_vcpu(&m, 1);
		struct kvm_mp_state state = {77};
		say("%s", names[i]);
		ASK("first", m.vcpu, KVM_GET_MP_STATE, &state);
		say("state %u", state.mp_state);
		ASK("second", second, KVM_GET_MP_STATE, &state);
		say("state %u", state.mp_state);
		for (uint32_t value = 0; value < 12; value++) {
			state.mp_state = value;
			int result = (errno = 0, ioctl(m.vcpu, KVM_SET_MP_STATE, &state));
			const char *error = result ? strerrorname_np(errno) : "0";
			NEED(ioctl(m.vcpu, KVM_GET_MP_STATE, &state) == 0);
			say("state %u is set: %s, then %u", value, error, state.mp_state);
		}
		ASK("from nowhere", m.vcpu, KVM_SET_MP_STATE, NULL);
		ASK("to nowhere", m.vcpu, KVM_GET_MP_STATE, NULL);
	}
}

// One that has not been started waits; without chips there is nothing to wait for.
static void not_started(void)
{
	struct machine m = make_machine(WITH_CHIPS);
	handle_signal();
	m.vcpu = add_vcpu(&m, 1);
	m.run = mmap(NULL, m.map_size, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 0);
	LOAD(&m, writes_port);
	signal_later(50);
	run(&m);
	say("reason %u", m.run->exit_reason);
	struct kvm_mp_state state;
	NEED(ioctl(m.vcpu, KVM_GET_MP_STATE, &state) == 0);
	say("state %u", state.mp_state);
	state.mp_state = KVM_MP_STATE_RUNNABLE;
	ASK("runs", m.vcpu, KVM_SET_MP_STATE, &state);
	// Not started is left once with EAGAIN.
	run(&m);
	run(&m);
}

GUEST(asks_cpuid, 16,
      "xor %eax, %eax\n cpuid\n hlt\n mov $1, %eax\n cpuid\n hlt\n mov $0x12345678, %eax\n cpuid\n hlt\n"
      "mov $0x80000008, %eax\n cpuid\n hlt\n");

static void cpuid(void)
{
	struct machine m = make_machine(WITHOUT_CPUID);
	struct {
		struct kvm_cpuid2 header;
		struct kvm_cpuid_entry2 entries[4];
	} table = {.header.nent = 4}, old;
	old = table;
	ASK("empty table", m.vcpu, KVM_GET_CPUID2, &old);
	say("entries %u", old.header.nent);
	table.entries[0] = (struct kvm_cpuid_entry2){.function = 0, .eax = 1, .ebx = 1, .ecx = 2, .edx = 3};
	table.entries[1] = (struct kvm_cpuid_entry2){.function = 1, .eax = 0x600, .ebx = 7};
	table.entries[2] = (struct kvm_cpuid_entry2){.function = 0x80000000, .eax = 0x80000008};
	table.entries[3] = (struct kvm_cpuid_entry2){.function = 0x80000008, .eax = 0x3028};
	ASK("table", m.vcpu, KVM_SET_CPUID2, &table);
	old.header.nent = 4;
	ASK("is read", m.vcpu, KVM_GET_CPUID2, &old);
	say("entries %u, the same: %d", old.header.nent, memcmp(old.entries, table.entries, sizeof old.entries) == 0);
	old.header.nent = 3;
	ASK("no room", m.vcpu, KVM_GET_CPUID2, &old);
	say("entries %u", old.header.nent);
	table.entries[3].eax = 0x3010;
	ASK("16 bits of addresses", m.vcpu, KVM_SET_CPUID2, &table);
	table.entries[3].eax = 0x3a28;
	ASK("58 bits of linear addresses", m.vcpu, KVM_SET_CPUID2, &table);
	table.entries[3].eax = 0x3028;
	ASK("twice the same", m.vcpu, KVM_SET_CPUID2, &table);
	table.header.nent = 257;
	ASK("257 entries", m.vcpu, KVM_SET_CPUID2, &table);
	ASK("from nowhere", m.vcpu, KVM_SET_CPUID2, NULL);
	ASK("to nowhere", m.vcpu, KVM_GET_CPUID2, NULL);
	LOAD(&m, asks_cpuid);
	table.header.nent = 4;
	ASK("table", m.vcpu, KVM_SET_CPUID2, &table);
	for (int i = 0; i < 4; i++) {
		run(&m);
		say_registers(&m);
	}
	ASK("the same after a run", m.vcpu, KVM_SET_CPUID2, &table);
	table.entries[1].ebx = 8;
	ASK("another after a run", m.vcpu, KVM_SET_CPUID2, &table);
	table.header.nent = 0;
	ASK("none after a run", m.vcpu, KVM_SET_CPUID2, &table);
	struct {
		struct kvm_cpuid header;
		struct kvm_cpuid_entry entries[1];
	} short_table = {.header.nent = 1, .entries[0] = {.function = 0, .eax = 1}};
	struct machine another = make_machine(WITHOUT_CPUID);
	ASK("old table", another.vcpu, KVM_SET_CPUID, &short_table);
	short_table.header.nent = 257;
	ASK("old table of 257", another.vcpu, KVM_SET_CPUID, &short_table);
	old.header.nent = 4;
	ASK("is read", another.vcpu, KVM_GET_CPUID2, &old);
	say("entries %u: function 0x%x eax 0x%x", old.header.nent, old.entries[0].function, old.entries[0].eax);
}

static void machine_check(void)
{
	struct machine m = make_machine(PLAIN);
	uint64_t known = 0, value;
	ASK("known", m.kvm, KVM_X86_GET_MCE_CAP_SUPPORTED, &known);
	say("register and recovery bits: 0x%llx", (unsigned long long)known & 0x1000100);
	ASK("to nowhere", m.kvm, KVM_X86_GET_MCE_CAP_SUPPORTED, NULL);
	value = 0;
	ASK("no banks", m.vcpu, KVM_X86_SETUP_MCE, &value);
	value = 33;
	ASK("33 banks", m.vcpu, KVM_X86_SETUP_MCE, &value);
	value = 10 | 1ull << 40;
	ASK("unknown", m.vcpu, KVM_X86_SETUP_MCE, &value);
	value = 10;
	ASK("10 banks", m.vcpu, KVM_X86_SETUP_MCE, &value);
	say("register: 0x%llx", (unsigned long long)get_msr(m.vcpu, 0x179));
	struct kvm_x86_mce check = {.status = 1ull << 63, .bank = 10};
	ASK("bank 10", m.vcpu, KVM_X86_SET_MCE, &check);
	check.bank = 1;
	ASK("bank 1", m.vcpu, KVM_X86_SET_MCE, &check);
	say("its status: 0x%llx", (unsigned long long)get_msr(m.vcpu, 0x405));
	check.status = 0;
	ASK("no error", m.vcpu, KVM_X86_SET_MCE, &check);
	ASK("from nowhere", m.vcpu, KVM_X86_SET_MCE, NULL);
}

static void translation(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD64(&m, loops);
	const uint64_t addresses[] = {0, 0x1234, 0x1fffff, 0x200000, 0xfffffffffffff000, 0x0000800000000000};
	for (size_t i = 0; i < sizeof addresses / sizeof *addresses; i++) {
		struct kvm_translation t = {.linear_address = addresses[i]};
		NEED(ioctl(m.vcpu, KVM_TRANSLATE, &t) == 0);
		say("0x%llx: 0x%llx, valid %u, writable %u, usermode %u", (unsigned long long)addresses[i], t.physical_address, t.valid,
		    t.writeable, t.usermode);
	}
	ASK("nowhere", m.vcpu, KVM_TRANSLATE, NULL);
}

static void task_priority_reporting(void)
{
	for (int i = 0; i < 2; i++) {
		struct machine m = make_machine(i ? WITH_CHIPS : PLAIN);
		struct kvm_tpr_access_ctl control = {.enabled = 1};
		ASK("on", m.vcpu, KVM_TPR_ACCESS_REPORTING, &control);
		control.flags = 1;
		ASK("with flags", m.vcpu, KVM_TPR_ACCESS_REPORTING, &control);
		struct kvm_vapic_addr address = {.vapic_addr = 0x5000};
		ASK("word", m.vcpu, KVM_SET_VAPIC_ADDR, &address);
		address.vapic_addr = 0;
		ASK("no word", m.vcpu, KVM_SET_VAPIC_ADDR, &address);
		address.vapic_addr = NOWHERE;
		ASK("word without memory", m.vcpu, KVM_SET_VAPIC_ADDR, &address);
	}
}

const struct group vcpu_group = {"processor", (const struct test_case[]){{"running", running},
									 {"immediate-exit", immediate_exit},
									 {"interrupted", interrupted},
									 {"signal-mask", signal_mask},
									 {"events", events},
									 {"multiprocessing", multiprocessing},
									 {"not-started", not_started},
									 {"cpuid", cpuid},
									 {"machine-check", machine_check},
									 {"translation", translation},
									 {"task-priority", task_priority_reporting},
									 {}}};
