import CZydis
import X86

// Near jumps, calls and returns.
//
// A target is checked before anything changes, so that #GP is reported at the branch.

extension Processor {
    /// JMP near. Returns false for far forms.
    func executeJump(_ i: DecodedInstruction) throws(GuestFault) -> Bool {
        if isFarBranch(i) { return false }
        state.rip = try branchTarget(i)
        return true
    }

    /// CALL near. Returns false for far forms.
    func executeCall(_ i: DecodedInstruction) throws(GuestFault) -> Bool {
        if isFarBranch(i) { return false }
        let target = try branchTarget(i)
        try push(nextRIP(i), byteCount: branchByteCount(i))
        state.rip = target
        return true
    }

    /// RET near. Returns false for far forms.
    func executeReturn(_ i: DecodedInstruction) throws(GuestFault) -> Bool {
        // C2 and C3; CA and CB are far.
        if i.opcode & 8 != 0 { return false }
        let byteCount = branchByteCount(i)
        let target = try peek(0, byteCount: byteCount)
        try requireBranchTarget(target)
        let released = i.operand(0).kind == .immediate ? i.operand(0).immediate & 0xFFFF : 0
        let stack = currentStack
        state[.rsp] = stack.replacing(state[.rsp], with: state[.rsp] &+ UInt64(byteCount) &+ released)
        state.rip = target
        return true
    }

    /// Jcc.
    func executeConditionalJump(_ i: DecodedInstruction) throws(GuestFault) {
        if ArithmeticFlags.condition(i.opcode & 15, state.arithmeticFlags) {
            state.rip = try branchTarget(i)
        } else {
            advance(i)
        }
    }

    /// LOOP, LOOPE and LOOPNE: `zero` is what ZF has to be, nil if it does not matter.
    func executeLoop(_ i: DecodedInstruction, zero: Bool?) throws(GuestFault) {
        let byteCount = Int(i.addressWidth) / 8
        let count = (state[.rcx] &- 1) & Self.mask(byteCount: byteCount)
        let isZero = state.arithmeticFlags & RFlags.zero != 0
        let next = count != 0 && (zero ?? isZero) == isZero ? try branchTarget(i) : nextRIP(i)
        writeGeneral(.rcx, count, byteCount: byteCount)
        state.rip = next
    }

    /// JCXZ, JECXZ and JRCXZ.
    func executeJumpIfCounterZero(_ i: DecodedInstruction) throws(GuestFault) {
        let isZero = readGeneral(.rcx, byteCount: Int(i.addressWidth) / 8) == 0
        state.rip = isZero ? try branchTarget(i) : nextRIP(i)
    }

    /// The size of an instruction pointer as near branch `i` uses it.
    private func branchByteCount(_ i: DecodedInstruction) -> Int {
        system.is64BitMode ? 8 : Int(i.operandWidth) / 8
    }

    /// The checked target of near branch `i`.
    private func branchTarget(_ i: DecodedInstruction) throws(GuestFault) -> UInt64 {
        let operand = i.operand(0)
        let mask = Self.mask(byteCount: branchByteCount(i))
        let target =
            operand.kind == .immediate
            ? (nextRIP(i) &+ operand.immediate) & mask : try readOperand(operand, of: i) & mask
        try requireBranchTarget(target)
        return target
    }

    private func requireBranchTarget(_ target: UInt64) throws(GuestFault) {
        let isValid = system.is64BitMode ? isCanonical(target) : target <= UInt64(system.cs.limit)
        if !isValid { throw .generalProtection() }
    }

    /// 9A, EA and the two forms of FF with a pointer in memory.
    private func isFarBranch(_ i: DecodedInstruction) -> Bool {
        switch i.opcode {
        case 0x9A, 0xEA: true
        case 0xFF: i.modrmReg == 3 || i.modrmReg == 5
        default: false
        }
    }
}
