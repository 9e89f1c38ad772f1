import CHost
import Interrupts
import KVMInterface
import SystemPackage
import Translator
import X86

// Events and the activity state of a vCPU in the structures of the ABI.
// > Concurrency: the owner, outside.
// > Source: Documentation/virt/kvm/api.rst, sections 4.31, 4.32, 4.38 and 4.39.

extension UserspaceVCPU {
    private static let knownEventFlags = UInt32(
        KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR | KVM_VCPUEVENT_VALID_SHADOW
            | KVM_VCPUEVENT_VALID_SMM | KVM_VCPUEVENT_VALID_PAYLOAD | KVM_VCPUEVENT_VALID_TRIPLE_FAULT)

    /// Without the capability for payloads a client finds what a pending exception does to CR2 and DR6 in these registers.
    /// > Source: Linux, `kvm_handle_exception_payload_quirk` (behaviour).
    func showExceptionPayload() {
        if !vm.reportsExceptionPayloads.load(ordering: .relaxed) { processor.applyPendingPayload() }
    }

    var events: VCPUEvents {
        showExceptionPayload()
        let system = processor.system
        var events = VCPUEvents()
        events.flags = UInt32(
            KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM)
        if let event = system.pendingEvent { describe(event, in: &events) }
        events.interrupt.shadow = processor.hasInterruptShadow ? UInt8(KVM_X86_SHADOW_INT_STI) : 0
        events.nmi.pending = hasPendingNMI ? 1 : 0
        events.nmi.masked = system.nmiBlocked ? 1 : 0
        events.sipi_vector = UInt32(startupVector)
        events.smi.smm = system.systemManagement.isActive ? 1 : 0
        events.smi.pending = hasSignal(.systemManagement) ? 1 : 0
        events.smi.smm_inside_nmi = system.systemManagement.isInsideNMI ? 1 : 0
        events.smi.latched_init = apic?.hasPendingInitialize == true ? 1 : 0
        if vm.reportsExceptionPayloads.load(ordering: .relaxed) { events.flags |= UInt32(KVM_VCPUEVENT_VALID_PAYLOAD) }
        if vm.settings.reportsTripleFaults.load(ordering: .relaxed) {
            events.triple_fault.pending = hasPendingTripleFault ? 1 : 0
            events.flags |= UInt32(KVM_VCPUEVENT_VALID_TRIPLE_FAULT)
        }
        return events
    }

    private func describe(_ event: PendingEvent, in events: inout VCPUEvents) {
        switch event.kind {
        case .exception:
            // What still has a payload is pending: CR2 and DR6 do not have it yet.
            events.exception.pending = event.payload == nil ? 0 : 1
            events.exception.injected = event.payload == nil ? 1 : 0
            events.exception.nr = event.vector
            events.exception.has_error_code = event.errorCode == nil ? 0 : 1
            events.exception.error_code = event.errorCode ?? 0
            events.exception_has_payload = events.exception.pending
            events.exception_payload = event.payload ?? 0
        case .nonMaskableInterrupt:
            events.nmi.injected = 1
        case .externalInterrupt, .softwareInterrupt, .softwareException:
            events.interrupt.injected = 1
            events.interrupt.nr = event.vector
            events.interrupt.soft = event.kind == .externalInterrupt ? 0 : 1
        }
    }

