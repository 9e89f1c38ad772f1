import CHost
import KVMInterface
import Testing

@Suite struct RequestNumberTests {
    /// The numbers as the C header computes them.
    static let expected: [(KVMRequest, UInt32)] = [
        (.getAPIVersion, MARTLET_KVM_GET_API_VERSION), (.createVM, MARTLET_KVM_CREATE_VM),
        (.getMSRIndexList, MARTLET_KVM_GET_MSR_INDEX_LIST), (.checkExtension, MARTLET_KVM_CHECK_EXTENSION),
        (.getVCPUMapSize, MARTLET_KVM_GET_VCPU_MMAP_SIZE), (.getSupportedCPUID, MARTLET_KVM_GET_SUPPORTED_CPUID),
        (.getEmulatedCPUID, MARTLET_KVM_GET_EMULATED_CPUID),
        (.getMSRFeatureIndexList, MARTLET_KVM_GET_MSR_FEATURE_INDEX_LIST),
        (.createVCPU, MARTLET_KVM_CREATE_VCPU), (.getDirtyLog, MARTLET_KVM_GET_DIRTY_LOG),
        (.getStatisticsDescriptor, MARTLET_KVM_GET_STATS_FD), (.clearDirtyLog, MARTLET_KVM_CLEAR_DIRTY_LOG),
        (.resetDirtyRings, MARTLET_KVM_RESET_DIRTY_RINGS),
        (.setUserMemoryRegion, MARTLET_KVM_SET_USER_MEMORY_REGION), (.setTSSAddress, MARTLET_KVM_SET_TSS_ADDR),
        (.setIdentityMapAddress, MARTLET_KVM_SET_IDENTITY_MAP_ADDR), (.createIRQChip, MARTLET_KVM_CREATE_IRQCHIP),
        (.irqLine, MARTLET_KVM_IRQ_LINE), (.irqLineStatus, MARTLET_KVM_IRQ_LINE_STATUS),
        (.getIRQChip, MARTLET_KVM_GET_IRQCHIP), (.setIRQChip, MARTLET_KVM_SET_IRQCHIP),
        (.createPIT, MARTLET_KVM_CREATE_PIT), (.createPIT2, MARTLET_KVM_CREATE_PIT2),
        (.getPIT2, MARTLET_KVM_GET_PIT2), (.setPIT2, MARTLET_KVM_SET_PIT2),
        (.reinjectControl, MARTLET_KVM_REINJECT_CONTROL), (.setGSIRouting, MARTLET_KVM_SET_GSI_ROUTING),
        (.signalMSI, MARTLET_KVM_SIGNAL_MSI), (.setBootCPUID, MARTLET_KVM_SET_BOOT_CPU_ID),
        (.setClock, MARTLET_KVM_SET_CLOCK), (.getClock, MARTLET_KVM_GET_CLOCK),
        (.enableCapability, MARTLET_KVM_ENABLE_CAP), (.run, MARTLET_KVM_RUN), (.getRegisters, MARTLET_KVM_GET_REGS),
        (.setRegisters, MARTLET_KVM_SET_REGS), (.getSpecialRegisters, MARTLET_KVM_GET_SREGS),
        (.setSpecialRegisters, MARTLET_KVM_SET_SREGS), (.getSpecialRegisters2, MARTLET_KVM_GET_SREGS2),
        (.setSpecialRegisters2, MARTLET_KVM_SET_SREGS2), (.interrupt, MARTLET_KVM_INTERRUPT),
        (.getMSRs, MARTLET_KVM_GET_MSRS), (.setMSRs, MARTLET_KVM_SET_MSRS),
        (.setSignalMask, MARTLET_KVM_SET_SIGNAL_MASK), (.getFloatingPoint, MARTLET_KVM_GET_FPU),
        (.setFloatingPoint, MARTLET_KVM_SET_FPU), (.getLocalAPIC, MARTLET_KVM_GET_LAPIC),
        (.setLocalAPIC, MARTLET_KVM_SET_LAPIC), (.setCPUID2, MARTLET_KVM_SET_CPUID2),
        (.getCPUID2, MARTLET_KVM_GET_CPUID2), (.getMPState, MARTLET_KVM_GET_MP_STATE),
        (.setMPState, MARTLET_KVM_SET_MP_STATE), (.nmi, MARTLET_KVM_NMI), (.getEvents, MARTLET_KVM_GET_VCPU_EVENTS),
        (.setEvents, MARTLET_KVM_SET_VCPU_EVENTS), (.getDebugRegisters, MARTLET_KVM_GET_DEBUGREGS),
        (.setDebugRegisters, MARTLET_KVM_SET_DEBUGREGS), (.getXSave, MARTLET_KVM_GET_XSAVE),
        (.setXSave, MARTLET_KVM_SET_XSAVE), (.getXSave2, MARTLET_KVM_GET_XSAVE2), (.getXCRs, MARTLET_KVM_GET_XCRS),
        (.setXCRs, MARTLET_KVM_SET_XCRS), (.setTSCFrequency, MARTLET_KVM_SET_TSC_KHZ),
        (.getMachineCheckCapabilities, MARTLET_KVM_X86_GET_MCE_CAP_SUPPORTED),
        (.setUpMachineCheck, MARTLET_KVM_X86_SETUP_MCE), (.setMachineCheck, MARTLET_KVM_X86_SET_MCE),
        (.getDeviceAttribute, MARTLET_KVM_GET_DEVICE_ATTR), (.setDeviceAttribute, MARTLET_KVM_SET_DEVICE_ATTR),
        (.hasDeviceAttribute, MARTLET_KVM_HAS_DEVICE_ATTR), (.setMSRFilter, MARTLET_KVM_X86_SET_MSR_FILTER),
        (.translate, MARTLET_KVM_TRANSLATE), (.setCPUID, MARTLET_KVM_SET_CPUID),
        (.setShadowPageCount, MARTLET_KVM_SET_NR_MMU_PAGES), (.getShadowPageCount, MARTLET_KVM_GET_NR_MMU_PAGES),
        (.setTaskPriorityReporting, MARTLET_KVM_TPR_ACCESS_REPORTING),
        (.setTaskPriorityWord, MARTLET_KVM_SET_VAPIC_ADDR), (.setGuestDebug, MARTLET_KVM_SET_GUEST_DEBUG),
        (.getTSCFrequency, MARTLET_KVM_GET_TSC_KHZ), (.kvmClockControl, MARTLET_KVM_KVMCLOCK_CTRL)
    ]

    @Test func numbersAreThoseOfTheHeader() {
        for (request, number) in Self.expected { #expect(request.rawValue == number, "\(request)") }
    }

    @Test func everyRequestIsCompared() {
        let compared = Set(Self.expected.map { $0.0 })
        // Martlet's own are in no header.
        #expect(KVMRequest.allCases.filter { !compared.contains($0) } == [.setUserMemoryRegions, .parkVCPU])
    }
}
