import CZydis
import X86

/// Copying an instruction with its registers renamed and its memory operand redirected.
///
/// Guest registers whose host register the instruction cannot name (because they live in memory, because AH…BH forbid a
/// REX prefix, or because the instruction implies CL or RCX) travel in a *carrier*: a scratch register that is loaded
/// before and stored back behind the instruction.
extension BlockTranslator {
    private struct Carrier {
        var guest: UInt8
        var host: HostRegister
        var isLoaded: Bool
        var isStored: Bool
    }

    /// The register fields of the copied instruction.
    private struct Fields {
        var reg: UInt8 = 0
        var rm: UInt8 = 0
        var vexV: UInt8 = 0
        var opcodeRegister: UInt8 = 0
        var memory: Emitter.Memory?
        /// An 8-bit operand is in SPL, BPL, SIL or DIL, which needs a REX prefix.
        var needsREX = false
    }

    /// What the instruction does with one guest register.
    private struct Use {
        var isRead = false
        var isWritten = false
        var isWrittenWhole = false
        var isExplicit = false
        var isImplied = false
    }

    private typealias Uses = InlineArray<16, Use>

    /// The carriers of one instruction.
    private struct Carriers {
        private var elements = InlineArray<4, Carrier>(
            repeating: Carrier(guest: 0, host: .scratch, isLoaded: false, isStored: false))
        private(set) var count = 0

        var isEmpty: Bool { count == 0 }

        subscript(_ index: Int) -> Carrier { elements[index] }

        mutating func append(_ carrier: Carrier) {
            elements[count] = carrier
            count += 1
        }

        /// The host register that carries `guest`.
        func host(of guest: UInt8) -> HostRegister? {
            for index in 0..<count where elements[index].guest == guest { return elements[index].host }
            return nil
        }

        func uses(_ host: HostRegister) -> Bool {
            for index in 0..<count where elements[index].host == host { return true }
            return false
        }
    }

    mutating func emitCopy(_ i: DecodedInstruction) {
        var uses = Uses(repeating: Use())
        var memoryOperand: DecodedInstruction.Operand?
        var hasHighByte = false
        for index in 0..<Int(i.operandCount) {
            let operand = i.operand(index)
            if operand.kind == .memory && !operand.memory.isAddressOnly { memoryOperand = operand }
            guard operand.kind == .register else { continue }
            let name = RegisterName(operand.register)
            guard name.kind == .general else { continue }
            let guest = Int(name.number)
            if name.isHighByte && operand.place != .implied { hasHighByte = true }
            // BSF and BSR of zero leave their target alone.
            let keepsTarget = i.mnemonic == ZYDIS_MNEMONIC_BSF || i.mnemonic == ZYDIS_MNEMONIC_BSR
            if operand.isRead || keepsTarget { uses[guest].isRead = true }
            if operand.isWritten {
                uses[guest].isWritten = true
                if name.width >= 32 && !operand.isRead && !keepsTarget { uses[guest].isWrittenWhole = true }
            }
            if operand.place == .implied { uses[guest].isImplied = true } else { uses[guest].isExplicit = true }
        }

        // Address first: it needs both scratch registers.
        var place = Emitter.Memory.at(.address)
        if let memoryOperand {
            if form == .bounce {
                e.load(.address, temporary(1))
            } else {
                place = emitAccess(
                    .operand(memoryOperand.memory, addressWidth: i.addressWidth),
                    byteCount: Int(memoryOperand.size) / 8, memoryOperand.isWritten ? .write : .read,
                    isStack: isStackRelative(memoryOperand.memory))
            }
        }
        var carriers = Carriers()
        let spill = allocate(&carriers, uses, hasHighByte: hasHighByte, memoryOperand)
        var fields = Fields()
        if memoryOperand != nil {
            if form != .bounce && !carriers.isEmpty && (place.base == .scratch || place.index == .scratch) {
                e.lea(.address, place)
                place = .at(.address)
                held.clobber(.address)
            }
            fields.memory = place
        }
        for index in 0..<carriers.count { held.clobber(carriers[index].host) }
        if let spill { e.store(spill, temporary(3)) }
        for index in 0..<carriers.count where carriers[index].isLoaded {
            loadGuest(carriers[index].guest, into: carriers[index].host)
        }
        assign(&fields, i, carriers)
        emitEncoding(i, fields)
        for index in 0..<carriers.count where carriers[index].isStored {
            storeGuest(carriers[index].host, to: carriers[index].guest)
        }
        if let spill { e.load(spill, temporary(3)) }
    }

