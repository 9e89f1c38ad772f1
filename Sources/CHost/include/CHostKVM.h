#pragma once

// The numbers of the KVM requests of x86, which Swift cannot import because they are macros with casts and
// sizes, and the arrays at the end of KVM's structures, which Swift drops.
//
// A request arrives in `ioctl` as an unsigned long that some C libraries sign-extend: compare the low 32 bits.

#include <linux/kvm.h>
#include <stdint.h>

// Requests of the system descriptor (/dev/kvm).
static const uint32_t MARTLET_KVM_GET_API_VERSION = (uint32_t)KVM_GET_API_VERSION;
static const uint32_t MARTLET_KVM_CREATE_VM = (uint32_t)KVM_CREATE_VM;
static const uint32_t MARTLET_KVM_GET_MSR_INDEX_LIST = (uint32_t)KVM_GET_MSR_INDEX_LIST;
static const uint32_t MARTLET_KVM_CHECK_EXTENSION = (uint32_t)KVM_CHECK_EXTENSION;
static const uint32_t MARTLET_KVM_GET_VCPU_MMAP_SIZE = (uint32_t)KVM_GET_VCPU_MMAP_SIZE;
static const uint32_t MARTLET_KVM_GET_SUPPORTED_CPUID = (uint32_t)KVM_GET_SUPPORTED_CPUID;
static const uint32_t MARTLET_KVM_GET_EMULATED_CPUID = (uint32_t)KVM_GET_EMULATED_CPUID;
static const uint32_t MARTLET_KVM_GET_MSR_FEATURE_INDEX_LIST = (uint32_t)KVM_GET_MSR_FEATURE_INDEX_LIST;
static const uint32_t MARTLET_KVM_X86_GET_MCE_CAP_SUPPORTED = (uint32_t)KVM_X86_GET_MCE_CAP_SUPPORTED;
static const uint32_t MARTLET_KVM_GET_SUPPORTED_HV_CPUID = (uint32_t)KVM_GET_SUPPORTED_HV_CPUID;

