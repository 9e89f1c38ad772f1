import CHost
import SystemPackage

/// A virtual machine: memory, interrupt controllers and virtual CPUs.
///
/// > Concurrency: requests may come from any thread; the backend orders them.
public final class VirtualMachine: Sendable {
    public let backend: any KVMBackend
    public let descriptor: KVMDescriptor

    /// Takes over `descriptor`.
    public init(backend: any KVMBackend, descriptor: KVMDescriptor) {
        self.backend = backend
        self.descriptor = descriptor
    }

    deinit { backend.close(descriptor) }

    /// The corresponding C request is `KVM_CHECK_EXTENSION` of the machine.
    public func checkExtension(_ capability: KVMCapability) throws(Errno) -> Int {
        Int(try backend.call(descriptor, .checkExtension, UInt(capability.rawValue)))
    }

    /// The corresponding C request is `KVM_ENABLE_CAP`.
    public func enableCapability(_ capability: KVMCapability, _ argument: UInt64 = 0) throws(Errno) {
        var request = kvm_enable_cap()
        request.cap = capability.rawValue
        request.args.0 = argument
        try backend.call(descriptor, .enableCapability, from: request)
    }

    // MARK: Memory

    /// Creates, changes, moves or (with size 0) deletes a memory slot. The corresponding C request is
    /// `KVM_SET_USER_MEMORY_REGION`.
    /// - Throws: `Errno.invalidArgument`, `Errno.fileExists` if slots overlap, `Errno.noMemory`.
    public func setUserMemoryRegion(_ region: UserMemoryRegion) throws(Errno) {
        try backend.call(descriptor, .setUserMemoryRegion, from: region)
    }

    /// Fetches and clears the pages written since the last call, one bit a page. The corresponding C request is
    /// `KVM_GET_DIRTY_LOG`.
    public func dirtyLog(slot: UInt32, pageCount: Int) throws(Errno) -> [UInt64] {
        let bitmap = UnsafeMutableBufferPointer<UInt64>.allocate(capacity: (pageCount + 63) / 64)
        bitmap.initialize(repeating: 0)
        defer { bitmap.deallocate() }
        var request = kvm_dirty_log()
        request.slot = slot
        request.dirty_bitmap = UnsafeMutableRawPointer(bitmap.baseAddress)
        try backend.call(descriptor, .getDirtyLog, with: &request)
        return Array(bitmap)
    }

    /// The corresponding C request is `KVM_SET_TSS_ADDR`.
    public func setTSSAddress(_ address: UInt64) throws(Errno) {
        try backend.call(descriptor, .setTSSAddress, UInt(address))
    }

    /// The corresponding C request is `KVM_SET_IDENTITY_MAP_ADDR`.
    public func setIdentityMapAddress(_ address: UInt64) throws(Errno) {
        try backend.call(descriptor, .setIdentityMapAddress, from: address)
    }

    // MARK: Virtual CPUs

    /// Adds a virtual CPU. The corresponding C request is `KVM_CREATE_VCPU`.
    /// - Throws: `Errno.invalidArgument` if `id` or the count is too large, `Errno.fileExists` if `id` is taken, and not by a
    ///   vCPU that was unplugged.
    public func createVCPU(id: UInt32) throws(Errno) -> VCPU {
        let vcpu = KVMDescriptor(rawValue: try backend.call(descriptor, .createVCPU, UInt(id)))
        do {
            return VCPU(backend: backend, descriptor: vcpu, id: id, runArea: try backend.mapRunArea(vcpu))
        } catch {
            backend.close(vcpu)
            throw error
        }
    }

    /// Unplugs a virtual CPU: nothing reaches it any more, and it does not run. ``createVCPU(id:)`` with its id plugs it in
    /// again, in its state after power-up. The corresponding C request is `KVMRequest.parkVCPU`, which only Martlet's own
    /// core has.
    ///
    /// - Throws: `Errno.noSuchFileOrDirectory` if there is none with that id, `Errno.resourceBusy` if it is in use: as a rule
    ///   inside ``VCPU/run()``.
    public func parkVCPU(id: UInt32) throws(Errno) { try backend.call(descriptor, .parkVCPU, UInt(id)) }

    /// Which vCPU is the bootstrap processor; before any is created. The corresponding C request is
    /// `KVM_SET_BOOT_CPU_ID`.
    public func setBootCPU(id: UInt32) throws(Errno) { try backend.call(descriptor, .setBootCPUID, UInt(id)) }

