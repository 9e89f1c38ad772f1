import CZydis
import X86

// Loads of the data and stack segment registers.

extension Processor {
    /// Loads ES, SS, DS, FS or GS with `selector`, with all checks of the current mode.
    ///
    /// > Source: APM volume 2, section 4.5 and 4.11; Intel SDM volume 2, MOV and POP.
    public func loadSegment(_ register: SegmentRegister, selector: UInt16) throws(GuestFault) {
        precondition(register != .cs, "CS is loaded by far transfers only")
        if !usesDescriptors {
            setSegment(register, plainSegment(register, selector: selector))
        } else if Selector.isNull(selector) {
            // A stack without a segment is possible in 64-bit mode below CPL 3 only.
            if register == .ss && (!isCode64 || cpl == 3) { throw .generalProtection() }
            setSegment(register, .null(selector: selector, privilegeLevel: register == .ss ? cpl : 0))
        } else {
            let descriptor = try checkedDescriptor(register, selector: selector)
            try markAccessed(selector, descriptor)
            setSegment(register, descriptor.segment(selector: selector))
        }
        modeDidChange()
    }

    /// A segment register in real or virtual-8086 mode. Real mode keeps limit and attributes, on which "unreal" mode relies.
    func plainSegment(_ register: SegmentRegister, selector: UInt16) -> Segment {
        if isVirtual8086 { return .virtual8086(selector: selector) }
        var segment = system[register]
        if segment.isUnusable { segment = .realMode(selector: selector, isCode: register == .cs) }
        segment.selector = selector
        segment.base = UInt64(selector) << 4
        return segment
    }

    /// The descriptor for a load of SS or a data segment register in protected mode.
    private func checkedDescriptor(
        _ register: SegmentRegister, selector: UInt16
    ) throws(GuestFault) -> SegmentDescriptor {
        let code = Selector.index(selector)
        let rpl = Selector.privilegeLevel(selector)
        guard let descriptor = try descriptor(selector) else { throw .generalProtection(code) }
        let dpl = descriptor.privilegeLevel
        if register == .ss {
            guard descriptor.isWritableData, rpl == cpl, dpl == cpl else { throw .generalProtection(code) }
            guard descriptor.isPresent else { throw .exception(.stack(code)) }
        } else {
            guard descriptor.isReadable else { throw .generalProtection(code) }
            if !descriptor.isConformingCode && (dpl < cpl || dpl < rpl) { throw .generalProtection(code) }
            guard descriptor.isPresent else { throw .exception(.segmentNotPresent(code)) }
        }
        return descriptor
    }

    /// After a return to an outer privilege level: data segment registers that it must not use become null.
    func dropPrivilegedSegments() {
        for register in [SegmentRegister.es, .fs, .gs, .ds] {
            let segment = system[register]
            // A null FS or GS may have a base of its own in long mode: it stays.
            if segment.isUnusable || Selector.isNull(segment.selector) { continue }
            if !segment.isConformingCode && segment.privilegeLevel < cpl {
                setSegment(register, .null(selector: 0))
            }
        }
    }
}

// MARK: Instructions

extension Processor {
    /// MOV to a segment register.
    func executeMoveToSegment(_ i: DecodedInstruction) throws(GuestFault) {
        let register = Self.segmentRegister(i.operand(0).register)
        if register == .cs { throw .invalidOpcode }
        let selector = UInt16(truncatingIfNeeded: try readOperand(i.operand(1), of: i))
        let next = nextRIP(i)
        try loadSegment(register, selector: selector)
        state.rip = next
        if register == .ss { system.interruptShadow = true }
    }

    /// MOV from a segment register: zero-extended to a register, 16 bits to memory.
    func executeMoveFromSegment(_ i: DecodedInstruction) throws(GuestFault) {
        try writeOperand(i.operand(0), of: i, readRegister(i.operand(1).register))
        advance(i)
    }

    func executePushSegment(_ i: DecodedInstruction) throws(GuestFault) {
        try push(readRegister(i.operand(0).register), byteCount: Int(i.operandWidth) / 8)
        advance(i)
    }

    func executePopSegment(_ i: DecodedInstruction) throws(GuestFault) {
        let register = Self.segmentRegister(i.operand(0).register)
        let byteCount = Int(i.operandWidth) / 8
        // The pointer moves as the old SS says.
        let stack = currentStack
        let selector = UInt16(truncatingIfNeeded: try peek(0, byteCount: byteCount))
        let next = nextRIP(i)
        try loadSegment(register, selector: selector)
        state[.rsp] = stack.replacing(state[.rsp], with: state[.rsp] &+ UInt64(byteCount))
        state.rip = next
        if register == .ss { system.interruptShadow = true }
    }

    /// LDS, LES, LFS, LGS and LSS: offset first in memory, then the selector.
    func executeLoadFarPointer(_ i: DecodedInstruction, _ register: SegmentRegister) throws(GuestFault) {
        let (offset, selector) = try readFarPointer(i.operand(1), of: i)
        let next = nextRIP(i)
        try loadSegment(register, selector: selector)
        writeRegister(i.operand(0).register, offset)
        state.rip = next
    }

    /// A far pointer in memory, or in the instruction itself.
    func readFarPointer(
        _ operand: DecodedInstruction.Operand, of i: DecodedInstruction
    ) throws(GuestFault) -> (offset: UInt64, selector: UInt16) {
        if operand.kind == .pointer { return (operand.immediate, operand.selector) }
        let byteCount = Int(i.operandWidth) / 8
        let segment = operand.memory.segment
        let linear = linearAddress(operand.memory, of: i)
        let offset = try readData(linear, byteCount: byteCount, segment: segment)
        let second = linear &+ UInt64(byteCount)
        let selector = try readData(isCode64 ? second : second & 0xFFFF_FFFF, byteCount: 2, segment: segment)
        return (offset, UInt16(truncatingIfNeeded: selector))
    }
}
