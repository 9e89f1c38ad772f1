// Model-specific registers: what is taken, and the exits that filters and faults make.
#include "oracle.h"

static void values(void)
{
	static const struct {
		const char *name;
		uint32_t index;
		uint64_t value;
	} all[] = {{"unknown", 0x12345678, 0},
		   {"SYSENTER_CS", 0x174, 0x123456789},
		   {"SYSENTER_ESP", 0x175, 0x12345678},
		   {"SYSENTER_EIP, not canonical", 0x176, 0x0000800000000000},
		   {"STAR", 0xc0000081, 0x0023001000000000},
		   {"LSTAR", 0xc0000082, 0xffffffff81000000},
		   {"LSTAR, not canonical", 0xc0000082, 1ull << 63},
		   {"CSTAR", 0xc0000083, 0x1000},
		   {"SFMASK", 0xc0000084, 0x47700},
		   {"KERNEL_GS_BASE", 0xc0000102, 0x7fffffffffff},
		   {"FS_BASE, not canonical", 0xc0000100, 1ull << 62},
		   {"FS_BASE", 0xc0000100, 0x1234},
		   {"EFER: system calls", 0xc0000080, 1},
		   {"EFER: reserved", 0xc0000080, 2},
		   {"EFER: long mode", 0xc0000080, 0x100},
		   {"EFER: no execution", 0xc0000080, 0x800},
		   {"EFER: bit 40", 0xc0000080, 1ull << 40},
		   {"TSC", 0x10, 12345},
		   {"APIC base", 0x1b, 0xfee00900},
		   {"APIC base elsewhere", 0x1b, 0xfee10900},
		   {"APIC base, reserved bit", 0x1b, 0xfee00901},
		   {"APIC base, x2APIC without APIC", 0x1b, 0xfee00400},
		   {"page attributes", 0x277, 0x0007040600070406},
		   {"page attributes, type 2", 0x277, 2},
		   {"default memory type", 0x2ff, 0xc06},
		   {"default memory type, reserved", 0x2ff, 0x2},
		   {"memory range capability", 0xfe, 0x508},
		   {"first range", 0x200, 6},
		   {"first range, type 2", 0x200, 2},
		   {"first mask", 0x201, 0xff000800},
		   {"fixed range", 0x250, 0x0606060606060606},
		   {"fixed range, type 3", 0x250, 3},
		   {"clock", 0x4b564d01, 0},
		   {"clock on", 0x4b564d01, 0x5001},
		   {"wall clock", 0x4b564d00, 0x5100},
		   {"old clock", 0x12, 0},
		   {"asynchronous faults: reserved", 0x4b564d02, 0x31},
		   {"asynchronous faults: off", 0x4b564d02, 0},
		   {"stolen time: reserved", 0x4b564d03, 3},
		   {"stolen time: off", 0x4b564d03, 0},
		   {"end of interrupts: off", 0x4b564d04, 0},
		   {"poll control", 0x4b564d05, 1},
		   {"poll control: reserved", 0x4b564d05, 2},
		   {"migration control", 0x4b564d08, 0},
		   {"microcode revision", 0x8b, 0x100000000},
		   {"microcode update", 0x79, 0},
		   {"miscellaneous features", 0x1a0, 1},
		   {"machine checks: status", 0x17a, 0},
		   {"machine checks: capability", 0x179, 0},
		   {"machine checks: control", 0x17b, 0},
		   {"bank 0: control", 0x400, ~0ull},
		   {"bank 0: status", 0x401, 0},
		   {"bank 0: status that is not 0", 0x401, 5},
		   {"debug control", 0x1d9, 0},
		   {"last branch", 0x1db, 0},
		   {"platform", 0xce, 0},
		   {"TSC deadline", 0x6e0, 0},
		   {"TSC adjustment", 0x3b, 0},
		   {"hardware configuration", 0xc0010015, 0},
		   {"hardware configuration: bit 3", 0xc0010015, 8},
		   {"hardware configuration: bit 40", 0xc0010015, 1ull << 40},
		   {"north bridge", 0xc001001f, 0},
		   {"system configuration", 0xc0010010, 0},
		   {"interrupt pending", 0xc0010055, 0},
		   {"virtual machine control", 0xc0010114, 0},
		   {"guest OS of Hyper-V", 0x40000000, 0},
		   {"x2APIC identity", 0x802, 0},
		   {"TSC_AUX", 0xc0000103, 5},
		   {"saved state of supervisors", 0xda0, 0}};
	struct machine m = make_machine(WITH_CHIPS);
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		long result = set_msr(m.vcpu, all[i].index, all[i].value);
		struct {
			struct kvm_msrs header;
			struct kvm_msr_entry entry;
		} list = {.header.nmsrs = 1, .entry.index = all[i].index};
		if (ioctl(m.vcpu, KVM_GET_MSRS, &list) != 1)
			say("%s: set %ld, not read", all[i].name, result);
		// Of SYSENTER_EIP, how much is kept depends on the maker of the guest's processor.
		else if (all[i].index == 0x10 || all[i].index == 0xce || all[i].index == 0x176)
			say("%s: set %ld, read", all[i].name, result);
		else
			say("%s: set %ld, then 0x%llx", all[i].name, result, list.entry.data);
	}
}

