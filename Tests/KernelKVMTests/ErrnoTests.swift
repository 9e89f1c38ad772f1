import KVMInterface
import KernelKVM
import SystemPackage
import Testing
import UserspaceKVM

/// What requests answer that are wrong, or just right: the same table for each backend.
@Suite(.serialized) struct ErrnoTests {
    @Test(arguments: Core.available) func system(core: Core) throws { try check(ErrnoTables.system, core) }
    @Test(arguments: Core.available) func machine(core: Core) throws { try check(ErrnoTables.machine, core) }
    @Test(arguments: Core.available) func memory(core: Core) throws { try check(ErrnoTables.memory, core) }
    @Test(arguments: Core.available) func vcpu(core: Core) throws { try check(ErrnoTables.vcpu, core) }

    private func check(_ cases: [ErrnoCase], _ core: Core) throws {
        let fixture = try ErrnoFixture(core.make())
        for one in cases {
            let result = one.body(fixture)
            if core == .kernel, result == one.alternative { continue }
            #expect(result == one.expected, "\(core): \(one.name)")
        }
    }

    /// Requests to descriptors of another kind, and to such as are no longer, or never were.
    @Test(arguments: Core.available) func wrongDescriptor(core: Core) throws {
        let fixture = try ErrnoFixture(core.make())
        for request in KVMRequest.allCases {
            let kinds = RequestKinds(request)
            if !kinds.system {
                #expect(fixture.call(fixture.system, request) == -Errno.invalidArgument.rawValue, "system: \(request)")
            }
            if !kinds.machine {
                let expected = -Errno.inappropriateIOCTLForDevice.rawValue
                #expect(fixture.call(fixture.plain, request) == expected, "machine: \(request)")
            }
            if !kinds.vcpu {
                #expect(fixture.call(fixture.plainVCPU, request) == -Errno.invalidArgument.rawValue, "vCPU: \(request)")
            }
            for descriptor in [
                fixture.closedMachine, fixture.closedVCPU, KVMDescriptor(rawValue: -1),
                KVMDescriptor(rawValue: 1 << 30), KVMDescriptor(rawValue: .min)
            ] {
                #expect(
                    fixture.call(descriptor, request) == -Errno.badFileDescriptor.rawValue,
                    "\(descriptor.rawValue): \(request)")
            }
        }
    }

    /// Structures that cannot be accessed, or not to their end.
    @Test(arguments: Core.available) func badAddress(core: Core) throws {
        let fixture = try ErrnoFixture(core.make())
        #expect(fixture.call(fixture.full, .createPIT2, words: []) == 0)
        for one in PointerRequest.all {
            let descriptor = fixture[keyPath: one.descriptor]
            for address in [UInt(bitPattern: fixture.end), 0xFFFF_8000_0000_0000, 0x8000_0000_0000_0000] {
                let result = fixture.call(descriptor, one.request, address)
                #expect(
                    result == -Errno.badAddress.rawValue, "\(core): \(one.request) at \(String(address, radix: 16))")
            }
            let result = fixture.callAtTheEnd(descriptor, one.request, words: one.beginning)
            #expect(result == -Errno.badAddress.rawValue, "\(core): the end of \(one.request)")
        }
    }

    @Test(arguments: Core.available) func descriptors(core: Core) throws {
        let backend = core.make()
        let system = try backend.openSystem()
        let number = try backend.ioctl(system, KVMRequest.createVM.rawValue, 0)
        let machine = KVMDescriptor(rawValue: number)
        #expect(throws: Errno.badFileDescriptor) { try backend.ioctl(KVMDescriptor(rawValue: 77777), 0xAE00, 0) }
        #expect(throws: Errno.badFileDescriptor) { try backend.mapRunArea(KVMDescriptor(rawValue: -5)) }
        #expect(throws: Errno.operationNotSupportedByDevice) { try backend.mapRunArea(system) }
        #expect(throws: Errno.operationNotSupportedByDevice) { try backend.mapRunArea(machine) }
        backend.kick(machine)
        backend.kick(KVMDescriptor(rawValue: -5))
        for descriptor in [machine, system] {
            backend.close(descriptor)
            #expect(throws: Errno.badFileDescriptor) { try backend.ioctl(descriptor, 0xAE00, 0) }
            backend.close(descriptor)
        }
        backend.close(KVMDescriptor(rawValue: -1))
        backend.close(KVMDescriptor(rawValue: .max))
    }
}

/// Which kinds of descriptors know a request.
private struct RequestKinds {
    var system = false
    var machine = false
    var vcpu = false

    init(_ request: KVMRequest) {
        switch request {
        case .checkExtension: (system, machine) = (true, true)
        case .getMSRs, .getDeviceAttribute, .hasDeviceAttribute: (system, vcpu) = (true, true)
        // Of a machine since KVM_CAP_VM_TSC_CONTROL, of a vCPU since KVM_CAP_ENABLE_CAP: with an answer of its own.
        case .getTSCFrequency, .setTSCFrequency, .enableCapability, .getStatisticsDescriptor:
            (machine, vcpu) = (true, true)
        case .getAPIVersion, .createVM, .getMSRIndexList, .getVCPUMapSize, .getSupportedCPUID, .getEmulatedCPUID,
            .getMSRFeatureIndexList, .getMachineCheckCapabilities:
            system = true
        case .setShadowPageCount, .getShadowPageCount: machine = true
        case .setIdentityMapAddress, .resetDirtyRings, .parkVCPU, .setUserMemoryRegions: machine = true
        case _ where PointerRequest.all.contains { $0.request == request && $0.descriptor == \.full }: machine = true
        case .createVCPU, .setTSSAddress, .createIRQChip, .createPIT, .setBootCPUID: machine = true
        default: vcpu = true
        }
    }
}

