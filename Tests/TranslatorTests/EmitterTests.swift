import CZydis
import Testing
import Translator

/// What the emitter writes, read back by the decoder, for all registers and displacement sizes.
@Suite struct EmitterTests {
    private static let registers = (UInt8(0)..<16).map { HostRegister(number: $0) }
    private static let displacements: [Int32] = [0, 1, -1, 127, -128, 128, -129, 4095, .max, .min]

    /// Memory operands of every shape.
    private static let memories: [Emitter.Memory] = {
        var result: [Emitter.Memory] = []
        for displacement in displacements {
            result.append(Emitter.Memory(displacement: displacement))
            for inState in [false, true] {
                for index in registers where index != .rsp {
                    for shift in UInt8(0)...3 {
                        result.append(
                            Emitter.Memory(index: index, shift: shift, displacement: displacement, inState: inState))
                    }
                }
            }
            for base in registers {
                result.append(Emitter.Memory(base: base, displacement: displacement))
                for index in registers where index != .rsp {
                    let shift = (index.number ^ base.number) & 3
                    result.append(Emitter.Memory(base: base, index: index, shift: shift, displacement: displacement))
                }
            }
        }
        return result
    }()

    /// Instructions emitted into a buffer and decoded again.
    private final class Buffer {
        private let storage = UnsafeMutableRawPointer.allocate(byteCount: 256, alignment: 16)
        let disassembler = Disassembler(isNarrow: false)

        deinit { storage.deallocate() }

        /// Emits, and decodes exactly the one instruction that was emitted.
        func emit(_ body: (inout Emitter) -> Void) -> [ZydisDecodedOperand] {
            let all = emitAll(body)
            #expect(all.count == 1, "one instruction")
            return all.first?.operands ?? []
        }

        /// Emits, and decodes everything that was emitted.
        func emitAll(
            _ body: (inout Emitter) -> Void
        ) -> [(mnemonic: ZydisMnemonic, operands: [ZydisDecodedOperand], offset: Int)] {
            var emitter = Emitter(writable: storage, byteCount: 256, executable: storage + 0x1000)
            body(&emitter)
            let count = UnsafeMutableRawPointer(emitter.cursor) - storage
            var result: [(mnemonic: ZydisMnemonic, operands: [ZydisDecodedOperand], offset: Int)] = []
            var offset = 0
            while offset < count {
                guard disassembler.decode(storage + offset, byteCount: count - offset) else {
                    Issue.record("no instruction at \(offset)")
                    return result
                }
                let instruction = disassembler.instruction.pointee
                let operands = (0..<Int(instruction.operand_count_visible)).map { disassembler.operands[$0] }
                result.append((instruction.mnemonic, operands, offset))
                offset += Int(instruction.length)
            }
            return result
        }

        var mnemonic: ZydisMnemonic { disassembler.mnemonic }
    }

    private func general(_ register: HostRegister, bits: Int) -> ZydisRegister {
        let first =
            switch bits {
            case 64: ZYDIS_REGISTER_RAX
            case 32: ZYDIS_REGISTER_EAX
            default: ZYDIS_REGISTER_AX
            }
        return ZydisRegister(rawValue: first.rawValue + UInt32(register.number))
    }

    private func isRegister(_ operand: ZydisDecodedOperand, _ register: HostRegister, bits: Int) -> Bool {
        operand.type == ZYDIS_OPERAND_TYPE_REGISTER && operand.reg.value == general(register, bits: bits)
    }

    private func isMemory(_ operand: ZydisDecodedOperand, _ memory: Emitter.Memory, bits: Int) -> Bool {
        guard operand.type == ZYDIS_OPERAND_TYPE_MEMORY, operand.size == bits || bits == 0 else { return false }
        let m = operand.mem
        let base = memory.base.map { general($0, bits: 64) } ?? ZYDIS_REGISTER_NONE
        let index = memory.index.map { general($0, bits: 64) } ?? ZYDIS_REGISTER_NONE
        let stackBased = memory.base == .rsp || memory.base == .rbp
        let segment =
            memory.inState ? ZYDIS_REGISTER_GS : stackBased ? ZYDIS_REGISTER_SS : ZYDIS_REGISTER_DS
        return m.base == base && m.index == index && (memory.index == nil || m.scale == 1 << memory.shift)
            && (m.disp.has_displacement != 0 ? m.disp.value : 0) == Int64(memory.displacement) && m.segment == segment
    }

    /// Checks `body` with every memory operand, and registers in turn.
    private func checkMemory(
        _ mnemonic: ZydisMnemonic, _ form: (inout Emitter, HostRegister, Emitter.Memory) -> Void,
        _ isRight: ([ZydisDecodedOperand], HostRegister, Emitter.Memory) -> Bool
    ) {
        let buffer = Buffer()
        var wrong = 0
        for (number, memory) in Self.memories.enumerated() {
            for turn in 0..<2 {
                let register = Self.registers[(number + turn * 7) & 15]
                let operands = buffer.emit { form(&$0, register, memory) }
                if buffer.mnemonic != mnemonic || !isRight(operands, register, memory) {
                    wrong += 1
                    if wrong < 4 { Issue.record("\(register) \(memory): \(buffer.disassembler.text(at: 0))") }
                }
            }
        }
        // Every register with one operand.
        let memory = Emitter.Memory.at(.r13, plus: .r12)
        for register in Self.registers {
            let operands = buffer.emit { form(&$0, register, memory) }
            #expect(buffer.mnemonic == mnemonic && isRight(operands, register, memory))
        }
    }

