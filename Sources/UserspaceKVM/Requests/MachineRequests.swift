import CHost
import KVMInterface
import SystemPackage

// Requests to a virtual machine: which there are, and those that create and configure.

extension UserspaceKVM {
    func handleMachine(_ vm: UserspaceVM, _ request: KVMRequest, _ argument: UInt) throws(Errno) -> Int32 {
        switch request {
        case .checkExtension: return Int32(clamping: Extensions.answer(argument))
        case .createVCPU: return try createVCPU(vm, id: argument)
        case .getStatisticsDescriptor: return try openStatistics(of: vm)
        case .parkVCPU: try vm.parkVCPU(id: argument)
        case .createIRQChip: try vm.createIRQChip()
        case .createPIT: try vm.createPIT(answersSpeakerPort: false)
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
        case .irqLine: try vm.setIRQLine(at: argument, answersStatus: false)
        case .irqLineStatus: try vm.setIRQLine(at: argument, answersStatus: true)
        case .setGSIRouting: try vm.setGSIRouting(at: argument)
        case .signalMSI: return try vm.signalMSI(at: argument)
        case .getIRQChip: try vm.getIRQChip(at: argument)
        case .setIRQChip: try vm.setIRQChip(at: argument)
        case .getPIT2: try vm.getPIT(at: argument)
        case .setPIT2: try vm.setPIT(at: argument)
        case .reinjectControl: try vm.setReinjection(at: argument)
        case .getClock: try vm.getClock(at: argument)
        case .setClock: try vm.setClock(at: argument)
        case .setShadowPageCount: try vm.setShadowPageCount(argument)
        case .getShadowPageCount:
            return Int32(clamping: vm.settings.requestedPageCount.load(ordering: .relaxed))
        case .setMSRFilter: try vm.setMSRFilter(at: argument)
        case .getTSCFrequency: return Int32(clamping: vm.tscKilohertz)
        case .setTSCFrequency: try vm.checkTSCFrequency(kilohertz: UInt32(truncatingIfNeeded: argument))
        default: throw .inappropriateIOCTLForDevice
        }
        return 0
    }

    private func createVCPU(_ vm: UserspaceVM, id: UInt) throws(Errno) -> Int32 {
        guard let id = UInt32(exactly: id) else { throw .invalidArgument }
        // The descriptor is reserved first: a vCPU that is published cannot be taken back.
        let slot = try descriptors.reserve()
        do {
            let vcpu = try vm.createVCPU(id: id)
            descriptors.fill(slot, with: .vcpu(DescriptorTable.VCPUReference(vcpu, of: vm)))
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
        guard let id = UInt32(exactly: id) else { throw .invalidArgument }
        try lock.withLock { () throws(Errno) in
            guard vcpus.count == 0 else { throw .resourceBusy }
            bootVCPUID = id
        }
    }

    func enableCapability(at argument: UInt) throws(Errno) {
        var request = kvm_enable_cap()
        try ClientMemory.copyIn(&request, from: argument)
        guard request.flags == 0 else { throw .invalidArgument }
        switch KVMCapability(rawValue: request.cap) {
        case .x2APICAPI:
            let flags = X2APICAPIFlags(rawValue: request.args.0)
            guard flags.isSubset(of: .all) else { throw .invalidArgument }
            if flags.contains(.use32BitIDs) {
                hasExtendedAPICIDs.store(true, ordering: .relaxed)
                router?.bus.hasExtendedDestinations = true
            }
            if flags.contains(.disableBroadcastQuirk) { router?.bus.hasBroadcastQuirk = false }
        case .manualDirtyLogProtect: try setManualProtection(request.args.0)
        case .dirtyLogRing, .dirtyLogRingAcquireRelease: try enableDirtyRings(byteCount: request.args.0)
        case .exceptionPayload:
            reportsExceptionPayloads.store(request.args.0 & 1 != 0, ordering: .relaxed)
        default: try enableSetting(KVMCapability(rawValue: request.cap), request.args.0)
        }
    }

    func setTSSAddress(_ address: UInt) throws(Errno) {
        guard address <= 0xFFFF_FFFF - 3 * 4096 else { throw .invalidArgument }
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
