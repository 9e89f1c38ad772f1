// Machines for the cases, guests in them, and how exits are printed.
#include "oracle.h"

long answer(const char *label, long result)
{
	if (result == -1)
		say("%s: %s", label, strerrorname_np(errno));
	else
		say("%s: %ld", label, result);
	return result;
}

int answer_descriptor(const char *label, int result)
{
	if (result == -1)
		say("%s: %s", label, strerrorname_np(errno));
	else
		say("%s: a descriptor", label);
	return result;
}

void say_bytes(const char *label, const void *bytes, size_t count)
{
	char text[3 * 64 + 1] = "";
	for (size_t i = 0; i < count && i < 64; i++) sprintf(text + 3 * i, " %02x", ((const uint8_t *)bytes)[i]);
	say("%s:%s", label, text);
}

int open_kvm(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	NEED(kvm >= 0);
	return kvm;
}

void set_supported_cpuid(struct machine *m, int vcpu)
{
	struct kvm_cpuid2 *table = calloc(1, sizeof *table + 256 * sizeof *table->entries);
	table->nent = 256;
	NEED(ioctl(m->kvm, KVM_GET_SUPPORTED_CPUID, table) == 0);
	NEED(ioctl(vcpu, KVM_SET_CPUID2, table) == 0);
	free(table);
}

int add_vcpu(struct machine *m, unsigned long id)
{
	int vcpu = ioctl(m->vm, KVM_CREATE_VCPU, id);
	NEED(vcpu >= 0);
	set_supported_cpuid(m, vcpu);
	return vcpu;
}

