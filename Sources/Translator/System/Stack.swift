import X86

// The stack. Its width follows SS.B (64 bits in 64-bit mode), the width of a slot follows the instruction.

extension Processor {
    /// The bits of RSP that form stack addresses.
    @inlinable public var stackMask: UInt64 {
        if system.is64BitMode { return ~0 }
        return system.ss.isDefault32 ? 0xFFFF_FFFF : 0xFFFF
    }

    /// RSP reduced to the stack width. Writing keeps bits 63–16 of RSP for a 16-bit stack and clears bits 63–32 for a
    /// 32-bit one.
    @inlinable public var stackPointer: UInt64 {
        get { state[.rsp] & stackMask }
        set { state[.rsp] = StackGeometry(mask: stackMask, base: 0).replacing(state[.rsp], with: newValue) }
    }

    /// The stack of the current SS.
    @inlinable public var currentStack: StackGeometry {
        StackGeometry(mask: stackMask, base: system.is64BitMode ? 0 : system.ss.base)
    }

    /// Pushes the low `byteCount` (2, 4 or 8) bytes of `value`. On a fault RSP is unchanged.
    public func push(_ value: UInt64, byteCount: Int) throws(GuestFault) {
        let stack = currentStack
        let pointer = (state[.rsp] &- UInt64(byteCount)) & stack.mask
        try writeData(stack.linearAddress(pointer), value, byteCount: byteCount, segment: .ss)
        state[.rsp] = stack.replacing(state[.rsp], with: pointer)
    }

    /// Pops `byteCount` (2, 4 or 8) bytes. On a fault RSP is unchanged.
    public func pop(byteCount: Int) throws(GuestFault) -> UInt64 {
        let stack = currentStack
        let value = try readData(stack.linearAddress(state[.rsp]), byteCount: byteCount, segment: .ss)
        state[.rsp] = stack.replacing(state[.rsp], with: state[.rsp] &+ UInt64(byteCount))
        return value
    }

    /// Reads the slot `offset` bytes above the top of the current stack.
    func peek(_ offset: Int, byteCount: Int) throws(GuestFault) -> UInt64 {
        let stack = currentStack
        return try readData(
            stack.linearAddress(state[.rsp] &+ UInt64(offset)), byteCount: byteCount, segment: .ss)
    }
}

/// Where a stack lies and how wide its pointer is.
public struct StackGeometry: Equatable, Sendable {
    /// The bits of the pointer that form addresses: 16, 32 or all 64.
    public var mask: UInt64
    public var base: UInt64

    @inlinable public init(mask: UInt64, base: UInt64) {
        self.mask = mask
        self.base = base
    }

    /// The stack of `segment` outside 64-bit mode.
    @inlinable public init(legacy segment: Segment) {
        self.init(mask: segment.isDefault32 ? 0xFFFF_FFFF : 0xFFFF, base: segment.base)
    }

    /// The flat stack of 64-bit mode.
    @inlinable public static var flat64: Self { Self(mask: ~0, base: 0) }

    @inlinable public func linearAddress(_ pointer: UInt64) -> UInt64 {
        let address = base &+ (pointer & mask)
        return mask == ~0 ? address : address & 0xFFFF_FFFF
    }

    /// What RSP holds after its stack-width part became `pointer`.
    @inlinable public func replacing(_ rsp: UInt64, with pointer: UInt64) -> UInt64 {
        mask == 0xFFFF ? rsp & ~0xFFFF | pointer & 0xFFFF : pointer & mask
    }
}

/// Values to be pushed together: nothing is written before all of it can be.
///
/// Holds up to 48 slots: a call gate copies 31 parameters and adds four.
struct StackFrame {
    private(set) var values = InlineArray<48, UInt64>(repeating: 0)
    private(set) var count = 0
    /// The size of a slot: 2, 4 or 8 bytes.
    let slotByteCount: Int

    init(slotByteCount: Int) { self.slotByteCount = slotByteCount }

    /// Adds a slot below those already added.
    mutating func push(_ value: UInt64) {
        values[count] = value
        count += 1
    }

    var byteCount: Int { count * slotByteCount }
}

extension Processor {
    /// Pushes `frame` on `stack`, whose pointer is `pointer`, and returns the new pointer (at stack width). No register
    /// changes, and on a fault no memory either.
    ///
    /// A non-canonical address is #SS with error code `selector`.
    func write(
        _ frame: StackFrame, to stack: StackGeometry, at pointer: UInt64, _ privilege: AccessPrivilege,
        selector: UInt16 = 0
    ) throws(GuestFault) -> UInt64 {
        let slot = UInt64(frame.slotByteCount)
        let top = (pointer &- UInt64(frame.byteCount)) & stack.mask
        do throws(GuestFault) {
            if top &+ UInt64(frame.byteCount) == pointer & stack.mask {
                do throws(GuestFault) {
                    try probeWrite(stack.linearAddress(top), byteCount: frame.byteCount, privilege)
                } catch {
                    // The fault is that of the first slot that cannot be pushed.
                    try probe(frame, on: stack, at: pointer, privilege)
                    throw error
                }
            } else {
                try probe(frame, on: stack, at: pointer, privilege)
            }
            for i in 0..<frame.count {
                let address = stack.linearAddress(pointer &- UInt64(i + 1) &* slot)
                try writeMemory(address, frame.values[i], byteCount: frame.slotByteCount, privilege)
            }
        } catch {
            guard case .exception(let exception) = error, exception.vector == 13 else { throw error }
            throw .exception(.stack(UInt32(selector)))
        }
        return top
    }

    /// Checks the slots of `frame` in the order in which they are pushed.
    private func probe(
        _ frame: StackFrame, on stack: StackGeometry, at pointer: UInt64, _ privilege: AccessPrivilege
    ) throws(GuestFault) {
        for i in 0..<frame.count {
            let address = stack.linearAddress(pointer &- UInt64((i + 1) * frame.slotByteCount))
            try probeWrite(address, byteCount: frame.slotByteCount, privilege)
        }
    }
}
