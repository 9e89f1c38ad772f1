import X86

// Descriptors in guest memory: found by selector, read, and marked as accessed or busy. All accesses are implicit
// supervisor accesses.

extension Processor {
    /// An address of a system structure: outside long mode linear addresses have 32 bits.
    func systemAddress(_ address: UInt64) -> UInt64 {
        system.isLongModeActive ? address : address & 0xFFFF_FFFF
    }

    /// The linear address of the descriptor that `selector` names; nil if its table is too short for `byteCount` bytes.
    func descriptorAddress(_ selector: UInt16, byteCount: UInt32 = 8) -> UInt64? {
        let offset = UInt32(selector & ~7)
        if Selector.isLocal(selector) {
            guard !system.ldtr.isUnusable, offset + byteCount - 1 <= system.ldtr.limit else { return nil }
            return systemAddress(system.ldtr.base &+ UInt64(offset))
        }
        guard offset + byteCount - 1 <= UInt32(system.gdtr.limit) else { return nil }
        return systemAddress(system.gdtr.base &+ UInt64(offset))
    }

    /// The descriptor that `selector` names; nil for a null selector or one beyond its table.
    func descriptor(_ selector: UInt16) throws(GuestFault) -> SegmentDescriptor? {
        guard !Selector.isNull(selector), let address = descriptorAddress(selector) else { return nil }
        return SegmentDescriptor(try read(address, as: UInt64.self, .system))
    }

    /// The second half of the system descriptor that `selector` names; in long mode only. nil beyond the table.
    func upperHalf(_ selector: UInt16) throws(GuestFault) -> UInt64? {
        guard let address = descriptorAddress(selector, byteCount: 16) else { return nil }
        return try read(systemAddress(address &+ 8), as: UInt64.self, .system)
    }

    /// Sets the accessed bit of the descriptor that `selector` names, if it is not set yet.
    func markAccessed(_ selector: UInt16, _ descriptor: SegmentDescriptor) throws(GuestFault) {
        if descriptor.isAccessed { return }
        try changeType(selector, set: 1, clear: 0)
    }

    /// Makes the task state that `selector` names busy or available.
    func setBusy(_ selector: UInt16, _ isBusy: Bool) throws(GuestFault) {
        try changeType(selector, set: isBusy ? 2 : 0, clear: isBusy ? 0 : 2)
    }

    /// Changes bits of a descriptor's type atomically, because other processors share the table.
    private func changeType(_ selector: UInt16, set: UInt8, clear: UInt8) throws(GuestFault) {
        guard let address = descriptorAddress(selector) else { return }
        let typeAddress = systemAddress(address &+ 5)
        if let host = try hostPointer(typeAddress, forWriting: true, .system) {
            guard host.exchangeGuestByte({ ($0 | set) & ~clear }) != nil else { throw .hostMemory(typeAddress) }
            return
        }
        // Translated code or a device shares the page: such a write needs help and cannot be atomic.
        let old = try read(typeAddress, as: UInt8.self, .system)
        try write(typeAddress, (old | set) & ~clear, .system)
    }
}

// MARK: Segment registers

extension Processor {
    /// Gives segment register `register` its selector and hidden part, and translated code the base.
    ///
    /// Does not call ``modeDidChange()``: callers do once all registers have their values. When CS enters or leaves 64-bit
    /// mode the bases of all segments are renewed.
    public func setSegment(_ register: SegmentRegister, _ segment: Segment) {
        let was64 = system.is64BitMode
        system[register] = segment
        if register == .cs && system.is64BitMode != was64 {
            mirrorSegmentBases()
        } else {
            mirrorSegmentBase(register)
        }
    }

    /// Renews the bases that translated code adds. In 64-bit mode those of ES, CS, SS and DS count as zero.
    public func mirrorSegmentBases() {
        for register in SegmentRegister.allCases { mirrorSegmentBase(register) }
    }

    private func mirrorSegmentBase(_ register: SegmentRegister) {
        let isFlat = system.is64BitMode && register != .fs && register != .gs
        state.setSegmentBase(register, isFlat ? 0 : system[register].base)
    }
}