/// A request whose argument is an address.
private struct PointerRequest {
    let descriptor: KeyPath<ErrnoFixture, KVMDescriptor>
    let request: KVMRequest
    /// All of its structure but the last word, or the header without the elements that it counts.
    let beginning: [UInt32]

    init(_ descriptor: KeyPath<ErrnoFixture, KVMDescriptor>, _ request: KVMRequest, byteCount: Int) {
        self.init(descriptor, request, beginning: [UInt32](repeating: 0, count: byteCount / 4 - 1))
    }

    init(_ descriptor: KeyPath<ErrnoFixture, KVMDescriptor>, _ request: KVMRequest, beginning: [UInt32]) {
        self.descriptor = descriptor
        self.request = request
        self.beginning = beginning
    }

    nonisolated(unsafe) static let all: [PointerRequest] = [
        .init(\.system, .getMSRIndexList, beginning: [4096]),
        .init(\.system, .getMSRFeatureIndexList, beginning: [4096]),
        .init(\.system, .getSupportedCPUID, beginning: [256, 0]), .init(\.system, .getMSRs, beginning: [1, 0]),
        .init(\.full, .getDirtyLog, byteCount: 16), .init(\.full, .setUserMemoryRegion, byteCount: 32),
        .init(\.full, .clearDirtyLog, byteCount: 24), .init(\.empty, .setIdentityMapAddress, byteCount: 8),
        .init(\.full, .irqLine, byteCount: 8),
        .init(\.full, .irqLineStatus, byteCount: 8), .init(\.full, .getIRQChip, byteCount: 520),
        .init(\.full, .setIRQChip, byteCount: 520), .init(\.full, .createPIT2, byteCount: 64),
        .init(\.full, .getPIT2, byteCount: 112), .init(\.full, .setPIT2, byteCount: 112),
        .init(\.full, .reinjectControl, byteCount: 32), .init(\.full, .setGSIRouting, beginning: [1, 0]),
        .init(\.full, .signalMSI, byteCount: 32), .init(\.full, .setClock, byteCount: 48),
        .init(\.full, .getClock, byteCount: 48), .init(\.full, .enableCapability, byteCount: 104),
        .init(\.fullVCPU, .getRegisters, byteCount: 144), .init(\.fullVCPU, .setRegisters, byteCount: 144),
        .init(\.fullVCPU, .getSpecialRegisters, byteCount: 312),
        .init(\.fullVCPU, .setSpecialRegisters, byteCount: 312),
        .init(\.fullVCPU, .getSpecialRegisters2, byteCount: 320),
        .init(\.fullVCPU, .setSpecialRegisters2, byteCount: 320), .init(\.plainVCPU, .interrupt, byteCount: 4),
        .init(\.fullVCPU, .getMSRs, beginning: [1, 0]), .init(\.fullVCPU, .setMSRs, beginning: [1, 0]),
        .init(\.fullVCPU, .setSignalMask, beginning: [8, 0]), .init(\.fullVCPU, .getFloatingPoint, byteCount: 416),
        .init(\.fullVCPU, .setFloatingPoint, byteCount: 416), .init(\.fullVCPU, .getLocalAPIC, byteCount: 1024),
        .init(\.fullVCPU, .setLocalAPIC, byteCount: 1024), .init(\.fullVCPU, .setCPUID2, beginning: [1, 0]),
        .init(\.fullVCPU, .getMPState, byteCount: 4), .init(\.fullVCPU, .setMPState, byteCount: 4),
        .init(\.fullVCPU, .getEvents, byteCount: 64), .init(\.fullVCPU, .setEvents, byteCount: 64),
        .init(\.fullVCPU, .getDebugRegisters, byteCount: 128), .init(\.fullVCPU, .setDebugRegisters, byteCount: 128),
        .init(\.fullVCPU, .getXSave, byteCount: 4096), .init(\.fullVCPU, .setXSave, byteCount: 4096),
        .init(\.fullVCPU, .getXSave2, byteCount: 4096), .init(\.fullVCPU, .getXCRs, byteCount: 392),
        .init(\.fullVCPU, .setXCRs, byteCount: 392),
        .init(\.fullVCPU, .translate, byteCount: 24), .init(\.fullVCPU, .setCPUID, beginning: [1, 0]),
        .init(\.fullVCPU, .setTaskPriorityReporting, byteCount: 40),
        .init(\.fullVCPU, .setTaskPriorityWord, byteCount: 8),
        .init(\.full, .setMSRFilter, byteCount: 392), .init(\.system, .getMachineCheckCapabilities, byteCount: 8),
        .init(\.fullVCPU, .setUpMachineCheck, byteCount: 8), .init(\.fullVCPU, .setMachineCheck, byteCount: 64),
        .init(\.fullVCPU, .getDeviceAttribute, byteCount: 24), .init(\.fullVCPU, .setDeviceAttribute, byteCount: 24),
        .init(\.fullVCPU, .hasDeviceAttribute, byteCount: 24), .init(\.fullVCPU, .setGuestDebug, byteCount: 72)
    ]
}