    @Test(arguments: [false, true]) func loadsAndStores(wide: Bool) {
        let bits = wide ? 64 : 32
        checkMemory(ZYDIS_MNEMONIC_MOV) {
            $0.load($1, $2, wide: wide)
        } _: {
            isRegister($0[0], $1, bits: bits) && isMemory($0[1], $2, bits: bits)
        }
        checkMemory(ZYDIS_MNEMONIC_MOV) {
            $0.store($1, $2, wide: wide)
        } _: {
            isMemory($0[0], $2, bits: bits) && isRegister($0[1], $1, bits: bits)
        }
        checkMemory(ZYDIS_MNEMONIC_LEA) {
            $0.lea($1, $2, wide: wide)
        } _: {
            // LEA ignores segments.
            var memory = $2
            memory.inState = false
            return isRegister($0[0], $1, bits: bits)
                && (isMemory($0[1], memory, bits: 0) || isMemory($0[1], $2, bits: 0))
        }
        for value in [Int32(0), -1, .max, .min] {
            checkMemory(ZYDIS_MNEMONIC_MOV) { emitter, _, memory in
                emitter.store(value, memory, wide: wide)
            } _: { operands, _, memory in
                isMemory(operands[0], memory, bits: bits)
                    && (wide
                        ? operands[1].imm.value.s == Int64(value)
                        : UInt32(truncatingIfNeeded: operands[1].imm.value.u) == UInt32(bitPattern: value))
            }
        }
    }

    @Test func narrowStores() {
        checkMemory(ZYDIS_MNEMONIC_MOV) {
            $0.store16($1, $2)
        } _: {
            isMemory($0[0], $2, bits: 16) && isRegister($0[1], $1, bits: 16)
        }
    }

    @Test func bitGathering() {
        for source in Self.registers {
            checkMemory(ZYDIS_MNEMONIC_PEXT) {
                $0.pext($1, source, mask: $2)
            } _: {
                isRegister($0[0], $1, bits: 64) && isRegister($0[1], source, bits: 64) && isMemory($0[2], $2, bits: 64)
            }
            checkMemory(ZYDIS_MNEMONIC_PDEP) {
                $0.pdep($1, source, mask: $2)
            } _: {
                isRegister($0[0], $1, bits: 64) && isRegister($0[1], source, bits: 64) && isMemory($0[2], $2, bits: 64)
            }
        }
    }

    @Test func indirectJumpsAndCalls() {
        checkMemory(ZYDIS_MNEMONIC_JMP) { emitter, _, memory in
            emitter.jump(through: memory)
        } _: { operands, _, memory in
            isMemory(operands[0], memory, bits: 64)
        }
        checkMemory(ZYDIS_MNEMONIC_CALL) { emitter, _, memory in
            emitter.call(through: memory)
        } _: { operands, _, memory in
            isMemory(operands[0], memory, bits: 64)
        }
    }

    @Test func vectorLoadsAndStores() {
        func isVector(_ operand: ZydisDecodedOperand, _ register: HostRegister) -> Bool {
            operand.reg.value.rawValue == ZYDIS_REGISTER_YMM0.rawValue + UInt32(register.number)
        }
        checkMemory(ZYDIS_MNEMONIC_VMOVUPS) {
            $0.loadVector($1.number, $2)
        } _: {
            isVector($0[0], $1) && isMemory($0[1], $2, bits: 256)
        }
        checkMemory(ZYDIS_MNEMONIC_VMOVUPS) {
            $0.storeVector($1.number, $2)
        } _: {
            isMemory($0[0], $2, bits: 256) && isVector($0[1], $1)
        }
    }

    @Test func registerMoves() {
        let buffer = Buffer()
        for target in Self.registers {
            for source in Self.registers {
                for bits in [32, 64] {
                    let operands = buffer.emit { $0.move(target, source, wide: bits == 64) }
                    #expect(buffer.mnemonic == ZYDIS_MNEMONIC_MOV)
                    #expect(isRegister(operands[0], target, bits: bits) && isRegister(operands[1], source, bits: bits))
                }
                let operands = buffer.emit { $0.zeroExtend16(target, source) }
                #expect(buffer.mnemonic == ZYDIS_MNEMONIC_MOVZX)
                #expect(isRegister(operands[0], target, bits: 32) && isRegister(operands[1], source, bits: 16))
            }
            let push = buffer.emit { $0.push(target) }
            #expect(buffer.mnemonic == ZYDIS_MNEMONIC_PUSH && isRegister(push[0], target, bits: 64))
            let pop = buffer.emit { $0.pop(target) }
            #expect(buffer.mnemonic == ZYDIS_MNEMONIC_POP && isRegister(pop[0], target, bits: 64))
        }
    }