// Requests of a virtual machine.
static const uint32_t MARTLET_KVM_CREATE_VCPU = (uint32_t)KVM_CREATE_VCPU;
static const uint32_t MARTLET_KVM_GET_DIRTY_LOG = (uint32_t)KVM_GET_DIRTY_LOG;
static const uint32_t MARTLET_KVM_SET_NR_MMU_PAGES = (uint32_t)KVM_SET_NR_MMU_PAGES;
static const uint32_t MARTLET_KVM_GET_NR_MMU_PAGES = (uint32_t)KVM_GET_NR_MMU_PAGES;
static const uint32_t MARTLET_KVM_SET_USER_MEMORY_REGION = (uint32_t)KVM_SET_USER_MEMORY_REGION;
static const uint32_t MARTLET_KVM_SET_TSS_ADDR = (uint32_t)KVM_SET_TSS_ADDR;
static const uint32_t MARTLET_KVM_SET_IDENTITY_MAP_ADDR = (uint32_t)KVM_SET_IDENTITY_MAP_ADDR;
static const uint32_t MARTLET_KVM_CREATE_IRQCHIP = (uint32_t)KVM_CREATE_IRQCHIP;
static const uint32_t MARTLET_KVM_IRQ_LINE = (uint32_t)KVM_IRQ_LINE;
static const uint32_t MARTLET_KVM_GET_IRQCHIP = (uint32_t)KVM_GET_IRQCHIP;
static const uint32_t MARTLET_KVM_SET_IRQCHIP = (uint32_t)KVM_SET_IRQCHIP;
static const uint32_t MARTLET_KVM_CREATE_PIT = (uint32_t)KVM_CREATE_PIT;
static const uint32_t MARTLET_KVM_GET_PIT = (uint32_t)KVM_GET_PIT;
static const uint32_t MARTLET_KVM_SET_PIT = (uint32_t)KVM_SET_PIT;
static const uint32_t MARTLET_KVM_IRQ_LINE_STATUS = (uint32_t)KVM_IRQ_LINE_STATUS;
static const uint32_t MARTLET_KVM_REGISTER_COALESCED_MMIO = (uint32_t)KVM_REGISTER_COALESCED_MMIO;
static const uint32_t MARTLET_KVM_UNREGISTER_COALESCED_MMIO = (uint32_t)KVM_UNREGISTER_COALESCED_MMIO;
static const uint32_t MARTLET_KVM_SET_GSI_ROUTING = (uint32_t)KVM_SET_GSI_ROUTING;
static const uint32_t MARTLET_KVM_REINJECT_CONTROL = (uint32_t)KVM_REINJECT_CONTROL;
static const uint32_t MARTLET_KVM_IRQFD = (uint32_t)KVM_IRQFD;
static const uint32_t MARTLET_KVM_CREATE_PIT2 = (uint32_t)KVM_CREATE_PIT2;
static const uint32_t MARTLET_KVM_SET_BOOT_CPU_ID = (uint32_t)KVM_SET_BOOT_CPU_ID;
static const uint32_t MARTLET_KVM_IOEVENTFD = (uint32_t)KVM_IOEVENTFD;
static const uint32_t MARTLET_KVM_XEN_HVM_CONFIG = (uint32_t)KVM_XEN_HVM_CONFIG;
static const uint32_t MARTLET_KVM_SET_CLOCK = (uint32_t)KVM_SET_CLOCK;
static const uint32_t MARTLET_KVM_GET_CLOCK = (uint32_t)KVM_GET_CLOCK;
static const uint32_t MARTLET_KVM_GET_PIT2 = (uint32_t)KVM_GET_PIT2;
static const uint32_t MARTLET_KVM_SET_PIT2 = (uint32_t)KVM_SET_PIT2;
static const uint32_t MARTLET_KVM_SIGNAL_MSI = (uint32_t)KVM_SIGNAL_MSI;
static const uint32_t MARTLET_KVM_SET_PMU_EVENT_FILTER = (uint32_t)KVM_SET_PMU_EVENT_FILTER;
static const uint32_t MARTLET_KVM_CREATE_DEVICE = (uint32_t)KVM_CREATE_DEVICE;
static const uint32_t MARTLET_KVM_MEMORY_ENCRYPT_OP = (uint32_t)KVM_MEMORY_ENCRYPT_OP;
static const uint32_t MARTLET_KVM_MEMORY_ENCRYPT_REG_REGION = (uint32_t)KVM_MEMORY_ENCRYPT_REG_REGION;
static const uint32_t MARTLET_KVM_MEMORY_ENCRYPT_UNREG_REGION = (uint32_t)KVM_MEMORY_ENCRYPT_UNREG_REGION;
static const uint32_t MARTLET_KVM_HYPERV_EVENTFD = (uint32_t)KVM_HYPERV_EVENTFD;
static const uint32_t MARTLET_KVM_CLEAR_DIRTY_LOG = (uint32_t)KVM_CLEAR_DIRTY_LOG;
static const uint32_t MARTLET_KVM_X86_SET_MSR_FILTER = (uint32_t)KVM_X86_SET_MSR_FILTER;
static const uint32_t MARTLET_KVM_RESET_DIRTY_RINGS = (uint32_t)KVM_RESET_DIRTY_RINGS;
static const uint32_t MARTLET_KVM_XEN_HVM_GET_ATTR = (uint32_t)KVM_XEN_HVM_GET_ATTR;
static const uint32_t MARTLET_KVM_XEN_HVM_SET_ATTR = (uint32_t)KVM_XEN_HVM_SET_ATTR;
static const uint32_t MARTLET_KVM_XEN_HVM_EVTCHN_SEND = (uint32_t)KVM_XEN_HVM_EVTCHN_SEND;

