import CHost
import Host
import Interrupts
import KVMInterface
import SystemPackage

// The state of the interrupt controllers and the timer.

extension UserspaceVM {
    /// - Throws: `ENXIO` without interrupt controllers, `EINVAL` for a chip that does not exist.
    func getIRQChip(at argument: UInt) throws(Errno) {
        var request = IRQChipState()
        try ClientMemory.copyIn(&request, from: argument)
        guard let router, let pic = router.pic, let ioapic = router.ioapic else { throw .noSuchAddressOrDevice }
        switch IRQChip(rawValue: request.chip_id) {
        case .picMaster: request.chip.pic = kvm_pic_state(pic.saveState(ofSecond: false))
        case .picSlave: request.chip.pic = kvm_pic_state(pic.saveState(ofSecond: true))
        case .ioapic: request.chip.ioapic = kvm_ioapic_state(ioapic.saveState())
        case nil: throw .invalidArgument
        }
        try ClientMemory.copyOut(request, to: argument)
    }

    /// - Throws: as ``getIRQChip(at:)``.
    func setIRQChip(at argument: UInt) throws(Errno) {
        var request = IRQChipState()
        try ClientMemory.copyIn(&request, from: argument)
        guard let router, let pic = router.pic, let ioapic = router.ioapic else { throw .noSuchAddressOrDevice }
        switch IRQChip(rawValue: request.chip_id) {
        case .picMaster: pic.loadState(PICState(request.chip.pic), ofSecond: false)
        case .picSlave: pic.loadState(PICState(request.chip.pic), ofSecond: true)
        case .ioapic: ioapic.loadState(IOAPICState(request.chip.ioapic))
        case nil: throw .invalidArgument
        }
    }

    // MARK: PIT

    func createPIT(_ configuration: kvm_pit_config) throws(Errno) {
        try createPIT(answersSpeakerPort: configuration.flags & UInt32(KVM_PIT_SPEAKER_DUMMY) != 0)
    }

    /// - Throws: `ENXIO` without a timer.
    func getPIT(at argument: UInt) throws(Errno) {
        guard let pit else { throw .noSuchAddressOrDevice }
        try ClientMemory.copyOut(kvm_pit_state2(pit.pit.saveState()), to: argument)
    }

    /// - Throws: `ENXIO` without a timer.
    func setPIT(at argument: UInt) throws(Errno) {
        var state = kvm_pit_state2()
        try ClientMemory.copyIn(&state, from: argument)
        guard let pit else { throw .noSuchAddressOrDevice }
        pit.pit.loadState(Interrupts.PITState(state), now: MonotonicClock.nanoseconds())
    }

    /// The corresponding C request is `KVM_GET_PIT`, which carries no flags.
    /// - Throws: `ENXIO` without a timer.
    func getOldPIT(at argument: UInt) throws(Errno) {
        var state = kvm_pit_state()
        try ClientMemory.copyIn(&state, from: argument)
        guard let pit else { throw .noSuchAddressOrDevice }
        state.channels = kvm_pit_state2(pit.pit.saveState()).channels
        try ClientMemory.copyOut(state, to: argument)
    }

    /// The corresponding C request is `KVM_SET_PIT`; flags stay as they are.
    /// - Throws: `ENXIO` without a timer.
    func setOldPIT(at argument: UInt) throws(Errno) {
        var old = kvm_pit_state()
        try ClientMemory.copyIn(&old, from: argument)
        guard let pit else { throw .noSuchAddressOrDevice }
        var state = kvm_pit_state2(pit.pit.saveState())
        state.channels = old.channels
        pit.pit.loadState(Interrupts.PITState(state), now: MonotonicClock.nanoseconds())
    }

    /// - Throws: `ENXIO` without a timer.
    func setReinjection(at argument: UInt) throws(Errno) {
        var request = kvm_reinject_control()
        try ClientMemory.copyIn(&request, from: argument)
        guard let pit else { throw .noSuchAddressOrDevice }
        pit.pit.setReinjection(request.pit_reinject != 0)
    }
}

enum PITRequest {
    static func decodeConfiguration(at argument: UInt) throws(Errno) -> kvm_pit_config {
        var configuration = kvm_pit_config()
        try ClientMemory.copyIn(&configuration, from: argument)
        return configuration
    }
}

// MARK: - Structures

