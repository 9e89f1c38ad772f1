// Requests of the system's descriptor, and requests that go to the wrong one.
#include "oracle.h"

static void plain(void)
{
	int kvm = open_kvm();
	ASK("version", kvm, KVM_GET_API_VERSION, 0);
	ASK("version with an argument", kvm, KVM_GET_API_VERSION, 1);
	ASK("map size", kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	ASK("map size with an argument", kvm, KVM_GET_VCPU_MMAP_SIZE, 1);
	ASK("sign-extended number", kvm, (long)(int)KVM_GET_API_VERSION | ~0xffffffffl, 0);
	ASK("unknown number of KVM's", kvm, _IO(KVMIO, 0xff), 0);
	ASK("unknown number of another's", kvm, _IO('x', 1), 0);
	ASK("version with a size in its number", kvm, _IOR(KVMIO, 0x00, int), 0);
	ASK("terminal size", kvm, 0x5413, 0);
	ASK("tracing", kvm, _IOW(KVMIO, 0x06, int), 0);
	int machine = answer_descriptor("machine", ioctl(kvm, KVM_CREATE_VM, 0));
	answer_descriptor("machine of type 1", ioctl(kvm, KVM_CREATE_VM, 1));
	answer_descriptor("machine of type 2^40", ioctl(kvm, KVM_CREATE_VM, 1ul << 40));
	answer_descriptor("machine of type -1", ioctl(kvm, KVM_CREATE_VM, -1l));
	say("closes on exec: system %d machine %d", fcntl(kvm, F_GETFD), fcntl(machine, F_GETFD));
	say("may be read and written: system %d machine %d", fcntl(kvm, F_GETFL) & O_ACCMODE, fcntl(machine, F_GETFL) & O_ACCMODE);
}

static void opening(void)
{
	for (int mode = O_RDONLY; mode <= O_RDWR; mode++) {
		int kvm = open("/dev/kvm", mode);
		say("mode %d: %s", mode, kvm >= 0 ? "opens" : strerrorname_np(errno));
		answer_descriptor("machine", ioctl(kvm, KVM_CREATE_VM, 0));
	}
	int kvm = open("/dev/kvm", O_RDWR | O_NONBLOCK);
	ASK("without blocking", kvm, KVM_GET_API_VERSION, 0);
	char byte = 0;
	answer("read", (errno = 0, read(kvm, &byte, 1)));
	answer("write", (errno = 0, write(kvm, &byte, 1)));
	answer("seek", (errno = 0, lseek(kvm, 0, SEEK_SET)));
	answer_descriptor("directory", (errno = 0, open("/dev/kvm", O_RDONLY | O_DIRECTORY)));
	answer_descriptor("exclusive", (errno = 0, open("/dev/kvm", O_RDWR | O_CREAT | O_EXCL, 0600)));
	close(kvm);
	ASK("closed", kvm, KVM_GET_API_VERSION, 0);
	kvm = open("/dev/kvm", O_RDWR | O_PATH);
	ASK("a path only", kvm, KVM_GET_API_VERSION, 0);
}

static void wrong_descriptor(void)
{
	static const struct {
		const char *name;
		unsigned long number;
	} requests[] = {{"KVM_GET_API_VERSION", KVM_GET_API_VERSION},
			{"KVM_CREATE_VM", KVM_CREATE_VM},
			{"KVM_GET_VCPU_MMAP_SIZE", KVM_GET_VCPU_MMAP_SIZE},
			{"KVM_GET_MSR_INDEX_LIST", KVM_GET_MSR_INDEX_LIST},
			{"KVM_GET_SUPPORTED_CPUID", KVM_GET_SUPPORTED_CPUID},
			{"KVM_CHECK_EXTENSION", KVM_CHECK_EXTENSION},
			{"KVM_CREATE_VCPU", KVM_CREATE_VCPU},
			{"KVM_SET_USER_MEMORY_REGION", KVM_SET_USER_MEMORY_REGION},
			{"KVM_CREATE_IRQCHIP", KVM_CREATE_IRQCHIP},
			{"KVM_IRQ_LINE", KVM_IRQ_LINE},
			{"KVM_SET_CLOCK", KVM_SET_CLOCK},
			{"KVM_GET_DIRTY_LOG", KVM_GET_DIRTY_LOG},
			{"KVM_IOEVENTFD", KVM_IOEVENTFD},
			{"KVM_CREATE_DEVICE", KVM_CREATE_DEVICE},
			{"KVM_RUN", KVM_RUN},
			{"KVM_GET_REGS", KVM_GET_REGS},
			{"KVM_SET_SREGS", KVM_SET_SREGS},
			{"KVM_GET_MSRS", KVM_GET_MSRS},
			{"KVM_SET_MSRS", KVM_SET_MSRS},
			{"KVM_GET_TSC_KHZ", KVM_GET_TSC_KHZ},
			{"KVM_ENABLE_CAP", KVM_ENABLE_CAP},
			{"KVM_GET_DEVICE_ATTR", KVM_GET_DEVICE_ATTR},
			{"KVM_SET_DEVICE_ATTR", KVM_SET_DEVICE_ATTR},
			{"KVM_HAS_DEVICE_ATTR", KVM_HAS_DEVICE_ATTR},
			{"KVM_NMI", KVM_NMI},
			{"KVM_SMI", KVM_SMI},
			{"KVM_GET_ONE_REG", KVM_GET_ONE_REG},
			{"KVM_SET_ONE_REG", KVM_SET_ONE_REG},
			{"KVM_GET_REG_LIST", KVM_GET_REG_LIST},
			{"KVM_S390_INTERRUPT", KVM_S390_INTERRUPT},
			{"KVM_PPC_GET_PVINFO", KVM_PPC_GET_PVINFO},
			{"KVM_X86_GET_MCE_CAP_SUPPORTED", KVM_X86_GET_MCE_CAP_SUPPORTED},
			{"KVM_X86_SETUP_MCE", KVM_X86_SETUP_MCE},
			{"KVM_XEN_HVM_CONFIG", KVM_XEN_HVM_CONFIG},
			{"KVM_XEN_HVM_GET_ATTR", KVM_XEN_HVM_GET_ATTR},
			{"KVM_XEN_VCPU_GET_ATTR", KVM_XEN_VCPU_GET_ATTR},
			{"KVM_HYPERV_EVENTFD", KVM_HYPERV_EVENTFD},
			{"KVM_SET_PMU_EVENT_FILTER", KVM_SET_PMU_EVENT_FILTER},
			{"KVM_MEMORY_ENCRYPT_REG_REGION", KVM_MEMORY_ENCRYPT_REG_REGION},
			{"KVM_GET_STATS_FD", KVM_GET_STATS_FD},
			{"KVM_RESET_DIRTY_RINGS", KVM_RESET_DIRTY_RINGS},
			{"KVM_GET_NESTED_STATE", KVM_GET_NESTED_STATE},
			{"KVM_SET_NESTED_STATE", KVM_SET_NESTED_STATE},
			{"KVM_GET_SUPPORTED_HV_CPUID", KVM_GET_SUPPORTED_HV_CPUID},
			{"KVM_MEMORY_ENCRYPT_OP", KVM_MEMORY_ENCRYPT_OP},
			{"KVM_XEN_HVM_SET_ATTR", KVM_XEN_HVM_SET_ATTR},
			{"KVM_XEN_VCPU_SET_ATTR", KVM_XEN_VCPU_SET_ATTR},
			{"KVM_GET_EMULATED_CPUID", KVM_GET_EMULATED_CPUID},
			{"KVM_GET_MSR_FEATURE_INDEX_LIST", KVM_GET_MSR_FEATURE_INDEX_LIST},
			{"KVM_CLEAR_DIRTY_LOG", KVM_CLEAR_DIRTY_LOG},
			{"KVM_X86_SET_MSR_FILTER", KVM_X86_SET_MSR_FILTER},
			{"KVM_SET_TSS_ADDR", KVM_SET_TSS_ADDR},
			{"KVM_SET_IDENTITY_MAP_ADDR", KVM_SET_IDENTITY_MAP_ADDR},
			{"KVM_SET_BOOT_CPU_ID", KVM_SET_BOOT_CPU_ID},
			{"KVM_GET_IRQCHIP", KVM_GET_IRQCHIP},
			{"KVM_SET_IRQCHIP", KVM_SET_IRQCHIP},
			{"KVM_CREATE_PIT2", KVM_CREATE_PIT2},
			{"KVM_GET_PIT2", KVM_GET_PIT2},
			{"KVM_SET_GSI_ROUTING", KVM_SET_GSI_ROUTING},
			{"KVM_SIGNAL_MSI", KVM_SIGNAL_MSI},
			{"KVM_IRQFD", KVM_IRQFD},
			{"KVM_REGISTER_COALESCED_MMIO", KVM_REGISTER_COALESCED_MMIO},
			{"KVM_SET_REGS", KVM_SET_REGS},
			{"KVM_GET_SREGS", KVM_GET_SREGS},
			{"KVM_GET_SREGS2", KVM_GET_SREGS2},
			{"KVM_SET_SREGS2", KVM_SET_SREGS2},
			{"KVM_TRANSLATE", KVM_TRANSLATE},
			{"KVM_INTERRUPT", KVM_INTERRUPT},
			{"KVM_SET_CPUID", KVM_SET_CPUID},
			{"KVM_SET_CPUID2", KVM_SET_CPUID2},
			{"KVM_GET_CPUID2", KVM_GET_CPUID2},
			{"KVM_SET_SIGNAL_MASK", KVM_SET_SIGNAL_MASK},
			{"KVM_GET_FPU", KVM_GET_FPU},
			{"KVM_SET_FPU", KVM_SET_FPU},
			{"KVM_GET_LAPIC", KVM_GET_LAPIC},
			{"KVM_SET_LAPIC", KVM_SET_LAPIC},
			{"KVM_GET_XSAVE", KVM_GET_XSAVE},
			{"KVM_GET_XSAVE2", KVM_GET_XSAVE2},
			{"KVM_SET_XSAVE", KVM_SET_XSAVE},
			{"KVM_GET_XCRS", KVM_GET_XCRS},
			{"KVM_SET_XCRS", KVM_SET_XCRS},
			{"KVM_GET_DEBUGREGS", KVM_GET_DEBUGREGS},
			{"KVM_SET_DEBUGREGS", KVM_SET_DEBUGREGS},
			{"KVM_GET_VCPU_EVENTS", KVM_GET_VCPU_EVENTS},
			{"KVM_SET_VCPU_EVENTS", KVM_SET_VCPU_EVENTS},
			{"KVM_GET_MP_STATE", KVM_GET_MP_STATE},
			{"KVM_SET_MP_STATE", KVM_SET_MP_STATE},
			{"KVM_SET_GUEST_DEBUG", KVM_SET_GUEST_DEBUG},
			{"KVM_KVMCLOCK_CTRL", KVM_KVMCLOCK_CTRL},
			{"KVM_TPR_ACCESS_REPORTING", KVM_TPR_ACCESS_REPORTING},
			{"KVM_SET_VAPIC_ADDR", KVM_SET_VAPIC_ADDR},
			{"KVM_ASSIGN_PCI_DEVICE", _IOR(KVMIO, 0x69, char[64])},
			{"KVM_SET_MEMORY_REGION", KVM_SET_MEMORY_REGION},
			{"KVM_SET_MEMORY_ALIAS", _IOW(KVMIO, 0x43, char[32])}};
	struct machine m = make_machine(PLAIN);
	// The argument cannot be a structure, so that what takes one says so.
	for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
		const int files[] = {m.kvm, m.vm, m.vcpu};
		const char *results[3];
		for (int k = 0; k < 3; k++) {
			int is_harmless = requests[i].number == KVM_CHECK_EXTENSION || requests[i].number == KVM_GET_TSC_KHZ
					  || requests[i].number == KVM_GET_STATS_FD;
			errno = 0;
			int result = ioctl(files[k], requests[i].number, 1);
			results[k] = result == -1 ? strerrorname_np(errno) : is_harmless ? "taken" : result == 0 ? "0" : "not 0";
		}
		say("%s of 1: system %s, machine %s, processor %s", requests[i].name, results[0], results[1], results[2]);
	}
}

