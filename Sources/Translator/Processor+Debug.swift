import CZydis
import X86

/// Single stepping and the debug registers.
///
/// While RFLAGS.TF is set or a breakpoint is enabled in DR7, instructions are executed one at a time.
/// > Source: APM volume 2, sections 13.1.1–13.1.4.
extension Processor {
    /// Executes the instruction at RIP and raises what debug exceptions it causes: an instruction breakpoint before it, data
    /// breakpoints and the single-step trap behind it. No trap follows an instruction that faulted, an interrupt instruction
    /// (whose handler must not be trapped), one that shadows the next, or a SYSCALL that clears the trap flag.
    func stepWithTraps(_ step: (DecodedInstruction) -> RunResult?) -> RunResult? {
        let start = state.rip
        let isStepping = mode.singleSteps
        let wasResumed = state.systemFlags & RFlags.resume != 0
        var causes: UInt64 = 0
        let instruction: DecodedInstruction
        do throws(GuestFault) {
            let linear = try currentLinear()
            if watchesMemory, !wasResumed {
                let hit = matches(linear, byteCount: 1, .execute)
                if hit != 0 {
                    system.pendingEvent = PendingEvent(.debug(hit))
                    return nil
                }
            }
            instruction = try decodeCurrent()
        } catch {
            return handle(error)
        }
        if watchesMemory { causes = dataBreakpoints(instruction) }
        executedInterrupt = false
        let result = step(instruction)
        let isReturn = instruction.category == ZYDIS_CATEGORY_RET && instruction.mnemonic != ZYDIS_MNEMONIC_RET
        let isRepeating = state.rip == start && instruction.hasRepeat
        if wasResumed, !isReturn, !isRepeating { state.systemFlags &= ~RFlags.resume }
        if result != nil && result != .halted || system.pendingEvent != nil { return result }
        let isMasked = instruction.mnemonic == ZYDIS_MNEMONIC_SYSCALL && !mode.singleSteps
        if isStepping, !executedInterrupt, !isInShadow, !isMasked, state.rip != start || mode.singleSteps {
            causes |= DebugRegister.singleStep
        }
        if causes != 0 { system.pendingEvent = PendingEvent(.debug(causes)) }
        return result
    }

    private enum Watched { case execute, read, write }

    /// The enabled breakpoints, as bits of DR6, that an access matches.
    private func matches(_ linear: UInt64, byteCount: UInt64, _ kind: Watched) -> UInt64 {
        let registers = system.debugAddresses
        let addresses = [registers.0, registers.1, registers.2, registers.3]
        var result: UInt64 = 0
        for (number, address) in addresses.enumerated() where system.dr7 >> UInt64(number * 2) & 3 != 0 {
            let control = system.dr7 >> UInt64(16 + number * 4)
            let watched = control & 3
            let length: UInt64 = [1, 2, 8, 4][Int(control >> 2 & 3)]
            switch kind {
            case .execute: if watched != 0 || linear != address { continue }
            case .write: if watched != 1 && watched != 3 { continue }
            case .read: if watched != 3 { continue }
            }
            let first = address & ~(length - 1)
            if kind == .execute || linear < first &+ length && first < linear &+ byteCount {
                result |= 1 << UInt64(number)
            }
        }
        return result
    }

    /// The data breakpoints that the memory operands of `i` match.
    private func dataBreakpoints(_ i: DecodedInstruction) -> UInt64 {
        var result: UInt64 = 0
        for index in 0..<Int(i.operandCount) {
            let operand = i.operand(index)
            guard operand.kind == .memory, !operand.memory.isAddressOnly else { continue }
            let byteCount = UInt64(operand.size) / 8
            var linear = linearAddress(operand.memory, of: i)
            // The slot that is pushed lies below the stack pointer.
            if operand.isWritten, operand.isHidden, operand.memory.base == GeneralRegister.rsp.rawValue {
                linear = linear &- byteCount
            }
            result |= matches(linear, byteCount: byteCount, operand.isWritten ? .write : .read)
        }
        return result
    }
}
