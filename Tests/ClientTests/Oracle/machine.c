// Requests of a machine's descriptor besides those of memory, interrupts and events.
#include "oracle.h"

static void vcpus(void)
{
	struct machine m = make_machine(WITHOUT_VCPU);
	answer_descriptor("id 2^20", ioctl(m.vm, KVM_CREATE_VCPU, 1ul << 20));
	answer_descriptor("id -1", ioctl(m.vm, KVM_CREATE_VCPU, -1l));
	int limit = ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPU_ID);
	answer_descriptor("first id beyond the limit", ioctl(m.vm, KVM_CREATE_VCPU, limit));
	answer_descriptor("last id", ioctl(m.vm, KVM_CREATE_VCPU, limit - 1));
	answer_descriptor("id 3", ioctl(m.vm, KVM_CREATE_VCPU, 3));
	int vcpu = answer_descriptor("id 0", ioctl(m.vm, KVM_CREATE_VCPU, 0));
	answer_descriptor("id 0 again", ioctl(m.vm, KVM_CREATE_VCPU, 0));
	close(vcpu);
	answer_descriptor("id 0 after its descriptor is closed", ioctl(m.vm, KVM_CREATE_VCPU, 0));
	say("closes on exec: %d", fcntl(m.vm, F_GETFD));
	close(m.vm);
	answer_descriptor("closed machine", ioctl(m.vm, KVM_CREATE_VCPU, 1));
}

static void vcpu_limit(void)
{
	struct machine m = make_machine(WITHOUT_VCPU);
	struct kvm_enable_cap limit = {.cap = KVM_CAP_MAX_VCPU_ID, .args = {4}};
	ASK("limit 4", m.vm, KVM_ENABLE_CAP, &limit);
	ASK("limit 4 again", m.vm, KVM_ENABLE_CAP, &limit);
	limit.args[0] = 5;
	ASK("limit 5", m.vm, KVM_ENABLE_CAP, &limit);
	answer_descriptor("id 4", ioctl(m.vm, KVM_CREATE_VCPU, 4));
	answer_descriptor("id 3", ioctl(m.vm, KVM_CREATE_VCPU, 3));
	m = make_machine(PLAIN);
	ASK("limit after a processor", m.vm, KVM_ENABLE_CAP, &limit);
	m = make_machine(WITHOUT_VCPU);
	limit.args[0] = 0;
	ASK("limit 0", m.vm, KVM_ENABLE_CAP, &limit);
	limit.args[0] = 1 << 20;
	ASK("limit 2^20", m.vm, KVM_ENABLE_CAP, &limit);
}

static void boot_vcpu(void)
{
	struct machine m = make_machine(WITHOUT_VCPU);
	ASK("boot processor 1", m.vm, KVM_SET_BOOT_CPU_ID, 1);
	ASK("boot processor 70000", m.vm, KVM_SET_BOOT_CPU_ID, 70000);
	ASK("boot processor -1", m.vm, KVM_SET_BOOT_CPU_ID, -1l);
	ASK("boot processor 1", m.vm, KVM_SET_BOOT_CPU_ID, 1);
	NEED(ioctl(m.vm, KVM_CREATE_IRQCHIP, 0) == 0);
	for (int id = 0; id < 2; id++) {
		int vcpu = ioctl(m.vm, KVM_CREATE_VCPU, id);
		struct kvm_mp_state state;
		NEED(ioctl(vcpu, KVM_GET_MP_STATE, &state) == 0);
		say("processor %d: state %u, is the boot processor %d", id, state.mp_state, (int)(get_msr(vcpu, 0x1b) >> 8 & 1));
	}
	ASK("boot processor after processors", m.vm, KVM_SET_BOOT_CPU_ID, 0);
}