    /// Chooses carriers. Returns a register that has to be saved around the instruction to serve as a third one.
    private func allocate(
        _ carriers: inout Carriers, _ uses: Uses, hasHighByte: Bool, _ memory: DecodedInstruction.Operand?
    ) -> HostRegister? {
        var isScratchFree = true
        var isAddressFree = memory == nil
        var spilled: HostRegister?
        func add(_ guest: Int, _ host: HostRegister) {
            let use = uses[guest]
            carriers.append(
                Carrier(
                    guest: UInt8(guest), host: host, isLoaded: use.isRead || !use.isWrittenWhole,
                    isStored: use.isWritten))
        }
        // Guest RCX where the instruction implies it, or where its host register cannot be named.
        let counter = Int(GeneralRegister.rcx.rawValue)
        if uses[counter].isImplied || hasHighByte && uses[counter].isExplicit {
            add(counter, .scratch)
            isScratchFree = false
        }
        for guest in 0..<16 where uses[guest].isExplicit && guest != counter {
            let home = HostRegister.holding(UInt8(guest))
            if let home, !(hasHighByte && home.number >= 8) { continue }
            if isScratchFree {
                add(guest, .scratch)
                isScratchFree = false
            } else if isAddressFree {
                add(guest, .address)
                isAddressFree = false
            } else if let memory, !memory.isWritten, uses[guest].isWrittenWhole, !uses[guest].isRead,
                !carriers.uses(.address)
            {
                // The address has been used when the result is written.
                add(guest, .address)
            } else {
                let host = spareRegister(uses)
                add(guest, host)
                spilled = host
            }
        }
        return spilled
    }

    /// A host register that holds a guest register the instruction does not use.
    private func spareRegister(_ uses: Uses) -> HostRegister {
        let homes: InlineArray = [3, 5, 7, 0, 2]
        for i in homes.indices where !uses[homes[i]].isExplicit && !uses[homes[i]].isImplied {
            return HostRegister(number: UInt8(homes[i]))
        }
        preconditionFailure("an instruction with this many registers is not copied")
    }

    /// Fills in the register fields.
    private func assign(_ fields: inout Fields, _ i: DecodedInstruction, _ carriers: Carriers) {
        fields.reg = i.modrmReg
        fields.rm = i.modrmRM
        fields.vexV = i.vexV
        for index in 0..<Int(i.operandCount) {
            let operand = i.operand(index)
            guard operand.kind == .register, operand.place != .implied else { continue }
            let name = RegisterName(operand.register)
            var number = name.number
            if name.kind == .general {
                if let carrier = carriers.host(of: name.number) {
                    number = carrier.number
                } else {
                    number = HostRegister.holding(name.number)?.number ?? 0
                }
                if name.isHighByte {
                    number += 4
                } else if name.width == 8 && number >= 4 && number < 8 {
                    fields.needsREX = true
                }
            }
            switch operand.place {
            case .modrmReg: fields.reg = number
            case .modrmRM: fields.rm = number
            case .opcode: fields.opcodeRegister = number
            case .vexV: fields.vexV = number
            case .implied, .immediate: break
            }
        }
    }

    // MARK: Encoding