extension kvm_pic_state {
    init(_ state: PICState) {
        self.init(
            last_irr: state.lastLevels, irr: state.requests, imr: state.mask, isr: state.inService,
            priority_add: state.highestPriorityPin, irq_base: state.vectorBase,
            read_reg_select: state.readsInService ? 1 : 0, poll: state.isPolled ? 1 : 0,
            special_mask: state.hasSpecialMask ? 1 : 0, init_state: state.initializationStep,
            auto_eoi: state.hasAutomaticEnd ? 1 : 0, rotate_on_auto_eoi: state.rotatesOnAutomaticEnd ? 1 : 0,
            special_fully_nested_mode: state.isSpecialFullyNested ? 1 : 0, init4: state.expectsFourthWord ? 1 : 0,
            elcr: state.edgeLevelControl, elcr_mask: state.edgeLevelMask)
    }
}

extension PICState {
    init(_ state: kvm_pic_state) {
        self.init()
        lastLevels = state.last_irr
        requests = state.irr
        mask = state.imr
        inService = state.isr
        highestPriorityPin = state.priority_add & 7
        vectorBase = state.irq_base
        readsInService = state.read_reg_select != 0
        isPolled = state.poll != 0
        hasSpecialMask = state.special_mask != 0
        initializationStep = state.init_state
        hasAutomaticEnd = state.auto_eoi != 0
        rotatesOnAutomaticEnd = state.rotate_on_auto_eoi != 0
        isSpecialFullyNested = state.special_fully_nested_mode != 0
        expectsFourthWord = state.init4 != 0
        edgeLevelControl = state.elcr
        edgeLevelMask = state.elcr_mask
    }
}

extension kvm_ioapic_state {
    /// Where an entry of `redirtbl` lies, which Swift does not import.
    static func redirectionOffset(_ index: Int) -> Int { 24 + index * 8 }

    init(_ state: IOAPICState) {
        self.init()
        base_address = state.baseAddress
        ioregsel = state.registerSelect
        id = state.id
        irr = state.requests
        withUnsafeMutableBytes(of: &self) { bytes in
            for (index, entry) in state.redirections.prefix(IOAPIC.pinCount).enumerated() {
                bytes.storeBytes(of: entry, toByteOffset: Self.redirectionOffset(index), as: UInt64.self)
            }
        }
    }
}

extension IOAPICState {
    init(_ state: kvm_ioapic_state) {
        self.init()
        baseAddress = state.base_address
        registerSelect = state.ioregsel
        id = state.id
        requests = state.irr
        withUnsafeBytes(of: state) { bytes in
            for index in 0..<IOAPIC.pinCount {
                redirections[index] = bytes.load(
                    fromByteOffset: kvm_ioapic_state.redirectionOffset(index), as: UInt64.self)
            }
        }
    }
}

extension kvm_pit_state2 {
    init(_ state: Interrupts.PITState) {
        self.init()
        if state.isReplacedByHPET { flags |= UInt32(KVM_PIT_FLAGS_HPET_LEGACY) }
        if state.isSpeakerOn { flags |= UInt32(KVM_PIT_FLAGS_SPEAKER_DATA_ON) }
        channels = (
            kvm_pit_channel_state(state.channels[0]), kvm_pit_channel_state(state.channels[1]),
            kvm_pit_channel_state(state.channels[2])
        )
    }
}

extension Interrupts.PITState {
    init(_ state: kvm_pit_state2) {
        self.init()
        isReplacedByHPET = state.flags & UInt32(KVM_PIT_FLAGS_HPET_LEGACY) != 0
        isSpeakerOn = state.flags & UInt32(KVM_PIT_FLAGS_SPEAKER_DATA_ON) != 0
        channels = [state.channels.0, state.channels.1, state.channels.2].map { PITChannelState($0) }
    }
}

extension kvm_pit_channel_state {
    init(_ state: PITChannelState) {
        self.init(
            count: state.count, latched_count: state.latchedCount, count_latched: state.latchedCountStep,
            status_latched: state.isStatusLatched ? 1 : 0, status: state.latchedStatus, read_state: state.readStep,
            write_state: state.writeStep, write_latch: state.writeLatch, rw_mode: state.accessMode, mode: state.mode,
            bcd: state.isDecimal ? 1 : 0, gate: state.gate ? 1 : 0,
            count_load_time: Int64(bitPattern: state.loadTimeNanoseconds))
    }
}

extension PITChannelState {
    init(_ state: kvm_pit_channel_state) {
        self.init()
        count = state.count
        latchedCount = state.latched_count
        latchedCountStep = state.count_latched
        isStatusLatched = state.status_latched != 0
        latchedStatus = state.status
        readStep = state.read_state
        writeStep = state.write_state
        writeLatch = state.write_latch
        accessMode = state.rw_mode
        mode = state.mode
        isDecimal = state.bcd != 0
        gate = state.gate != 0
        loadTimeNanoseconds = UInt64(bitPattern: state.count_load_time)
    }
}