static void addresses(void)
{
	struct machine m = make_machine(WITHOUT_VCPU);
	ASK("task state segment", m.vm, KVM_SET_TSS_ADDR, 0xfffbd000);
	ASK("task state segment again", m.vm, KVM_SET_TSS_ADDR, 0xfffbd000);
	ASK("task state segment at its limit", m.vm, KVM_SET_TSS_ADDR, 0xffffd000);
	ASK("task state segment beyond it", m.vm, KVM_SET_TSS_ADDR, 0xffffe000);
	ASK("task state segment unaligned", m.vm, KVM_SET_TSS_ADDR, 0x1234);
	uint64_t map = 0xfffbc000;
	ASK("identity map", m.vm, KVM_SET_IDENTITY_MAP_ADDR, &map);
	map = 0;
	ASK("identity map at 0", m.vm, KVM_SET_IDENTITY_MAP_ADDR, &map);
	ASK("identity map from nowhere", m.vm, KVM_SET_IDENTITY_MAP_ADDR, NULL);
	ASK("0 pages of tables", m.vm, KVM_SET_NR_MMU_PAGES, 0);
	ASK("63 pages of tables", m.vm, KVM_SET_NR_MMU_PAGES, 63);
	ASK("64 pages of tables", m.vm, KVM_SET_NR_MMU_PAGES, 64);
	ASK("pages of tables", m.vm, KVM_GET_NR_MMU_PAGES, 0);
	add_vcpu(&m, 0);
	ASK("identity map after a processor", m.vm, KVM_SET_IDENTITY_MAP_ADDR, &map);
	ASK("task state segment after a processor", m.vm, KVM_SET_TSS_ADDR, 0xfffbd000);
}

static void capabilities(void)
{
	static const struct {
		const char *name;
		uint32_t number;
		uint64_t value;
	} all[] = {{"quirks: none is off", KVM_CAP_DISABLE_QUIRKS, 0},
		   {"quirks: one unknown", KVM_CAP_DISABLE_QUIRKS, 1ull << 40},
		   {"quirks 2: none is off", KVM_CAP_DISABLE_QUIRKS2, 0},
		   {"quirks 2: one unknown", KVM_CAP_DISABLE_QUIRKS2, 1ull << 40},
		   {"quirks 2: all of 6.1", KVM_CAP_DISABLE_QUIRKS2, 0x7f},
		   {"x2APIC: none", KVM_CAP_X2APIC_API, 0},
		   {"x2APIC: both", KVM_CAP_X2APIC_API, 3},
		   {"x2APIC: unknown", KVM_CAP_X2APIC_API, 4},
		   {"exits: none is off", KVM_CAP_X86_DISABLE_EXITS, 0},
		   {"exits: unknown", KVM_CAP_X86_DISABLE_EXITS, 1 << 7},
		   {"platform register off", KVM_CAP_MSR_PLATFORM_INFO, 0},
		   {"platform register: 2", KVM_CAP_MSR_PLATFORM_INFO, 2},
		   {"payload", KVM_CAP_EXCEPTION_PAYLOAD, 1},
		   {"payload: 2", KVM_CAP_EXCEPTION_PAYLOAD, 2},
		   {"log by hand: 2", KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 2},
		   {"log by hand: 3", KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 3},
		   {"log by hand: 4", KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 4},
		   {"log by hand: 0", KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 0},
		   {"halt polling", KVM_CAP_HALT_POLL, 1000},
		   {"halt polling: 2^32", KVM_CAP_HALT_POLL, 1ull << 32},
		   {"register exits: 7", KVM_CAP_X86_USER_SPACE_MSR, 7},
		   {"register exits: 8", KVM_CAP_X86_USER_SPACE_MSR, 8},
		   {"bus lock exits: 3", KVM_CAP_X86_BUS_LOCK_EXIT, 3},
		   {"emulation failures", KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1},
		   {"emulation failures: 2", KVM_CAP_EXIT_ON_EMULATION_FAILURE, 2},
		   {"call exits: none", KVM_CAP_EXIT_HYPERCALL, 0},
		   {"call exits: unknown", KVM_CAP_EXIT_HYPERCALL, 1},
		   {"call exits: of memory", KVM_CAP_EXIT_HYPERCALL, 1 << 12},
		   {"performance counters: 2", KVM_CAP_PMU_CAPABILITY, 2},
		   {"triple fault event", KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1},
		   {"triple fault event: 2", KVM_CAP_X86_TRIPLE_FAULT_EVENT, 2},
		   {"notify exits", KVM_CAP_X86_NOTIFY_VMEXIT, 1ull << 32 | 1},
		   {"ring of 4 KiB", KVM_CAP_DIRTY_LOG_RING, 4096},
		   {"ring again", KVM_CAP_DIRTY_LOG_RING, 4096},
		   {"ring of 5000 bytes", KVM_CAP_DIRTY_LOG_RING, 5000},
		   {"split chips with -1 pins", KVM_CAP_SPLIT_IRQCHIP, -1ull},
		   {"what no request enables", KVM_CAP_USER_MEMORY, 0},
		   {"unknown", 5000, 0}};
	struct machine m = make_machine(WITHOUT_VCPU);
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) answer(all[i].name, enable(m.vm, all[i].number, all[i].value));
	struct kvm_enable_cap flags = {.cap = KVM_CAP_HALT_POLL, .flags = 1};
	ASK("with flags", m.vm, KVM_ENABLE_CAP, &flags);
	ASK("nowhere", m.vm, KVM_ENABLE_CAP, NULL);
	int vcpu = add_vcpu(&m, 0);
	answer("processor: platform register", enable(vcpu, KVM_CAP_MSR_PLATFORM_INFO, 1));
	answer("processor: enforced features", enable(vcpu, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1));
	answer("processor: unknown", enable(vcpu, 5000, 0));
	answer("exits off after a processor", enable(m.vm, KVM_CAP_X86_DISABLE_EXITS, 4));
	answer("x2APIC after a processor", enable(m.vm, KVM_CAP_X2APIC_API, 3));
	answer("register exits after a processor", enable(m.vm, KVM_CAP_X86_USER_SPACE_MSR, 0));
	flags.flags = 1;
	ASK("processor: with flags", vcpu, KVM_ENABLE_CAP, &flags);
}

