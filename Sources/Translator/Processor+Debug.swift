import CZydis
import X86

/// Breakpoints in the form of the debug registers.
public struct DebugBreakpoints: Equatable, Sendable {
    /// DR0–DR3.
    public var addresses: InlineArray<4, UInt64>
    /// DR7.
    public var control: UInt64

    public init(addresses: InlineArray<4, UInt64>, control: UInt64) {
        self.addresses = addresses
        self.control = control
    }

    public static func == (a: Self, b: Self) -> Bool {
        a.control == b.control && (0..<4).allSatisfy { a.addresses[$0] == b.addresses[$0] }
    }
}

/// What a client's debugger wants of a processor. The guest sees nothing of it.
public struct DebuggerControl: Equatable, Sendable {
    /// INT3 leaves the guest.
    public var catchesBreakpoints = false
    /// Each instruction is followed by ``RunResult/debug(vector:dr6:)``.
    public var singleSteps = false
    /// Takes the place of the guest's own breakpoints.
    public var breakpoints: DebugBreakpoints?

    public init() {}

    /// Debug exceptions leave the guest.
    var catchesDebugExceptions: Bool { singleSteps || breakpoints != nil }
}

/// Single stepping and the debug registers.
///
/// While RFLAGS.TF is set, a breakpoint is enabled in DR7, or the client's debugger wants something of the kind, instructions
/// are executed one at a time.
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
            if isTraced, !wasResumed {
                let hit = matches(linear, byteCount: 1, .execute)
                if hit != 0 { return raiseDebugException(hit) }
            }
            instruction = try decodeCurrent()
        } catch {
            return handle(error)
        }
        if isTraced { causes = dataBreakpoints(instruction) }
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
        // A debugger follows the guest into its handlers, and a halt ends only with the next instruction.
        if debugger.singleSteps, result == nil { causes |= DebugRegister.singleStep }
        return causes == 0 ? result : raiseDebugException(causes) ?? result
    }

    /// Raises #DB, or tells the client's debugger.
    func raiseDebugException(_ causes: UInt64) -> RunResult? {
        if debugger.catchesDebugExceptions { return .debug(vector: 1, dr6: DebugRegister.fixed6 | causes) }
        system.pendingEvent = PendingEvent(.debug(causes))
        return nil
    }

    /// The breakpoints in force.
    public var breakpoints: DebugBreakpoints {
        if let own = debugger.breakpoints { return own }
        let addresses = system.debugAddresses
        return DebugBreakpoints(
            addresses: [addresses.0, addresses.1, addresses.2, addresses.3], control: system.dr7)
    }

    private enum Watched { case execute, read, write }

    /// The enabled breakpoints, as bits of DR6, that an access matches.
    private func matches(_ linear: UInt64, byteCount: UInt64, _ kind: Watched) -> UInt64 {
        let breakpoints = breakpoints
        var result: UInt64 = 0
        for number in 0..<4 where breakpoints.control >> UInt64(number * 2) & 3 != 0 {
            let address = breakpoints.addresses[number]
            let control = breakpoints.control >> UInt64(16 + number * 4)
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
