import X86

/// Writes host instructions.
///
/// Only forms that translated code needs exist, and unless its documentation says otherwise a method emits an instruction
/// that leaves the flags alone: the guest's flags live in the host's.
///
/// Code is written through the writable mapping of the code cache; addresses are those of the executable one.
/// > Source: Intel SDM volume 2, chapter 2 (instruction format).
package struct Emitter {
    /// Next byte to write.
    package private(set) var cursor: UnsafeMutablePointer<UInt8>
    private let limit: UnsafeMutablePointer<UInt8>
    /// Executable address minus writable address.
    private let executableOffset: Int
    /// Code that did not fit; nothing was written beyond the end.
    package private(set) var hasOverflowed = false

    package init(writable: UnsafeMutableRawPointer, byteCount: Int, executable: UnsafeMutableRawPointer) {
        cursor = writable.assumingMemoryBound(to: UInt8.self)
        limit = cursor + byteCount
        executableOffset = executable - writable
    }

    /// The executable address of the next byte.
    package var address: UInt64 { UInt64(UInt(bitPattern: cursor)) &+ UInt64(bitPattern: Int64(executableOffset)) }

    // MARK: Bytes

    package mutating func byte(_ value: UInt8) {
        if cursor == limit {
            hasOverflowed = true
            return
        }
        cursor.pointee = value
        cursor += 1
    }

    package mutating func bytes(_ values: UInt8...) {
        for value in values { byte(value) }
    }

    package mutating func int32(_ value: Int32) {
        let bits = UInt32(bitPattern: value)
        if limit - cursor < 4 {
            hasOverflowed = true
            cursor = limit
            return
        }
        UnsafeMutableRawPointer(cursor).storeBytes(of: bits, as: UInt32.self)
        cursor += 4
    }

    package mutating func int64(_ value: UInt64) {
        int32(Int32(truncatingIfNeeded: value))
        int32(Int32(truncatingIfNeeded: value >> 32))
    }

    /// Pads with NOPs until `address + distance` is a multiple of `alignment`.
    package mutating func align(_ alignment: UInt64, at distance: UInt64 = 0) {
        while (address &+ distance) & (alignment - 1) != 0 && !hasOverflowed { byte(0x90) }
    }

    // MARK: Operands

    /// A memory operand of the host.
    package struct Memory {
        package var base: HostRegister?
        package var index: HostRegister?
        /// log2 of the scale.
        package var shift: UInt8 = 0
        package var displacement: Int32 = 0
        /// Relative to GS: the vCPU's state and its software TLB.
        package var inState = false
        /// An executable address in the code buffer; nothing else is set then, and no immediate follows.
        package var target: UInt64?

        package init(
            base: HostRegister? = nil, index: HostRegister? = nil, shift: UInt8 = 0, displacement: Int32 = 0,
            inState: Bool = false
        ) {
            self.base = base
            self.index = index
            self.shift = shift
            self.displacement = displacement
            self.inState = inState
        }

        package static func state(_ offset: Int, index: HostRegister? = nil) -> Memory {
            Memory(base: nil, index: index, shift: index == nil ? 0 : 3, displacement: Int32(offset), inState: true)
        }

        package static func code(_ address: UInt64) -> Memory {
            var memory = Memory()
            memory.target = address
            return memory
        }

        package static func at(_ base: HostRegister, _ displacement: Int32 = 0) -> Memory {
            Memory(base: base, displacement: displacement)
        }

        package static func at(_ base: HostRegister, plus index: HostRegister) -> Memory {
            Memory(base: base, index: index)
        }

        /// REX.X and REX.B.
        var rexBits: UInt8 { (index.map { $0.number >> 3 } ?? 0) << 1 | (base.map { $0.number >> 3 } ?? 0) }
    }

    /// ModRM, SIB and displacement for a memory operand.
    package mutating func modRM(reg: UInt8, _ memory: Memory) {
        let reg = (reg & 7) << 3
        if let target = memory.target {
            byte(reg | 5)
            int32(Int32(truncatingIfNeeded: Int64(bitPattern: target &- (address &+ 4))))
            return
        }
        guard let base = memory.base else {
            // No base: SIB with base 101 and mod 00 takes a 32-bit displacement.
            byte(reg | 4)
            byte(memory.shift << 6 | ((memory.index?.number ?? 4) & 7) << 3 | 5)
            int32(memory.displacement)
            return
        }
        let short = Int32(Int8(truncatingIfNeeded: memory.displacement)) == memory.displacement
        let mod: UInt8 = memory.displacement == 0 && base.number & 7 != 5 ? 0 : short ? 0x40 : 0x80
        if let index = memory.index {
            byte(mod | reg | 4)
            byte(memory.shift << 6 | (index.number & 7) << 3 | base.number & 7)
        } else if base.number & 7 == 4 {
            byte(mod | reg | 4)
            byte(0x24)
        } else {
            byte(mod | reg | base.number & 7)
        }
        if mod == 0x40 { byte(UInt8(truncatingIfNeeded: memory.displacement)) }
        if mod == 0x80 { int32(memory.displacement) }
    }

    private mutating func legacy(wide: Bool, _ opcode: UInt8, reg: UInt8, _ memory: Memory, prefix: UInt8 = 0) {
        if memory.inState { byte(0x65) }
        if prefix != 0 { byte(prefix) }
        let rex = (wide ? 8 : 0) | (reg >> 3) << 2 | memory.rexBits
        if rex != 0 { byte(0x40 | rex) }
        byte(opcode)
        modRM(reg: reg, memory)
    }

    // MARK: Moves

    package mutating func load(_ target: HostRegister, _ memory: Memory, wide: Bool = true) {
        legacy(wide: wide, 0x8B, reg: target.number, memory)
    }

    package mutating func store(_ source: HostRegister, _ memory: Memory, wide: Bool = true) {
        legacy(wide: wide, 0x89, reg: source.number, memory)
    }

    package mutating func store16(_ source: HostRegister, _ memory: Memory) {
        legacy(wide: false, 0x89, reg: source.number, memory, prefix: 0x66)
    }

    /// Stores a sign-extended 32-bit constant.
    package mutating func store(_ value: Int32, _ memory: Memory, wide: Bool) {
        legacy(wide: wide, 0xC7, reg: 0, memory)
        int32(value)
    }

    package mutating func move(_ target: HostRegister, _ source: HostRegister, wide: Bool = true) {
        let rex = (wide ? 8 : 0) | (source.number >> 3) << 2 | target.number >> 3
        if rex != 0 { byte(0x40 | rex) }
        byte(0x89)
        byte(0xC0 | (source.number & 7) << 3 | target.number & 7)
    }

    /// Loads a constant in the shortest form.
    package mutating func move(_ target: HostRegister, constant: UInt64) {
        if constant <= UInt64(UInt32.max) {
            if target.number >= 8 { byte(0x41) }
            byte(0xB8 | target.number & 7)
            int32(Int32(truncatingIfNeeded: constant))
        } else if Int64(Int32(truncatingIfNeeded: constant)) == Int64(bitPattern: constant) {
            byte(0x48 | target.number >> 3)
            byte(0xC7)
            byte(0xC0 | target.number & 7)
            int32(Int32(truncatingIfNeeded: constant))
        } else {
            byte(0x48 | target.number >> 3)
            byte(0xB8 | target.number & 7)
            int64(constant)
        }
    }

    /// `movzx target, source16`.
    package mutating func zeroExtend16(_ target: HostRegister, _ source: HostRegister) {
        let rex = (target.number >> 3) << 2 | source.number >> 3
        if rex != 0 { byte(0x40 | rex) }
        bytes(0x0F, 0xB7, 0xC0 | (target.number & 7) << 3 | source.number & 7)
    }

    package mutating func lea(_ target: HostRegister, _ memory: Memory, wide: Bool = true) {
        legacy(wide: wide, 0x8D, reg: target.number, memory)
    }

    /// Gathers the bits of `source` that `mask` selects.
    package mutating func pext(_ target: HostRegister, _ source: HostRegister, mask: Memory) {
        bitGather(target, source, mask, prefix: 2)
    }

    /// Scatters the low bits of `source` to where `mask` is set.
    package mutating func pdep(_ target: HostRegister, _ source: HostRegister, mask: Memory) {
        bitGather(target, source, mask, prefix: 3)
    }

    private mutating func bitGather(
        _ target: HostRegister, _ source: HostRegister, _ mask: Memory, prefix: UInt8
    ) {
        if mask.inState { byte(0x65) }
        let rexBits = mask.rexBits
        byte(0xC4)
        byte((~(target.number >> 3) & 1) << 7 | (~(rexBits >> 1) & 1) << 6 | (~rexBits & 1) << 5 | 2)
        byte(0x80 | (~source.number & 15) << 3 | prefix)
        byte(0xF5)
        modRM(reg: target.number, mask)
    }

    /// Exchanges the halves of a 64-bit register.
    package mutating func rotateRight32(_ target: HostRegister, _ source: HostRegister) {
        byte(0xC4)
        byte((~(target.number >> 3) & 1) << 7 | 0x40 | (~(source.number >> 3) & 1) << 5 | 3)
        bytes(0xFB, 0xF0, 0xC0 | (target.number & 7) << 3 | source.number & 7, 32)
    }

    // MARK: Jumps

    /// A place whose 8- or 32-bit displacement is filled in later.
    package struct Fixup { let place: UnsafeMutablePointer<UInt8> }

    /// `jrcxz` forward.
    package mutating func jumpIfScratchZero() -> Fixup {
        bytes(0xE3, 0)
        return Fixup(place: cursor - 1)
    }

    /// Lets a short jump land here.
    package mutating func bindShort(_ fixup: Fixup) {
        if hasOverflowed { return }
        let distance = cursor - (fixup.place + 1)
        precondition(distance <= 127, "short jump out of range")
        fixup.place.pointee = UInt8(distance)
    }

    /// `jmp rel32` forward.
    package mutating func jump() -> Fixup {
        byte(0xE9)
        int32(0)
        return Fixup(place: cursor - 4)
    }

    /// `jcc rel32` forward; `condition` is the low nibble of the opcode.
    package mutating func jump(condition: UInt8) -> Fixup {
        byte(0x0F)
        byte(0x80 | condition & 15)
        int32(0)
        return Fixup(place: cursor - 4)
    }

    /// Lets a near jump land here.
    package mutating func bind(_ fixup: Fixup) {
        if hasOverflowed { return }
        let distance = Int32(cursor - (fixup.place + 4))
        UnsafeMutableRawPointer(fixup.place).storeBytes(of: distance, as: Int32.self)
    }

    /// `jmp rel32` to a known executable address.
    package mutating func jump(to target: UInt64) {
        byte(0xE9)
        int32(Int32(truncatingIfNeeded: Int64(bitPattern: target &- (address &+ 4))))
    }

    /// `call rel32` to a known executable address.
    package mutating func call(to target: UInt64) {
        byte(0xE8)
        int32(Int32(truncatingIfNeeded: Int64(bitPattern: target &- (address &+ 4))))
    }

    /// Pushes a sign-extended 32-bit constant on the host's stack.
    package mutating func push(_ value: Int32) {
        byte(0x68)
        int32(value)
    }

    package mutating func jump(through memory: Memory) { legacy(wide: false, 0xFF, reg: 4, memory) }
    package mutating func call(through memory: Memory) { legacy(wide: false, 0xFF, reg: 2, memory) }

    package mutating func ret() { byte(0xC3) }

    // MARK: Only for trampolines

    package mutating func push(_ register: HostRegister) {
        if register.number >= 8 { byte(0x41) }
        byte(0x50 | register.number & 7)
    }

    package mutating func pop(_ register: HostRegister) {
        if register.number >= 8 { byte(0x41) }
        byte(0x58 | register.number & 7)
    }

    package mutating func loadVector(_ index: UInt8, _ memory: Memory) { vector(0x10, index, memory) }
    package mutating func storeVector(_ index: UInt8, _ memory: Memory) { vector(0x11, index, memory) }

    /// `vmovups ymm`.
    private mutating func vector(_ opcode: UInt8, _ index: UInt8, _ memory: Memory) {
        if memory.inState { byte(0x65) }
        let rexBits = memory.rexBits
        byte(0xC4)
        byte((~(index >> 3) & 1) << 7 | (~(rexBits >> 1) & 1) << 6 | (~rexBits & 1) << 5 | 1)
        byte(0x7C)
        byte(opcode)
        modRM(reg: index, memory)
    }

    /// Saves the six arithmetic flags; clobbers rax.
    package mutating func saveFlags() {
        byte(0x9F)  // lahf
        bytes(0x0F, 0x90, 0xC0)  // seto al
        store16(.rax, .state(CPUState.arithmeticFlagsOffset))
    }

    /// Loads the six arithmetic flags; clobbers rax.
    package mutating func loadFlags() {
        load(.rax, .state(CPUState.arithmeticFlagsOffset), wide: false)
        bytes(0x04, 0x7F)  // add al, 127: overflows exactly if al is 1
        byte(0x9E)  // sahf
    }
}