static void lists(void)
{
	int kvm = open_kvm();
	static struct {
		struct kvm_msr_list header;
		uint32_t indices[4096];
	} list;
	for (int features = 0; features < 2; features++) {
		unsigned long request = features ? KVM_GET_MSR_FEATURE_INDEX_LIST : KVM_GET_MSR_INDEX_LIST;
		say(features ? "registers of features" : "registers");
		list.header.nmsrs = 0;
		ASK("no room", kvm, request, &list);
		say("tells how many: %d", list.header.nmsrs > 0);
		uint32_t count = list.header.nmsrs;
		list.header.nmsrs = count - 1;
		ASK("room for all but one", kvm, request, &list);
		say("tells how many: %d", list.header.nmsrs == count);
		list.header.nmsrs = 4096;
		ASK("much room", kvm, request, &list);
		say("tells how many: %d", list.header.nmsrs == count);
		ASK("nowhere", kvm, request, NULL);
	}
	struct kvm_cpuid2 *table = calloc(1, sizeof *table + 512 * sizeof *table->entries);
	for (int emulated = 0; emulated < 2; emulated++) {
		unsigned long request = emulated ? KVM_GET_EMULATED_CPUID : KVM_GET_SUPPORTED_CPUID;
		say(emulated ? "emulated leaves" : "leaves");
		table->nent = 0;
		ASK("no room", kvm, request, table);
		say("count stays %u", table->nent);
		table->nent = 1;
		ASK("room for one", kvm, request, table);
		table->nent = 512;
		ASK("much room", kvm, request, table);
		say("fewer: %d", table->nent < 100);
		ASK("nowhere", kvm, request, NULL);
	}
	table->nent = 64;
	int has_signature = 0;
	ASK("leaves", kvm, KVM_GET_SUPPORTED_CPUID, table);
	for (uint32_t i = 0; i < table->nent; i++)
		if (table->entries[i].function == 0x40000000)
			has_signature = memcmp(&table->entries[i].ebx, "KVMKVMKVM\0\0\0", 12) == 0;
	say("the hypervisor's signature: %d", has_signature);
}