static void lists(void)
{
	struct machine m = make_machine(PLAIN);
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entries[3];
	} list = {.header.nmsrs = 3, .entries = {{.index = 0xc0000081}, {.index = 0x12345678}, {.index = 0xc0000082}}};
	ASK("stops at the unknown", m.vcpu, KVM_GET_MSRS, &list);
	ASK("stops at the unknown", m.vcpu, KVM_SET_MSRS, &list);
	list.entries[0].reserved = 5;
	ASK("reserved field", m.vcpu, KVM_GET_MSRS, &list);
	list.header.pad = 5;
	ASK("padding", m.vcpu, KVM_GET_MSRS, &list);
	list.header.nmsrs = 0;
	ASK("none", m.vcpu, KVM_GET_MSRS, &list);
	list.header.nmsrs = 256;
	ASK("256", m.vcpu, KVM_GET_MSRS, &list);
	ASK("256 are set", m.vcpu, KVM_SET_MSRS, &list);
	ASK("nowhere", m.vcpu, KVM_GET_MSRS, NULL);
	ASK("from nowhere", m.vcpu, KVM_SET_MSRS, NULL);
}

GUEST(uses_unknown, 16,
      "mov $0x12345678, %ecx\n rdmsr\n mov %eax, %esi\n mov %edx, %edi\n mov $0x11, %eax\n mov $0x22, %edx\n wrmsr\n hlt\n");
GUEST(fault_handler, 16, "out %al, $0x99\n hlt\n");

static struct machine make_faulting(const uint8_t *code, size_t count)
{
	struct machine m = make_machine(PLAIN);
	memcpy(m.memory + 0x2000, fault_handler, fault_handler_end - fault_handler);
	*(uint32_t *)(m.memory + 13 * 4) = 0x2000;
	load(&m, code, count, 16);
	return m;
}

static void unknown(void)
{
	say("no exits");
	struct machine m = make_faulting(uses_unknown, uses_unknown_end - uses_unknown);
	run(&m);
	say("exits");
	m = make_faulting(uses_unknown, uses_unknown_end - uses_unknown);
	answer("enabled", enable(m.vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_UNKNOWN));
	run(&m);
	say_registers(&m);
	m.run->msr.data = 0x5555666677778888;
	run(&m);
	say_registers(&m);
	m.run->msr.error = 1;
	run(&m);
	say_registers(&m);
	say("a read that fails");
	m = make_faulting(uses_unknown, uses_unknown_end - uses_unknown);
	NEED(enable(m.vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_UNKNOWN) == 0);
	run(&m);
	m.run->msr.error = 1;
	run(&m);
	say("other reasons");
	m = make_faulting(uses_unknown, uses_unknown_end - uses_unknown);
	NEED(enable(m.vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_INVAL) == 0);
	run(&m);
}