uint8_t *add_memory(struct machine *m, uint32_t slot, uint32_t flags, uint64_t address, uint64_t size)
{
	uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	NEED(memory != MAP_FAILED);
	struct kvm_userspace_memory_region region = {slot, flags, address, size, (uintptr_t)memory};
	NEED(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
	return memory;
}

long enable(int file, uint32_t capability, uint64_t first)
{
	struct kvm_enable_cap request = {.cap = capability, .args = {first}};
	errno = 0;
	return ioctl(file, KVM_ENABLE_CAP, &request);
}

struct machine make_machine(int options)
{
	struct machine m = {.kvm = open_kvm(), .vcpu = -1};
	m.vm = ioctl(m.kvm, KVM_CREATE_VM, 0);
	NEED(m.vm >= 0);
	if (options & WITH_CHIPS) NEED(ioctl(m.vm, KVM_CREATE_IRQCHIP, 0) == 0);
	if (options & WITH_SPLIT_CHIPS) NEED(enable(m.vm, KVM_CAP_SPLIT_IRQCHIP, 24) == 0);
	m.memory = add_memory(&m, 0, 0, 0, MEMORY_SIZE);
	m.map_size = ioctl(m.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (options & WITHOUT_VCPU) return m;
	m.vcpu = ioctl(m.vm, KVM_CREATE_VCPU, 0);
	NEED(m.vcpu >= 0);
	if (!(options & WITHOUT_CPUID)) set_supported_cpuid(&m, m.vcpu);
	m.run = mmap(NULL, m.map_size, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 0);
	NEED(m.run != MAP_FAILED);
	return m;
}

static void set_flat(struct kvm_sregs *special, int bits)
{
	struct kvm_segment code = {.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .g = 1, .db = bits == 32,
				   .l = bits == 64};
	struct kvm_segment data = {.limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .s = 1, .g = 1, .db = 1};
	special->cs = code;
	special->ds = special->es = special->ss = special->fs = special->gs = data;
	special->gdt = (struct kvm_dtable){.base = TABLES, .limit = 0x3f};
	special->idt = (struct kvm_dtable){.base = TABLES + 0x800, .limit = 0x7ff};
	// Its port permissions lie behind its end: there are none. QEMU, as the translator of a processor with virtualization, ends
	// where user code faults if the segment is busy.
	special->tr = (struct kvm_segment){.base = TABLES - 0x200, .limit = 0x67, .selector = 0x30, .type = 9, .present = 1};
	special->cr0 |= 1;
}

void load(struct machine *m, const uint8_t *code, size_t count, int bits)
{
	memcpy(m->memory + CODE, code, count);
	struct kvm_sregs special;
	NEED(ioctl(m->vcpu, KVM_GET_SREGS, &special) == 0);
	if (bits == 16) {
		special.cs.base = special.cs.selector = 0;
	} else {
		uint64_t *descriptors = (uint64_t *)(m->memory + TABLES);
		descriptors[1] = bits == 64 ? 0x00af9b000000ffff : 0x00cf9b000000ffff;
		descriptors[2] = 0x00cf93000000ffff;
		// Of the unprivileged.
		descriptors[3] = bits == 64 ? 0x00affb000000ffff : 0x00cffb000000ffff;
		descriptors[4] = 0x00cff3000000ffff;
		set_flat(&special, bits);
		m->memory[TABLES - 0x200 + 0x66] = 0x68;
	}
	if (bits == 64) {
		uint64_t *tables = (uint64_t *)(m->memory + PAGES);
		tables[0] = PAGES + 0x1007;
		tables[512] = PAGES + 0x2007;
		tables[1024] = 0x87;
		special.cr3 = PAGES;
		special.cr4 = 0x220;
		special.cr0 = 0x80000013;
		special.efer = 0x500;
	}
	NEED(ioctl(m->vcpu, KVM_SET_SREGS, &special) == 0);
	struct kvm_regs registers = {.rip = CODE, .rflags = 2, .rsp = STACK};
	NEED(ioctl(m->vcpu, KVM_SET_REGS, &registers) == 0);
}

static const char *bytes_text(const uint8_t *bytes, size_t count)
{
	static char text[3 * 64 + 1];
	text[0] = 0;
	for (size_t i = 0; i < count && i < 64; i++) sprintf(text + 3 * i, " %02x", bytes[i]);
	return text;
}

static void say_exit(const struct kvm_run *r)
{
	switch (r->exit_reason) {
	case KVM_EXIT_IO:
		if (r->io.direction == KVM_EXIT_IO_OUT)
			say("exit: port 0x%x: out, size %u, count %u:%s", r->io.port, r->io.size, r->io.count,
			    bytes_text((const uint8_t *)r + r->io.data_offset, r->io.size * r->io.count));
		else
			say("exit: port 0x%x: in, size %u, count %u", r->io.port, r->io.size, r->io.count);
		break;
	case KVM_EXIT_MMIO:
		if (r->mmio.is_write)
			say("exit: memory 0x%llx: write of %u:%s", r->mmio.phys_addr, r->mmio.len,
			    bytes_text(r->mmio.data, r->mmio.len));
		else
			say("exit: memory 0x%llx: read of %u", r->mmio.phys_addr, r->mmio.len);
		break;
	case KVM_EXIT_HLT: say("exit: halt"); break;
	case KVM_EXIT_SHUTDOWN: say("exit: shutdown"); break;
	case KVM_EXIT_INTR: say("exit: interrupted"); break;
	case KVM_EXIT_IRQ_WINDOW_OPEN: say("exit: interrupt window"); break;
	case KVM_EXIT_SET_TPR: say("exit: task priority 0x%llx", r->cr8); break;
	case KVM_EXIT_FAIL_ENTRY: say("exit: entry failed, reason 0x%llx", r->fail_entry.hardware_entry_failure_reason); break;
	case KVM_EXIT_INTERNAL_ERROR: say("exit: internal error %u", r->internal.suberror); break;
	case KVM_EXIT_DEBUG:
		if (r->debug.arch.exception == 1)
			say("exit: debug: at 0x%llx, dr6 0x%llx, dr7 0x%llx", r->debug.arch.pc, r->debug.arch.dr6, r->debug.arch.dr7);
		else
			say("exit: debug: exception %u at 0x%llx", r->debug.arch.exception, r->debug.arch.pc);
		break;
	case KVM_EXIT_X86_RDMSR: say("exit: register 0x%x is read, reason %u", r->msr.index, r->msr.reason); break;
	case KVM_EXIT_X86_WRMSR:
		say("exit: register 0x%x is written, reason %u: 0x%llx", r->msr.index, r->msr.reason, r->msr.data);
		break;
	case KVM_EXIT_IOAPIC_EOI: say("exit: end of interrupt 0x%x", r->eoi.vector); break;
	case KVM_EXIT_TPR_ACCESS: say("exit: task priority access at 0x%llx, write %u", r->tpr_access.rip, r->tpr_access.is_write); break;
	case KVM_EXIT_HYPERCALL:
		say("exit: call %llu: 0x%llx 0x%llx 0x%llx", r->hypercall.nr, r->hypercall.args[0], r->hypercall.args[1],
		    r->hypercall.args[2]);
		break;
	default: say("exit: %u", r->exit_reason); break;
	}
}

// Of the signals that are to come; one more when they are not wanted any longer.
static volatile int signal_generation;

int run(struct machine *m)
{
	errno = 0;
	int result = ioctl(m->vcpu, KVM_RUN, 0);
	if (result != 0) {
		int error = errno;
		if (error == EINTR) signal_generation++;
		say("run: %s", strerrorname_np(error));
		return -1;
	}
	say_exit(m->run);
	return m->run->exit_reason;
}

int run_through(struct machine *m, int limit)
{
	// What a guest reads is 0x11, 0x12 and so on.
	for (uint8_t next = 0x11; limit > 0; limit--) {
		int reason = run(m);
		if (reason == -1 || (reason != KVM_EXIT_IO && reason != KVM_EXIT_MMIO)) return reason;
		if (reason == KVM_EXIT_IO && m->run->io.direction == KVM_EXIT_IO_IN)
			for (uint32_t i = 0; i < m->run->io.size * m->run->io.count; i++)
				((uint8_t *)m->run)[m->run->io.data_offset + i] = next++;
		if (reason == KVM_EXIT_MMIO && !m->run->mmio.is_write)
			for (uint32_t i = 0; i < m->run->mmio.len; i++) m->run->mmio.data[i] = next++;
	}
	say("still runs");
	return -1;
}

void say_registers(struct machine *m)
{
	struct kvm_regs r;
	NEED(ioctl(m->vcpu, KVM_GET_REGS, &r) == 0);
	const struct {
		const char *name;
		uint64_t value;
	} all[] = {{"rax", r.rax}, {"rbx", r.rbx}, {"rcx", r.rcx}, {"rdx", r.rdx}, {"rsi", r.rsi}, {"rdi", r.rdi}, {"rbp", r.rbp},
		   {"rsp", r.rsp}, {"r8", r.r8},   {"r9", r.r9},   {"r10", r.r10}, {"r15", r.r15}};
	char text[512];
	int length = 0;
	for (size_t i = 0; i < sizeof all / sizeof *all; i++)
		if (all[i].value) length += sprintf(text + length, " %s 0x%llx", all[i].name, (unsigned long long)all[i].value);
	say("registers: rip 0x%llx rflags 0x%llx%s", r.rip, r.rflags, length ? text : "");
}

uint64_t general_register(struct machine *m, int index)
{
	struct kvm_regs r;
	NEED(ioctl(m->vcpu, KVM_GET_REGS, &r) == 0);
	return (&r.rax)[index];
}

uint64_t get_msr(int vcpu, uint32_t index)
{
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entry;
	} list = {.header.nmsrs = 1, .entry.index = index};
	NEED(ioctl(vcpu, KVM_GET_MSRS, &list) == 1);
	return list.entry.data;
}

long set_msr(int vcpu, uint32_t index, uint64_t value)
{
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entry;
	} list = {.header.nmsrs = 1, .entry = {.index = index, .data = value}};
	errno = 0;
	return ioctl(vcpu, KVM_SET_MSRS, &list);
}

static void ignore(int signal)
{
	(void)signal;
}

void handle_signal(void)
{
	struct sigaction action = {.sa_handler = ignore};
	NEED(sigaction(SIGUSR1, &action, NULL) == 0);
}

struct sender {
	pthread_t target;
	long milliseconds;
	int generation;
};

static void *send_later(void *argument)
{
	struct sender *sender = argument;
	sleep_milliseconds(sender->milliseconds);
	// On a slow host the first may come before KVM_RUN.
	while (sender->generation == signal_generation) {
		pthread_kill(sender->target, SIGUSR1);
		sleep_milliseconds(1000);
	}
	free(sender);
	return NULL;
}

void signal_later(long milliseconds)
{
	struct sender *sender = malloc(sizeof *sender);
	*sender = (struct sender){pthread_self(), milliseconds, ++signal_generation};
	pthread_t thread;
	NEED(pthread_create(&thread, NULL, send_later, sender) == 0);
	pthread_detach(thread);
}
