import GuestMemory
import KVMInterface
import MMU
import RCU

extension UserspaceVM {
    /// > Concurrency: takes the VM lock and the slots lock; not inside guest code.
    func inspect() -> MachineInspection {
        MachineInspection(
            addressSpaces: (0..<memory.addressSpaceCount).map(inspectSlots),
            vcpus: lock.withLock { (0..<vcpus.count).compactMap(inspectVCPU) },
            shadowPages: shadow.describePages().map(MachineInspection.ShadowPage.init),
            gracePeriods: [
                .init("shadow pages", domain.state), .init("memory slots", memory.domain.state),
                .init("threads of the process", ThreadRCU.domain.state)
            ],
            statistics: Self.dictionary(statistics))
    }

    private func inspectSlots(_ number: Int) -> MachineInspection.AddressSpace {
        let sets = memory.sets(addressSpace: number)
        return MachineInspection.AddressSpace(
            number: number, generation: memory.generation(addressSpace: number).rawValue, activeSet: sets.active,
            sets: sets.slots.map { $0.map(MachineInspection.Slot.init) })
    }

    private func inspectVCPU(_ index: Int) -> MachineInspection.VCPU? {
        let slot = vcpus.slot(at: index)
        guard let vcpu = slot.element else { return nil }
        let state: MachineInspection.VCPU.State =
            if slot.isParked {
                .parked
            } else if vcpu.requests.standsInside {
                .guest
            } else {
                vcpu.requests.isSleeping ? .halted : .host
            }
        return MachineInspection.VCPU(
            index: index, id: vcpu.id, state: state, statistics: Self.dictionary(vcpu.statistics))
    }

    private static func dictionary(_ statistics: [Statistic]) -> [String: UInt64] {
        Dictionary(statistics.map { ($0.name, $0.value) }) { first, _ in first }
    }
}

extension MachineInspection.Slot {
    init(_ slot: MemorySlotDescription) {
        self.init(
            id: slot.id, guestAddress: slot.baseFrame.value << 12, byteCount: slot.pageCount << 12,
            hostAddress: UInt64(slot.hostAddress), isReadOnly: slot.flags.contains(.readOnly),
            isLogged: slot.flags.contains(.logDirtyPages), isInvalid: slot.flags.contains(.invalid))
    }
}

extension MachineInspection.ShadowPage {
    init(_ page: ShadowMMU.PageDescription) {
        self.init(
            level: page.role.level, frame: page.frame, role: page.role.rawValue, isDirect: page.role.isDirect,
            isRoot: page.isRoot, isTracked: page.isTracked,
            entries: page.entries.map { entry in
                switch entry.target {
                case .page(let frame, let role):
                    .init(index: entry.index, kind: .page, frame: frame, role: role.rawValue)
                case .memory(let frame): .init(index: entry.index, kind: .memory, frame: frame)
                case .device(let frame): .init(index: entry.index, kind: .device, frame: frame)
                }
            })
    }
}

extension MachineInspection.GracePeriods {
    init(_ name: String, _ state: ReclamationState) {
        self.init(
            name: name, begun: state.begun, activeReaders: state.activeReaders,
            oldestReaderAge: state.oldestReaderAge, pendingCallbacks: state.pendingCallbacks)
    }
}