    private mutating func emitEncoding(_ i: DecodedInstruction, _ fields: Fields) {
        let rexBits = fields.memory?.rexBits ?? (fields.rm >> 3 & 1)
        if i.encoding == .vex {
            e.byte(0xC4)
            e.byte(
                (~(fields.reg >> 3) & 1) << 7 | (~(rexBits >> 1) & 1) << 6 | (~rexBits & 1) << 5 | i.opcodeMap)
            e.byte((isVEXWide(i) ? 0x80 : 0) | (~fields.vexV & 15) << 3 | i.vexL << 2 | i.vexPP)
            e.byte(i.opcode)
            // VZEROALL and VZEROUPPER have none.
            if i.hasModRM { emitModRM(i, fields) }
            emitImmediate(i)
            return
        }
        if i.mandatoryPrefix == 0x66 || i.unit == .integer && i.operandWidth == 16 { e.byte(0x66) }
        if i.mandatoryPrefix == 0xF2 || i.mandatoryPrefix == 0xF3 { e.byte(i.mandatoryPrefix) }
        if i.hasAttribute(DecodedInstruction.lockAttribute) { e.byte(0xF0) }
        var opcode = i.opcode
        var fields = fields
        var hasModRM = i.hasModRM
        if i.opcodeMap == 0 && opcode & 0xF0 == 0x40 {
            // INC and DEC of a register, whose opcodes are REX prefixes in 64-bit mode.
            fields.reg = opcode >> 3 & 1
            fields.rm = fields.opcodeRegister
            opcode = 0xFF
            hasModRM = true
        } else if i.opcodeMap == 0 && opcode == 0x82 {
            // The second encoding of the 8-bit operations with an immediate is gone.
            opcode = 0x80
        } else if i.opcodeMap == 0 && opcode & 0xFC == 0xA0 && i.mnemonic == ZYDIS_MNEMONIC_MOV {
            // AL, AX, EAX or RAX with an absolute address.
            fields.reg = 0
            opcode = opcode & 2 != 0 ? 0x88 | opcode & 1 : 0x8A | opcode & 1
            hasModRM = true
        } else if !hasModRM && usesOpcodeRegister(i) {
            opcode = opcode & 0xF8 | fields.opcodeRegister & 7
        }
        let b = hasModRM ? fields.memory?.rexBits ?? (fields.rm >> 3 & 1) : fields.opcodeRegister >> 3 & 1
        let r = hasModRM ? fields.reg >> 3 & 1 : 0
        let rex = (i.rexW ? 8 : 0) | r << 2 | b
        if rex != 0 || fields.needsREX { e.byte(0x40 | rex) }
        switch i.opcodeMap {
        case 1: e.byte(0x0F)
        case 2: e.bytes(0x0F, 0x38)
        case 3: e.bytes(0x0F, 0x3A)
        default: break
        }
        e.byte(opcode)
        if hasModRM { emitModRM(i, fields) }
        if !(i.opcodeMap == 0 && i.opcode & 0xFC == 0xA0 && i.mnemonic == ZYDIS_MNEMONIC_MOV) { emitImmediate(i) }
    }

    /// VEX.W as the copy needs it. Outside 64-bit mode it does not make general registers 64 bits wide.
    private func isVEXWide(_ i: DecodedInstruction) -> Bool {
        if mode.codeSize == .bits64 { return i.rexW }
        switch i.mnemonic {
        case ZYDIS_MNEMONIC_VMOVD, ZYDIS_MNEMONIC_VMOVQ, ZYDIS_MNEMONIC_VCVTSI2SS, ZYDIS_MNEMONIC_VCVTSI2SD,
            ZYDIS_MNEMONIC_VPINSRD, ZYDIS_MNEMONIC_VPEXTRD:
            return false
        default: break
        }
        for index in 0..<Int(i.operandCount) where i.operand(index).kind == .register {
            if RegisterName(i.operand(index).register).kind == .general { return false }
        }
        return i.rexW
    }

    private func usesOpcodeRegister(_ i: DecodedInstruction) -> Bool {
        for index in 0..<Int(i.operandCount) where i.operand(index).place == .opcode { return true }
        return false
    }

    private mutating func emitModRM(_ i: DecodedInstruction, _ fields: Fields) {
        if let memory = fields.memory {
            e.modRM(reg: fields.reg, memory)
        } else {
            e.byte(0xC0 | (fields.reg & 7) << 3 | fields.rm & 7)
        }
    }

    private mutating func emitImmediate(_ i: DecodedInstruction) {
        let bytes = i.bytes
        // A register in an immediate has three bits outside 64-bit mode.
        var mask: UInt8 = 0xFF
        if mode.codeSize != .bits64 {
            for index in 0..<Int(i.operandCount) where i.operand(index).place == .immediate {
                if i.operand(index).kind == .register { mask = 0x7F }
            }
        }
        withUnsafeBytes(of: bytes) { raw in
            for index in 0..<Int(i.immediateByteCount) { e.byte(raw[Int(i.immediateOffset) + index] & mask) }
        }
    }
}