// Requests of a vCPU.
static const uint32_t MARTLET_KVM_RUN = (uint32_t)KVM_RUN;
static const uint32_t MARTLET_KVM_GET_REGS = (uint32_t)KVM_GET_REGS;
static const uint32_t MARTLET_KVM_SET_REGS = (uint32_t)KVM_SET_REGS;
static const uint32_t MARTLET_KVM_GET_SREGS = (uint32_t)KVM_GET_SREGS;
static const uint32_t MARTLET_KVM_SET_SREGS = (uint32_t)KVM_SET_SREGS;
static const uint32_t MARTLET_KVM_TRANSLATE = (uint32_t)KVM_TRANSLATE;
static const uint32_t MARTLET_KVM_INTERRUPT = (uint32_t)KVM_INTERRUPT;
static const uint32_t MARTLET_KVM_GET_MSRS = (uint32_t)KVM_GET_MSRS;
static const uint32_t MARTLET_KVM_SET_MSRS = (uint32_t)KVM_SET_MSRS;
static const uint32_t MARTLET_KVM_SET_CPUID = (uint32_t)KVM_SET_CPUID;
static const uint32_t MARTLET_KVM_SET_SIGNAL_MASK = (uint32_t)KVM_SET_SIGNAL_MASK;
static const uint32_t MARTLET_KVM_GET_FPU = (uint32_t)KVM_GET_FPU;
static const uint32_t MARTLET_KVM_SET_FPU = (uint32_t)KVM_SET_FPU;
static const uint32_t MARTLET_KVM_GET_LAPIC = (uint32_t)KVM_GET_LAPIC;
static const uint32_t MARTLET_KVM_SET_LAPIC = (uint32_t)KVM_SET_LAPIC;
static const uint32_t MARTLET_KVM_SET_CPUID2 = (uint32_t)KVM_SET_CPUID2;
static const uint32_t MARTLET_KVM_GET_CPUID2 = (uint32_t)KVM_GET_CPUID2;
static const uint32_t MARTLET_KVM_TPR_ACCESS_REPORTING = (uint32_t)KVM_TPR_ACCESS_REPORTING;
static const uint32_t MARTLET_KVM_SET_VAPIC_ADDR = (uint32_t)KVM_SET_VAPIC_ADDR;
static const uint32_t MARTLET_KVM_GET_MP_STATE = (uint32_t)KVM_GET_MP_STATE;
static const uint32_t MARTLET_KVM_SET_MP_STATE = (uint32_t)KVM_SET_MP_STATE;
static const uint32_t MARTLET_KVM_NMI = (uint32_t)KVM_NMI;
static const uint32_t MARTLET_KVM_SET_GUEST_DEBUG = (uint32_t)KVM_SET_GUEST_DEBUG;
static const uint32_t MARTLET_KVM_X86_SETUP_MCE = (uint32_t)KVM_X86_SETUP_MCE;
static const uint32_t MARTLET_KVM_X86_SET_MCE = (uint32_t)KVM_X86_SET_MCE;
static const uint32_t MARTLET_KVM_GET_VCPU_EVENTS = (uint32_t)KVM_GET_VCPU_EVENTS;
static const uint32_t MARTLET_KVM_SET_VCPU_EVENTS = (uint32_t)KVM_SET_VCPU_EVENTS;
static const uint32_t MARTLET_KVM_GET_DEBUGREGS = (uint32_t)KVM_GET_DEBUGREGS;
static const uint32_t MARTLET_KVM_SET_DEBUGREGS = (uint32_t)KVM_SET_DEBUGREGS;
static const uint32_t MARTLET_KVM_GET_XSAVE = (uint32_t)KVM_GET_XSAVE;
static const uint32_t MARTLET_KVM_SET_XSAVE = (uint32_t)KVM_SET_XSAVE;
static const uint32_t MARTLET_KVM_GET_XCRS = (uint32_t)KVM_GET_XCRS;
static const uint32_t MARTLET_KVM_SET_XCRS = (uint32_t)KVM_SET_XCRS;
static const uint32_t MARTLET_KVM_GET_ONE_REG = (uint32_t)KVM_GET_ONE_REG;
static const uint32_t MARTLET_KVM_SET_ONE_REG = (uint32_t)KVM_SET_ONE_REG;
static const uint32_t MARTLET_KVM_KVMCLOCK_CTRL = (uint32_t)KVM_KVMCLOCK_CTRL;
static const uint32_t MARTLET_KVM_SMI = (uint32_t)KVM_SMI;
static const uint32_t MARTLET_KVM_GET_NESTED_STATE = (uint32_t)KVM_GET_NESTED_STATE;
static const uint32_t MARTLET_KVM_SET_NESTED_STATE = (uint32_t)KVM_SET_NESTED_STATE;
static const uint32_t MARTLET_KVM_XEN_VCPU_GET_ATTR = (uint32_t)KVM_XEN_VCPU_GET_ATTR;
static const uint32_t MARTLET_KVM_XEN_VCPU_SET_ATTR = (uint32_t)KVM_XEN_VCPU_SET_ATTR;
static const uint32_t MARTLET_KVM_GET_SREGS2 = (uint32_t)KVM_GET_SREGS2;
static const uint32_t MARTLET_KVM_SET_SREGS2 = (uint32_t)KVM_SET_SREGS2;
static const uint32_t MARTLET_KVM_GET_XSAVE2 = (uint32_t)KVM_GET_XSAVE2;