    // MARK: Interrupts

    /// Gives the machine PICs, an IOAPIC and local APICs; before vCPUs are created. The corresponding C request is
    /// `KVM_CREATE_IRQCHIP`.
    public func createIRQChip() throws(Errno) { try backend.call(descriptor, .createIRQChip) }

    /// Gives the machine local APICs; the client has the other controllers. Before vCPUs are created. The corresponding C
    /// request is `KVM_ENABLE_CAP` of `KVM_CAP_SPLIT_IRQCHIP`.
    /// - Parameter reservedPinCount: how many lines, from 0 on, are pins of the client's IOAPIC: ends of level-triggered
    ///   interrupts that their routes name leave the core.
    public func createSplitIRQChip(reservedPinCount: Int) throws(Errno) {
        try enableCapability(.splitIRQChip, UInt64(reservedPinCount))
    }

    /// Gives the machine an interval timer. The corresponding C request is `KVM_CREATE_PIT2`.
    /// - Parameter answersSpeakerPort: port 0x61 is answered too.
    public func createPIT2(answersSpeakerPort: Bool = true) throws(Errno) {
        var configuration = kvm_pit_config()
        configuration.flags = answersSpeakerPort ? UInt32(KVM_PIT_SPEAKER_DUMMY) : 0
        try backend.call(descriptor, .createPIT2, from: configuration)
    }

    /// Sets the level of an interrupt line. The corresponding C request is `KVM_IRQ_LINE`.
    public func irqLine(gsi: UInt32, level: Bool) throws(Errno) {
        var request = kvm_irq_level()
        request.irq = gsi
        request.level = level ? 1 : 0
        try backend.call(descriptor, .irqLine, from: request)
    }

    /// The same, and tells whether the interrupt was delivered (1 or more), coalesced (0) or ignored (−1).
    public func irqLineStatus(gsi: UInt32, level: Bool) throws(Errno) -> Int32 {
        var request = kvm_irq_level()
        request.irq = gsi
        request.level = level ? 1 : 0
        try backend.call(descriptor, .irqLineStatus, with: &request)
        return request.status
    }

    /// Replaces the table from GSI to pins and messages. The corresponding C request is `KVM_SET_GSI_ROUTING`.
    public func setGSIRouting(_ entries: [IRQRoutingEntry]) throws(Errno) {
        try backend.call(descriptor, .setGSIRouting, headerByteCount: 8, elements: entries)
    }

    /// Sends a message. The corresponding C request is `KVM_SIGNAL_MSI`.
    /// - Returns: whether a vCPU took it.
    @discardableResult
    public func signalMSI(address: UInt64, data: UInt32) throws(Errno) -> Bool {
        var message = kvm_msi()
        message.address_lo = UInt32(truncatingIfNeeded: address)
        message.address_hi = UInt32(truncatingIfNeeded: address >> 32)
        message.data = data
        return try backend.call(descriptor, .signalMSI, from: message) > 0
    }

    /// The corresponding C request is `KVM_GET_IRQCHIP`.
    public func irqChip(_ chip: IRQChip) throws(Errno) -> IRQChipState {
        var state = IRQChipState()
        state.chip_id = chip.rawValue
        try backend.call(descriptor, .getIRQChip, with: &state)
        return state
    }

    /// The corresponding C request is `KVM_SET_IRQCHIP`.
    public func setIRQChip(_ state: IRQChipState) throws(Errno) {
        try backend.call(descriptor, .setIRQChip, from: state)
    }

    /// The corresponding C request is `KVM_GET_PIT2`.
    public func pit() throws(Errno) -> PITState {
        var state = PITState()
        try backend.call(descriptor, .getPIT2, with: &state)
        return state
    }

    /// The corresponding C request is `KVM_SET_PIT2`.
    public func setPIT(_ state: PITState) throws(Errno) { try backend.call(descriptor, .setPIT2, from: state) }

    // MARK: Time

    /// The guest's clock. The corresponding C request is `KVM_GET_CLOCK`.
    public func clock() throws(Errno) -> ClockData {
        var data = ClockData()
        try backend.call(descriptor, .getClock, with: &data)
        return data
    }

    /// The corresponding C request is `KVM_SET_CLOCK`.
    public func setClock(nanoseconds: UInt64) throws(Errno) {
        var data = ClockData()
        data.clock = nanoseconds
        try backend.call(descriptor, .setClock, from: data)
    }
}
