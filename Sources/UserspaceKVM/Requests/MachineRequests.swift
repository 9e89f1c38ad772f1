import CHost
import KVMInterface
import SystemPackage

// Requests to a virtual machine: which there are, and those that create and configure.

extension UserspaceKVM {
    func handleMachine(
        _ reference: DescriptorTable.MachineReference, _ request: KVMRequest, _ argument: UInt
    ) throws(Errno) -> Int32 {
        let vm = reference.vm
        switch request {
        case .checkExtension: return Int32(clamping: Extensions.answer(argument))
        case .createVCPU: return try createVCPU(reference, id: argument)
        case .getStatisticsDescriptor: return try openStatistics(of: vm)
        case .parkVCPU: try vm.parkVCPU(id: argument)
        case .createIRQChip: try vm.createIRQChip()
        case .createPIT: try vm.createPIT(answersSpeakerPort: true)
        case .createPIT2: try vm.createPIT(PITRequest.decodeConfiguration(at: argument))
        case .setBootCPUID: try vm.setBootVCPU(id: argument)
        case .enableCapability: try vm.enableCapability(at: argument)
        case .setUserMemoryRegion: try vm.setUserMemoryRegion(at: argument)
        case .setUserMemoryRegions: try vm.setUserMemoryRegions(at: argument)
        case .getDirtyLog: try vm.getDirtyLog(at: argument)
        case .clearDirtyLog: try vm.clearDirtyLog(at: argument)
        case .resetDirtyRings: return try vm.resetDirtyRings()
        case .setTSSAddress: try vm.setTSSAddress(argument)
        case .setIdentityMapAddress: try vm.setIdentityMapAddress(at: argument)
        case .setIOEvent: try vm.setIOEvent(at: argument)
        case .setInterruptEvent: try vm.setInterruptEvent(at: argument)
        case .registerCoalescedZone: try vm.registerCoalescedZone(at: argument)
        case .unregisterCoalescedZone: try vm.unregisterCoalescedZone(at: argument)
        case .irqLine: try vm.setIRQLine(at: argument, answersStatus: false)
        case .irqLineStatus: try vm.setIRQLine(at: argument, answersStatus: true)
        case .setGSIRouting: try vm.setGSIRouting(at: argument)
        case .signalMSI: return try vm.signalMSI(at: argument)
        case .getIRQChip: try vm.getIRQChip(at: argument)
        case .setIRQChip: try vm.setIRQChip(at: argument)
        case .getPIT: try vm.getOldPIT(at: argument)
        case .setPIT: try vm.setOldPIT(at: argument)
        case .getPIT2: try vm.getPIT(at: argument)
        case .setPIT2: try vm.setPIT(at: argument)
        case .reinjectControl: try vm.setReinjection(at: argument)
        case .setMMUPageCount: try vm.setMMUPageCount(argument)
        case .getMMUPageCount: return vm.mmuPageCount
        case .createDevice: try vm.createDevice(at: argument)
        case .getClock: try vm.getClock(at: argument)
        case .setClock: try vm.setClock(at: argument)
        case .setMSRFilter: try vm.setMSRFilter(at: argument)
        case .getTSCFrequency: return Int32(clamping: vm.tscKilohertz)
        case .setTSCFrequency: try vm.checkTSCFrequency(kilohertz: UInt32(truncatingIfNeeded: argument))
        default: throw .inappropriateIOCTLForDevice
        }
        return 0
    }

    private func createVCPU(_ reference: DescriptorTable.MachineReference, id: UInt) throws(Errno) -> Int32 {
        guard let id = UInt32(exactly: id) else { throw .invalidArgument }
        // The descriptor is reserved first: a vCPU that is published cannot be taken back.
        let slot = try descriptors.reserve()
        do {
            let vcpu = try reference.vm.createVCPU(id: id)
            descriptors.fill(slot, with: .vcpu(DescriptorTable.VCPUReference(vcpu, of: reference)))
            return slot.rawValue
        } catch {
            descriptors.remove(slot)
            throw error
        }
    }
}

extension UserspaceVM {
    /// - Throws: `EBUSY` if there are vCPUs.
    func setBootVCPU(id: UInt) throws(Errno) {
        try lock.withLock { () throws(Errno) in
            guard vcpus.count == 0 else { throw .resourceBusy }
            bootVCPUID = UInt32(truncatingIfNeeded: id)
        }
    }

    func enableCapability(at argument: UInt) throws(Errno) {
        var request = kvm_enable_cap()
        try ClientMemory.copyIn(&request, from: argument)
        guard request.flags == 0 else { throw .invalidArgument }
        switch KVMCapability(rawValue: request.cap) {
        case .x2APICAPI: try enableX2APICAPI(request.args.0)
        case .splitIRQChip: try createSplitIRQChip(reservedPinCount: request.args.0)
        case .manualDirtyLogProtect: try setManualProtection(request.args.0)
        case .dirtyLogRing, .dirtyLogRingAcquireRelease: try enableDirtyRings(byteCount: request.args.0)
        case .exceptionPayload:
            reportsExceptionPayloads.store(request.args.0 & 1 != 0, ordering: .relaxed)
        default: try enableSetting(KVMCapability(rawValue: request.cap), request.args.0)
        }
    }

    /// - Throws: `EINVAL` for fewer pages than KVM needs.
    func setMMUPageCount(_ count: UInt) throws(Errno) {
        guard count >= Limits.mmuPageCount else { throw .invalidArgument }
        lock.withLock { requestedMMUPageCount = count }
    }

    /// What was set, or what KVM would choose by itself.
    var mmuPageCount: Int32 {
        let requested = lock.withLock { requestedMMUPageCount }
        if requested != 0 { return Int32(clamping: requested) }
        let (slotCount, pageCount) = memory.counts
        return slotCount == 0 ? 0 : Int32(clamping: max(pageCount / 50, UInt64(Limits.mmuPageCount)))
    }

    /// The corresponding C request is `KVM_CREATE_DEVICE`.
    /// - Throws: `ENODEV`: there is no kind of device.
    func createDevice(at argument: UInt) throws(Errno) {
        var request = kvm_create_device()
        try ClientMemory.copyIn(&request, from: argument)
        throw .operationNotSupportedByDevice
    }

    func setTSSAddress(_ address: UInt) throws(Errno) {
        guard address <= 0x1_0000_0000 - 3 * 4096 else { throw .invalidArgument }
        lock.withLock { tssAddress = UInt64(address) }
    }

    /// - Throws: `EINVAL` if there are vCPUs.
    func setIdentityMapAddress(at argument: UInt) throws(Errno) {
        try lock.withLock { () throws(Errno) in
            guard vcpus.count == 0 else { throw .invalidArgument }
            var address: UInt64 = 0
            try ClientMemory.copyIn(&address, from: argument)
            identityMapAddress = address == 0 ? 0xFFFB_C000 : address
        }
    }
}