static void feature_registers(void)
{
	int kvm = open_kvm();
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entries[2];
	} list = {.header.nmsrs = 1, .entries[0].index = 0x12345};
	ASK("unknown", kvm, KVM_GET_MSRS, &list);
	list.entries[0].index = 0xc0000080;
	ASK("no feature", kvm, KVM_GET_MSRS, &list);
	list.entries[0].index = 0x8b;
	ASK("microcode revision", kvm, KVM_GET_MSRS, &list);
	list.header.nmsrs = 0;
	ASK("none", kvm, KVM_GET_MSRS, &list);
	list.header.nmsrs = 256;
	ASK("256", kvm, KVM_GET_MSRS, &list);
	ASK("nowhere", kvm, KVM_GET_MSRS, NULL);
	list.header.nmsrs = 1;
	ASK("are set", kvm, KVM_SET_MSRS, &list);
	uint64_t value = 0;
	struct kvm_device_attr attribute = {.group = 0, .attr = KVM_X86_XCOMP_GUEST_SUPP, .addr = (uintptr_t)&value};
	ASK("attribute: exists", kvm, KVM_HAS_DEVICE_ATTR, &attribute);
	ASK("attribute", kvm, KVM_GET_DEVICE_ATTR, &attribute);
	attribute.addr = 0;
	ASK("attribute to nowhere", kvm, KVM_GET_DEVICE_ATTR, &attribute);
	attribute.attr = 5;
	ASK("another: exists", kvm, KVM_HAS_DEVICE_ATTR, &attribute);
	attribute.attr = 0;
	attribute.group = 3;
	ASK("another group: exists", kvm, KVM_HAS_DEVICE_ATTR, &attribute);
	ASK("attribute is set", kvm, KVM_SET_DEVICE_ATTR, &attribute);
}