static void clock_flags(void)
{
	struct machine m = make_machine(PLAIN);
	struct kvm_clock_data data = {.flags = 0};
	ASK("clock", m.vm, KVM_GET_CLOCK, &data);
	say("reserved bits: 0x%x, host's bits consistent: %d", data.flags & ~0xeu, !(data.flags & 8) || (data.flags & 4));
	data = (struct kvm_clock_data){.clock = 1000000000000};
	ASK("is set", m.vm, KVM_SET_CLOCK, &data);
	ASK("clock", m.vm, KVM_GET_CLOCK, &data);
	say("goes on from there: %d", data.clock >= 1000000000000 && data.clock < 1100000000000);
	for (int bit = 0; bit < 6; bit++) {
		data = (struct kvm_clock_data){.clock = 1, .flags = 1u << bit};
		say("flag %d", bit);
		ASK("is set", m.vm, KVM_SET_CLOCK, &data);
	}
	ASK("set from nowhere", m.vm, KVM_SET_CLOCK, NULL);
	ASK("to nowhere", m.vm, KVM_GET_CLOCK, NULL);
}

static void devices(void)
{
	struct machine m = make_machine(PLAIN);
	for (uint32_t type = 0; type < 14; type++) {
		// Pass-through of devices depends on the host's modules.
		if (type == KVM_DEV_TYPE_VFIO) continue;
		struct kvm_create_device device = {.type = type, .flags = KVM_CREATE_DEVICE_TEST};
		say("type %u", type);
		ASK("exists", m.vm, KVM_CREATE_DEVICE, &device);
	}
	struct kvm_create_device device = {.type = 99};
	ASK("type 99", m.vm, KVM_CREATE_DEVICE, &device);
	device.flags = 1 << 5;
	ASK("type 99 with unknown flags", m.vm, KVM_CREATE_DEVICE, &device);
	ASK("nowhere", m.vm, KVM_CREATE_DEVICE, NULL);
}