// Requests of more than one kind of descriptor.
static const uint32_t MARTLET_KVM_SET_TSC_KHZ = (uint32_t)KVM_SET_TSC_KHZ;
static const uint32_t MARTLET_KVM_GET_TSC_KHZ = (uint32_t)KVM_GET_TSC_KHZ;
static const uint32_t MARTLET_KVM_SET_DEVICE_ATTR = (uint32_t)KVM_SET_DEVICE_ATTR;
static const uint32_t MARTLET_KVM_GET_DEVICE_ATTR = (uint32_t)KVM_GET_DEVICE_ATTR;
static const uint32_t MARTLET_KVM_HAS_DEVICE_ATTR = (uint32_t)KVM_HAS_DEVICE_ATTR;
static const uint32_t MARTLET_KVM_ENABLE_CAP = (uint32_t)KVM_ENABLE_CAP;
static const uint32_t MARTLET_KVM_GET_STATS_FD = (uint32_t)KVM_GET_STATS_FD;

// The arrays that end KVM structures of variable size.
static inline struct kvm_cpuid_entry2 *martlet_kvm_cpuid2_entries(struct kvm_cpuid2 *s)
{
	return (struct kvm_cpuid_entry2 *)s->entries;
}
static inline struct kvm_cpuid_entry *martlet_kvm_cpuid_entries(struct kvm_cpuid *s)
{
	return (struct kvm_cpuid_entry *)s->entries;
}
static inline struct kvm_msr_entry *martlet_kvm_msrs_entries(struct kvm_msrs *s)
{
	return (struct kvm_msr_entry *)s->entries;
}
static inline uint32_t *martlet_kvm_msr_list_indices(struct kvm_msr_list *s)
{
	return (uint32_t *)s->indices;
}
static inline struct kvm_irq_routing_entry *martlet_kvm_irq_routing_entries(struct kvm_irq_routing *s)
{
	return (struct kvm_irq_routing_entry *)s->entries;
}
static inline uint8_t *martlet_kvm_signal_mask_bytes(struct kvm_signal_mask *s)
{
	return (uint8_t *)s->sigset;
}
static inline struct kvm_coalesced_mmio *martlet_kvm_coalesced_mmio_ring_entries(struct kvm_coalesced_mmio_ring *s)
{
	return (struct kvm_coalesced_mmio *)s->coalesced_mmio;
}
static inline uint64_t *martlet_kvm_pmu_event_filter_events(struct kvm_pmu_event_filter *s)
{
	return (uint64_t *)s->events;
}
static inline char *martlet_kvm_stats_desc_name(struct kvm_stats_desc *s)
{
	return (char *)s->name;
}
static inline uint32_t *martlet_kvm_xsave_extra(struct kvm_xsave *s)
{
	return (uint32_t *)s->extra;
}
