import Glibc
import Translator
import X86

/// Runs arbitrary bytes as guest code on a bare machine, from arbitrary registers, for a bounded time.
///
/// An input is twelve bytes of options and the code:
///
/// | byte | holds |
/// |---|---|
/// | 0 | the mode (bits 0–2, ``FuzzMachine/Mode``), CPL 3 (bit 3), TF (bit 4), AC (bit 5), IF (bit 6), DF (bit 7) |
/// | 1 | CR0.WP (bit 0), TS (1), EM (2), CR4.OSFXSR off (3), XCR0 without AVX (4), SMAP (5), SMEP (6), PCIDs (7) |
/// | 2 | where the code begins in its page, in units of 16 bytes |
/// | 3 | bit 0: events arrive; bit 1: others ask for TLB flushes; bit 2: MXCSR and x87 exceptions unmasked; bit 3: IOPL 3 |
/// | 4–11 | the seed of the registers |
///
/// When the code halts, or shuts down, the machine is entered again at a later byte of the code.
public enum TranslatorCase {
    static let optionsByteCount = 12
    /// How often the machine is entered in one case.
    private static let entryLimit = 150
    /// How often it starts over.
    private static let restartLimit = 4
    private static let nanoseconds: UInt64 = 2_000_000

    /// Runs `input`, and traps where the machine broke a promise.
    /// - Returns: how often the machine was entered.
    @discardableResult
    public static func run(_ input: UnsafeRawBufferPointer) -> Int {
        let options = FuzzOptions(input)
        let code = UnsafeRawBufferPointer(rebasing: input.dropFirst(optionsByteCount))
        let machine = FuzzMachine(options, code: code)
        let deadline = now() + nanoseconds
        Watchdog.shared.watch(machine.processor, until: deadline)
        defer { Watchdog.shared.stop() }
        var restarts = 0
        machine.start(at: 0)
        for entry in 1...entryLimit {
            machine.disturb()
            let result = machine.processor.run()
            machine.check(result)
            switch result {
            case .attention:
                if now() >= deadline { return entry }
                machine.processor.clearAttention()
            case .needsClient:
                machine.processor.answerClientRead(machine.generator.next())
            case .halted, .shutdown, .emulationFailure, .hostMemory, .debug:
                restarts += 1
                let skipped = restarts * code.count / restartLimit
                if restarts == restartLimit || skipped >= code.count { return entry }
                machine.start(at: skipped)
            }
        }
        return entryLimit
    }

    static func now() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }
}

/// The options of an input; all zero where it is too short.
struct FuzzOptions {
    private var bytes: [UInt8]

    init(_ input: UnsafeRawBufferPointer) {
        bytes = [UInt8](input.prefix(TranslatorCase.optionsByteCount))
        bytes += [UInt8](repeating: 0, count: TranslatorCase.optionsByteCount - bytes.count)
    }

    private func bit(_ byte: Int, _ index: Int) -> Bool { bytes[byte] >> UInt8(index) & 1 != 0 }

    var mode: FuzzMachine.Mode { FuzzMachine.Mode(rawValue: bytes[0] & 7) ?? .long }
    var isUser: Bool { bit(0, 3) }
    var traps: Bool { bit(0, 4) }
    var checksAlignment: Bool { bit(0, 5) }
    var acceptsInterrupts: Bool { bit(0, 6) }
    var countsDown: Bool { bit(0, 7) }
    var protectsWrites: Bool { bit(1, 0) }
    var taskSwitched: Bool { bit(1, 1) }
    var emulatesX87: Bool { bit(1, 2) }
    var lacksSSE: Bool { bit(1, 3) }
    var lacksAVX: Bool { bit(1, 4) }
    var preventsAccess: Bool { bit(1, 5) }
    var preventsExecution: Bool { bit(1, 6) }
    var hasContexts: Bool { bit(1, 7) }
    var codeOffset: Int { Int(bytes[2]) * 16 }
    var getsEvents: Bool { bit(3, 0) }
    var getsRequests: Bool { bit(3, 1) }
    var unmasksExceptions: Bool { bit(3, 2) }
    var mayDoIO: Bool { bit(3, 3) }
    var seed: UInt64 { bytes[4..<12].reduce(0) { $0 << 8 | UInt64($1) } }
}