static void attributes(void)
{
	struct machine m = make_machine(PLAIN);
	int64_t value = 0;
	struct kvm_device_attr attribute = {.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)&value};
	ASK("processor: offset exists", m.vcpu, KVM_HAS_DEVICE_ATTR, &attribute);
	ASK("processor: offset", m.vcpu, KVM_GET_DEVICE_ATTR, &attribute);
	value = 12345;
	ASK("processor: offset is set", m.vcpu, KVM_SET_DEVICE_ATTR, &attribute);
	value = 0;
	ASK("processor: offset", m.vcpu, KVM_GET_DEVICE_ATTR, &attribute);
	say("it is %lld", (long long)value);
	attribute.addr = 0;
	ASK("processor: offset to nowhere", m.vcpu, KVM_GET_DEVICE_ATTR, &attribute);
	attribute.attr = 7;
	ASK("processor: unknown", m.vcpu, KVM_GET_DEVICE_ATTR, &attribute);
	attribute.group = 9;
	ASK("processor: unknown group", m.vcpu, KVM_HAS_DEVICE_ATTR, &attribute);
	ASK("machine: unknown group", m.vm, KVM_HAS_DEVICE_ATTR, &attribute);
	ASK("machine: unknown group is set", m.vm, KVM_SET_DEVICE_ATTR, &attribute);
	ASK("machine: unknown group is read", m.vm, KVM_GET_DEVICE_ATTR, &attribute);
	ASK("nowhere", m.vcpu, KVM_HAS_DEVICE_ATTR, NULL);
}

static void statistics(void)
{
	struct machine m = make_machine(PLAIN);
	const int files[] = {m.vm, m.vcpu};
	for (int i = 0; i < 2; i++) {
		say(i ? "processor" : "machine");
		int file = answer_descriptor("statistics", ioctl(files[i], KVM_GET_STATS_FD, 0));
		struct kvm_stats_header header = {};
		answer("header", pread(file, &header, sizeof header, 0));
		say("flags %u, name size %u, name at %u, descriptors at %d", header.flags, header.name_size, header.id_offset,
		    header.desc_offset >= header.id_offset + header.name_size);
		answer("write", (errno = 0, write(file, &header, 1)));
		answer("beyond the end", pread(file, &header, 8, 1 << 20));
		ASK("request", file, KVM_GET_API_VERSION, 0);
	}
	ASK("system", m.kvm, KVM_GET_STATS_FD, 0);
}

static void frequency(void)
{
	struct machine m = make_machine(PLAIN);
	say("processor has one: %d", ioctl(m.vcpu, KVM_GET_TSC_KHZ, 0) > 0);
	say("machine has one: %d", ioctl(m.vm, KVM_GET_TSC_KHZ, 0) > 0);
	say("the same: %d", ioctl(m.vm, KVM_GET_TSC_KHZ, 0) == ioctl(m.vcpu, KVM_GET_TSC_KHZ, 0));
	ASK("0 kHz", m.vcpu, KVM_SET_TSC_KHZ, 0);
	ASK("machine: 0 kHz after a processor", m.vm, KVM_SET_TSC_KHZ, 0);
	ASK("1 kHz", m.vcpu, KVM_SET_TSC_KHZ, 1);
	struct machine early = make_machine(WITHOUT_VCPU);
	ASK("machine: 0 kHz", early.vm, KVM_SET_TSC_KHZ, 0);
}

const struct group machine_group = {"machine", (const struct test_case[]){{"processors", vcpus},
									  {"processor-limit", vcpu_limit},
									  {"boot-processor", boot_vcpu},
									  {"addresses", addresses},
									  {"capabilities", capabilities},
									  {"clock", clock_flags},
									  {"devices", devices},
									  {"attributes", attributes},
									  {"statistics", statistics},
									  {"frequency", frequency},
									  {}}};
