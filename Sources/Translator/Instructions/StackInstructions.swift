import CZydis
import X86

// PUSH and POP of anything but segment registers, PUSHA, POPA, ENTER and LEAVE.

extension Processor {
    /// PUSH. Returns false for segment registers.
    func executePush(_ i: DecodedInstruction) throws(GuestFault) -> Bool {
        let operand = i.operand(0)
        if isSegmentRegister(operand) { return false }
        try push(readOperand(operand, of: i), byteCount: Int(i.operandWidth) / 8)
        advance(i)
        return true
    }

    /// POP. Returns false for segment registers.
    func executePop(_ i: DecodedInstruction) throws(GuestFault) -> Bool {
        let operand = i.operand(0)
        if isSegmentRegister(operand) { return false }
        let old = state[.rsp]
        let value = try pop(byteCount: Int(i.operandWidth) / 8)
        // The address of a memory operand uses RSP as it is after the increment.
        do {
            try writeOperand(operand, of: i, value)
        } catch {
            state[.rsp] = old
            throw error
        }
        advance(i)
        return true
    }

    private func isSegmentRegister(_ operand: DecodedInstruction.Operand) -> Bool {
        operand.kind == .register && operand.register.rawValue &- ZYDIS_REGISTER_ES.rawValue < 6
    }

    func executePushAll(_ i: DecodedInstruction) throws(GuestFault) {
        // What was pushed before a fault stays below RSP, as on hardware.
        let size = Int(i.operandWidth) / 8
        let stack = currentStack
        var pointer = state[.rsp]
        for index in 0..<8 {
            pointer = (pointer &- UInt64(size)) & stack.mask
            try writeData(
                stack.linearAddress(pointer), state[GeneralRegister(index: index)], byteCount: size, segment: .ss)
        }
        state[.rsp] = stack.replacing(state[.rsp], with: pointer)
        advance(i)
    }

    func executePopAll(_ i: DecodedInstruction) throws(GuestFault) {
        let size = Int(i.operandWidth) / 8
        var values = InlineArray<8, UInt64>(repeating: 0)
        for slot in 0..<8 { values[slot] = try peek(slot * size, byteCount: size) }
        for slot in 0..<8 {
            // RDI comes first in memory; the stored RSP is skipped.
            let register = GeneralRegister(index: 7 - slot)
            if register != .rsp { writeGeneral(register, values[slot], byteCount: size) }
        }
        let stack = currentStack
        state[.rsp] = stack.replacing(state[.rsp], with: state[.rsp] &+ UInt64(8 * size))
        advance(i)
    }

    /// ENTER with all nesting levels. Registers change at the end only; what was written below RSP before a fault is
    /// written again.
    func executeEnter(_ i: DecodedInstruction) throws(GuestFault) {
        let allocation = i.operand(0).immediate & 0xFFFF
        let level = i.operand(1).immediate & 31
        let size = Int(i.operandWidth) / 8
        let stack = currentStack
        var top = (state[.rsp] &- UInt64(size)) & stack.mask
        try writeData(stack.linearAddress(top), state[.rbp], byteCount: size, segment: .ss)
        let frame = top
        if level > 0 {
            var display = state[.rbp]
            for _ in 1..<level {
                display &-= UInt64(size)
                let value = try readData(stack.linearAddress(display), byteCount: size, segment: .ss)
                top = (top &- UInt64(size)) & stack.mask
                try writeData(stack.linearAddress(top), value, byteCount: size, segment: .ss)
            }
            top = (top &- UInt64(size)) & stack.mask
            try writeData(stack.linearAddress(top), frame, byteCount: size, segment: .ss)
        }
        top = (top &- allocation) & stack.mask
        // The new top of the stack has to be writable, although nothing is written there.
        do {
            try probeWrite(stack.linearAddress(top), byteCount: size)
        } catch {
            throw Self.attribute(error, to: .ss)
        }
        writeGeneral(.rbp, frame, byteCount: size)
        state[.rsp] = stack.replacing(state[.rsp], with: top)
        advance(i)
    }

    func executeLeave(_ i: DecodedInstruction) throws(GuestFault) {
        let size = Int(i.operandWidth) / 8
        let stack = currentStack
        let value = try readData(stack.linearAddress(state[.rbp]), byteCount: size, segment: .ss)
        state[.rsp] = stack.replacing(state[.rsp], with: state[.rbp] &+ UInt64(size))
        writeGeneral(.rbp, value, byteCount: size)
        advance(i)
    }
}
