import CHost
import KVMInterface
import SystemPackage

// Requests to the system descriptor.

extension UserspaceKVM {
    func handleSystem(_ request: KVMRequest, _ argument: UInt) throws(Errno) -> Int32 {
        switch request {
        case .getAPIVersion:
            guard argument == 0 else { throw .invalidArgument }
            return KVM_API_VERSION
        case .createVM: return try createVM(type: argument)
        case .checkExtension: return Int32(clamping: Extensions.answer(argument))
        case .getVCPUMapSize:
            guard argument == 0 else { throw .invalidArgument }
            return Int32(Limits.runAreaByteCount)
        case .getSupportedCPUID: return try answerCPUID(supportedCPUID, at: argument)
        // Nothing is emulated on top of what is supported.
        case .getEmulatedCPUID: return try answerCPUID([], at: argument)
        case .getMSRIndexList: return try answerIndexList(MSRList.saved, at: argument)
        case .getMSRFeatureIndexList: return try answerIndexList(MSRList.features(of: host).keys.sorted(), at: argument)
        case .getMSRs: return try answerFeatureMSRs(at: argument)
        case .getDeviceAttribute, .hasDeviceAttribute:
            try handleAttribute(request, at: argument)
            return 0
        case .getMachineCheckCapabilities:
            try ClientMemory.copyOut(MachineCheck.Capabilities.supported, to: argument)
            return 0
        default: throw .invalidArgument
        }
    }

    private func createVM(type: UInt) throws(Errno) -> Int32 {
        guard type == 0 else { throw .invalidArgument }
        let vm = try UserspaceVM(host: host, mmu: mmu)
        return try descriptors.add(.machine(DescriptorTable.MachineReference(vm))).rawValue
    }

    /// Fills a `kvm_cpuid2`.
    /// - Throws: `E2BIG` if it has too little room.
    private func answerCPUID(_ entries: [CPUIDEntry], at argument: UInt) throws(Errno) -> Int32 {
        var room: UInt32 = 0
        try ClientMemory.copyIn(&room, from: argument)
        guard room >= max(entries.count, 1) else { throw .argListTooLong }
        try ClientMemory.copyOut(entries, to: argument &+ 8)
        try ClientMemory.copyOut(UInt32(entries.count), to: argument)
        return 0
    }

    /// Fills a `kvm_msr_list`; the count also where there is too little room.
    private func answerIndexList(_ indices: [UInt32], at argument: UInt) throws(Errno) -> Int32 {
        var room: UInt32 = 0
        try ClientMemory.copyIn(&room, from: argument)
        try ClientMemory.copyOut(UInt32(indices.count), to: argument)
        guard room >= indices.count else { throw .argListTooLong }
        try ClientMemory.copyOut(indices, to: argument &+ 4)
        return 0
    }

    /// Answers `KVM_GET_MSRS` of the system: what describes the processor.
    private func answerFeatureMSRs(at argument: UInt) throws(Errno) -> Int32 {
        let features = MSRList.features(of: host)
        return try MSRRequest.answer(at: argument) { features[$0] }
    }
}