    /// - Throws: `EINVAL`, with nothing changed, for unknown flags, vectors that are no exceptions, or system management mode
    ///   on a vCPU that waits for SIPI.
    func setEvents(_ events: VCPUEvents) throws(Errno) {
        guard events.flags & ~Self.knownEventFlags == 0 else { throw .invalidArgument }
        let hasPayloads = vm.reportsExceptionPayloads.load(ordering: .relaxed)
        let usesPayload = events.flags & UInt32(KVM_VCPUEVENT_VALID_PAYLOAD) != 0
        guard !usesPayload || hasPayloads else { throw .invalidArgument }
        let setsTripleFault = events.flags & UInt32(KVM_VCPUEVENT_VALID_TRIPLE_FAULT) != 0
        guard !setsTripleFault || vm.settings.reportsTripleFaults.load(ordering: .relaxed)
        else { throw .invalidArgument }
        let hasException = events.exception.injected != 0 || usesPayload && events.exception.pending != 0
        if hasException, events.exception.nr > 31 || events.exception.nr == 2 { throw .invalidArgument }
        let hasSystemManagement = events.flags & UInt32(KVM_VCPUEVENT_VALID_SMM) != 0
        // A processor that waits for SIPI is not in the mode: INIT would have waited.
        if hasSystemManagement, events.smi.smm != 0 || events.smi.pending != 0,
            processor.system.activity == .initReceived
        {
            throw .invalidArgument
        }

        processor.system.pendingEvent = event(in: events, hasException: hasException, usesPayload: usesPayload)
        if events.flags & UInt32(KVM_VCPUEVENT_VALID_SHADOW) != 0 {
            processor.hasInterruptShadow = events.interrupt.shadow != 0
        }
        if setsTripleFault { hasPendingTripleFault = events.triple_fault.pending != 0 }
        processor.system.nmiBlocked = events.nmi.masked != 0
        if events.flags & UInt32(KVM_VCPUEVENT_VALID_NMI_PENDING) != 0 { setPendingNMI(events.nmi.pending != 0) }
        if events.flags & UInt32(KVM_VCPUEVENT_VALID_SIPI_VECTOR) != 0, apic != nil {
            startupVector = UInt8(truncatingIfNeeded: events.sipi_vector)
        }
        if hasSystemManagement { setSystemManagement(events) }
    }

    private func setSystemManagement(_ events: VCPUEvents) {
        processor.setSystemManagement(isActive: events.smi.smm != 0)
        if events.smi.smm != 0 {
            processor.system.systemManagement.isInsideNMI = events.smi.smm_inside_nmi != 0
        }
        if events.smi.pending != 0 { signal(.systemManagement) } else { _ = takeSignal(.systemManagement) }
        if events.smi.latched_init != 0 { apic?.postInitialize() } else { _ = apic?.takeInitialize() }
    }

    private func event(in events: VCPUEvents, hasException: Bool, usesPayload: Bool) -> PendingEvent? {
        if hasException {
            // Of an injected exception the client sets CR2 and DR6 itself.
            let hasPayload = usesPayload && events.exception.pending != 0 && events.exception_has_payload != 0
            return PendingEvent(
                kind: .exception, vector: events.exception.nr,
                errorCode: events.exception.has_error_code != 0 ? events.exception.error_code : nil,
                payload: hasPayload ? events.exception_payload : nil)
        }
        if events.nmi.injected != 0 { return PendingEvent(kind: .nonMaskableInterrupt, vector: 2) }
        guard events.interrupt.injected != 0 else { return nil }
        let kind: PendingEvent.Kind =
            events.interrupt.soft == 0
            ? .externalInterrupt
            : events.interrupt.nr == 3 || events.interrupt.nr == 4 ? .softwareException : .softwareInterrupt
        return PendingEvent(kind: kind, vector: events.interrupt.nr)
    }

    // MARK: NMI

    var hasPendingNMI: Bool { apic?.hasPendingNMI ?? hasSignal(.nmi) }

    private func setPendingNMI(_ isPending: Bool) {
        if isPending {
            postNMI()
        } else if let apic {
            _ = apic.takeNMI()
        } else {
            _ = takeSignal(.nmi)
        }
    }

    /// The corresponding C request is `KVM_NMI`.
    /// > Concurrency: any thread.
    func postNMI() {
        if let apic { apic.postNMI() } else { signal(.nmi) }
    }

    // MARK: Activity

    /// What the vCPU does, with what INIT and SIPI make of it.
    var activity: MPState {
        acceptStartupSignals()
        return MPState(rawValue: processor.system.activity.rawValue) ?? .runnable
    }

    /// - Throws: `EINVAL` for any state but running if the client has the local APIC, and for what INIT leads to while
    ///   system management mode, or its interrupt, keeps INIT away.
    func setActivity(_ state: MPState) throws(Errno) {
        guard let apic else {
            guard state == .runnable else { throw .invalidArgument }
            processor.system.activity = .running
            return
        }
        let isManaged = processor.system.systemManagement.isActive
        if state == .initReceived || state == .sipiReceived, isManaged || hasSignal(.systemManagement) {
            throw .invalidArgument
        }
        switch state {
        case .sipiReceived:
            processor.system.activity = .initReceived
            apic.postStartup(vector: startupVector)
        default:
            processor.system.activity = SystemRegisters.Activity(rawValue: state.rawValue) ?? .running
        }
    }
}