// Those whose answer is neither the host's to give nor a limit.
static void extensions(void)
{
	static const uint8_t of_the_host[] = {9, 10, 31, 60, 61, 66, 128, 136};
	struct machine m = make_machine(WITHOUT_VCPU);
	for (int i = 0; i <= 240; i++) {
		int system = ioctl(m.kvm, KVM_CHECK_EXTENSION, i), machine = ioctl(m.vm, KVM_CHECK_EXTENSION, i);
		if (i == KVM_CAP_VM_GPA_BITS || i == KVM_CAP_XSAVE2 || memchr(of_the_host, i, sizeof of_the_host))
			say("%d: system %d, machine %d", i, system != 0, machine != 0);
		// Whether the host's processor can wait for memory.
		else if (i == KVM_CAP_X86_DISABLE_EXITS)
			say("%d: system %d, machine %d", i, system & 14, machine & 14);
		else if (system || machine)
			say("%d: system %d, machine %d", i, system, machine);
	}
	ASK("10000", m.kvm, KVM_CHECK_EXTENSION, 10000);
	ASK("2^32", m.kvm, KVM_CHECK_EXTENSION, 1ul << 32);
	ASK("2^32 + 1", m.kvm, KVM_CHECK_EXTENSION, (1ul << 32) + 1);
	ASK("-1", m.kvm, KVM_CHECK_EXTENSION, -1l);
}

const struct group system_group = {"system", (const struct test_case[]){{"plain", plain},
									{"opening", opening},
									{"wrong-descriptor", wrong_descriptor},
									{"lists", lists},
									{"feature-registers", feature_registers},
									{"extensions", extensions},
									{}}};