    @Test func constants() {
        let buffer = Buffer()
        let values: [UInt64] = [
            0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x1_0000_0000, 0x7FFF_FFFF_FFFF_FFFF, 0x8000_0000_0000_0000,
            0xFFFF_FFFF_7FFF_FFFF, 0xFFFF_FFFF_8000_0000, ~0
        ]
        for target in Self.registers {
            for value in values {
                let operands = buffer.emit { $0.move(target, constant: value) }
                #expect(buffer.mnemonic == ZYDIS_MNEMONIC_MOV)
                let isWide = isRegister(operands[0], target, bits: 64)
                #expect(isWide || isRegister(operands[0], target, bits: 32) && value <= UInt64(UInt32.max))
                let immediate = operands[1].imm.value.u
                #expect(isWide ? immediate == value : immediate & 0xFFFF_FFFF == value)
            }
        }
    }

    @Test func jumps() {
        let buffer = Buffer()
        // Forward over three bytes.
        let short = buffer.emitAll { emitter in
            let fixup = emitter.jumpIfScratchZero()
            emitter.bytes(0x90, 0x90, 0x90)
            emitter.bindShort(fixup)
        }
        #expect(short[0].mnemonic == ZYDIS_MNEMONIC_JRCXZ && short[0].operands[0].imm.value.s == 3)
        let near = buffer.emitAll { emitter in
            let fixup = emitter.jump()
            emitter.bytes(0x90, 0x90, 0x90)
            emitter.bind(fixup)
        }
        #expect(near[0].mnemonic == ZYDIS_MNEMONIC_JMP && near[0].operands[0].imm.value.s == 3)
        let mnemonics = [
            ZYDIS_MNEMONIC_JO, ZYDIS_MNEMONIC_JNO, ZYDIS_MNEMONIC_JB, ZYDIS_MNEMONIC_JNB, ZYDIS_MNEMONIC_JZ,
            ZYDIS_MNEMONIC_JNZ, ZYDIS_MNEMONIC_JBE, ZYDIS_MNEMONIC_JNBE, ZYDIS_MNEMONIC_JS, ZYDIS_MNEMONIC_JNS,
            ZYDIS_MNEMONIC_JP, ZYDIS_MNEMONIC_JNP, ZYDIS_MNEMONIC_JL, ZYDIS_MNEMONIC_JNL, ZYDIS_MNEMONIC_JLE,
            ZYDIS_MNEMONIC_JNLE
        ]
        for (condition, mnemonic) in mnemonics.enumerated() {
            let conditional = buffer.emitAll { emitter in
                let fixup = emitter.jump(condition: UInt8(condition))
                emitter.byte(0x90)
                emitter.bind(fixup)
            }
            #expect(conditional[0].mnemonic == mnemonic && conditional[0].operands[0].imm.value.s == 1)
        }
        // To an executable address: relative to where the code is executed.
        var target: UInt64 = 0
        let absolute = buffer.emitAll { emitter in
            target = emitter.address &- 0x5432
            emitter.jump(to: target)
        }
        #expect(absolute[0].mnemonic == ZYDIS_MNEMONIC_JMP)
        #expect(absolute[0].operands[0].imm.value.s == -0x5432 - 5)
        let ret = buffer.emitAll { $0.ret() }
        #expect(ret[0].mnemonic == ZYDIS_MNEMONIC_RET)
    }

    @Test func flagsRoutines() {
        let buffer = Buffer()
        let save = buffer.emitAll { $0.saveFlags() }
        #expect(save.map(\.mnemonic) == [ZYDIS_MNEMONIC_LAHF, ZYDIS_MNEMONIC_SETO, ZYDIS_MNEMONIC_MOV])
        let load = buffer.emitAll { $0.loadFlags() }
        #expect(load.map(\.mnemonic) == [ZYDIS_MNEMONIC_MOV, ZYDIS_MNEMONIC_ADD, ZYDIS_MNEMONIC_SAHF])
    }

    @Test func overflowWritesNothingBeyondTheEnd() {
        let storage = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 16)
        defer { storage.deallocate() }
        for room in 0..<24 {
            storage.initializeMemory(as: UInt8.self, repeating: 0xEE, count: 64)
            var emitter = Emitter(writable: storage, byteCount: room, executable: storage)
            for _ in 0..<8 { emitter.move(.r9, constant: 0x1234_5678_9ABC_DEF0) }
            #expect(emitter.hasOverflowed)
            for i in room..<64 { #expect(storage.load(fromByteOffset: i, as: UInt8.self) == 0xEE) }
        }
    }

    @Test func alignment() {
        let storage = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 64)
        defer { storage.deallocate() }
        for start in 0..<16 {
            for distance in UInt64(0)..<4 {
                var emitter = Emitter(writable: storage, byteCount: 64, executable: storage)
                for _ in 0..<start { emitter.byte(0x90) }
                emitter.align(4, at: distance)
                #expect((emitter.address &+ distance) & 3 == 0)
                #expect(UnsafeMutableRawPointer(emitter.cursor) - storage < start + 4)
            }
        }
    }
}