GUEST(writes_reserved, 16, "mov $0xc0000080, %ecx\n mov $2, %eax\n xor %edx, %edx\n wrmsr\n hlt\n");

static void refused(void)
{
	struct machine m = make_faulting(writes_reserved, writes_reserved_end - writes_reserved);
	run(&m);
	m = make_faulting(writes_reserved, writes_reserved_end - writes_reserved);
	NEED(enable(m.vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_INVAL) == 0);
	run(&m);
	m.run->msr.error = 0;
	run(&m);
}

static long filter(struct machine *m, uint32_t flags, struct kvm_msr_filter_range range)
{
	struct kvm_msr_filter request = {.flags = flags, .ranges[0] = range};
	errno = 0;
	return ioctl(m->vm, KVM_X86_SET_MSR_FILTER, &request);
}

GUEST(uses_filtered, 16, "mov $0x174, %ecx\n rdmsr\n mov %eax, %esi\n mov $0x77, %eax\n wrmsr\n rdmsr\n "
      "mov %eax, %edi\n hlt\n");

static void filters(void)
{
	uint8_t bits[16] = {0};
	struct machine m = make_faulting(uses_filtered, uses_filtered_end - uses_filtered);
	const struct kvm_msr_filter_range none = {0}, both = {3, 8, 0x170, bits};
	answer("nothing by default denied", filter(&m, KVM_MSR_FILTER_DEFAULT_ALLOW, none));
	answer("everything denied", filter(&m, KVM_MSR_FILTER_DEFAULT_DENY, none));
	answer("unknown flag", filter(&m, 2, none));
	answer("range without direction", filter(&m, 0, (struct kvm_msr_filter_range){0, 8, 0x170, bits}));
	answer("range of unknown direction", filter(&m, 0, (struct kvm_msr_filter_range){4, 8, 0x170, bits}));
	answer("range without bits", filter(&m, 0, (struct kvm_msr_filter_range){3, 8, 0x170, NULL}));
	answer("range that is too long", filter(&m, 0, (struct kvm_msr_filter_range){3, 0x3001, 0x170, bits}));
	answer("from nowhere", (errno = 0, ioctl(m.vm, KVM_X86_SET_MSR_FILTER, NULL)));
	answer("range", filter(&m, 0, both));
	say("denied without exits");
	run(&m);
	say("denied with exits");
	m = make_faulting(uses_filtered, uses_filtered_end - uses_filtered);
	NEED(enable(m.vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER) == 0);
	NEED(filter(&m, 0, both) == 0);
	run(&m);
	m.run->msr.data = 0x1234;
	run(&m);
	run(&m);
	m.run->msr.data = 0x5678;
	run(&m);
	say_registers(&m);
	say("the register itself: 0x%llx", (unsigned long long)get_msr(m.vcpu, 0x174));
	say("reads only");
	m = make_faulting(uses_filtered, uses_filtered_end - uses_filtered);
	NEED(enable(m.vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER) == 0);
	NEED(filter(&m, 0, (struct kvm_msr_filter_range){1, 8, 0x170, bits}) == 0);
	run(&m);
	run(&m);
	run(&m);
	say("allowed in a range of bits");
	m = make_faulting(uses_filtered, uses_filtered_end - uses_filtered);
	bits[0] = 0x10;
	NEED(filter(&m, 1, both) == 0);
	run(&m);
	say_registers(&m);
}

const struct group msr_group = {
	"registers-of-the-model",
	(const struct test_case[]){
		{"values", values}, {"lists", lists}, {"unknown", unknown}, {"refused", refused}, {"filters", filters}, {}}};
