import Glibc
import Testing

/// Random sequences of user instructions on the host's processor and through the translator.
///
/// `MARTLET_CPU_SEQUENCES` sets their number, `MARTLET_SEED` the seed, `MARTLET_CPU_FAILURES` how many failures are
/// described before the test gives up.
@Suite(.serialized) struct DifferentialTests {
    private static func number(_ name: String) -> UInt64? { getenv(name).flatMap { UInt64(String(cString: $0)) } }

    private func run(isNarrow: Bool) throws {
        // The same sequences each time unless asked; long runs name other seeds.
        let seed = Self.number("MARTLET_SEED") ?? 1
        let count = Self.number("MARTLET_CPU_SEQUENCES") ?? 3000
        print("\(isNarrow ? "32" : "64")-bit sequences: \(count), seed \(seed)")
        let limit = Self.number("MARTLET_CPU_FAILURES") ?? 5
        let summary = try DifferentialRun(seed: seed, isNarrow: isNarrow).run(
            count: Int(count), maximumFailures: Int(limit))
        print(
            "\(summary.faultCount) ended in a fault; \(summary.uncovered.count) of \(summary.mnemonicCount) mnemonics not completed"
        )
        if count >= 100_000 { print(summary.uncovered.joined(separator: " ")) }
        for failure in summary.failures { Issue.record("\(failure)") }
        // Most sequences end without a fault: otherwise little is compared.
        #expect(summary.faultCount < summary.caseCount / 2)
        #expect(summary.caseCount > 0)
    }

    @Test func sequencesOf64BitCode() throws { try run(isNarrow: false) }

    @Test(.enabled(if: NativeRunner.runsNarrowCode, "the host's kernel runs no 32-bit code"))
    func sequencesOf32BitCode() throws { try run(isNarrow: true) }

    /// Sequences that long runs found: x87 exceptions that are pending when the operand faults, and an operand that the
    /// host's MXCSR allows to be misaligned.
    @Test(arguments: [169_213_121_567_283, 575_426_833_550_246, 1_098_725_649_018_675] as [UInt64])
    func foundIn64BitCode(seed: UInt64) throws { try expectSame(seed, isNarrow: false) }

    /// The same, and PUSHA that faults half-way.
    @Test(
        .enabled(if: NativeRunner.runsNarrowCode, "the host's kernel runs no 32-bit code"),
        arguments: [26_860_725_475_515, 283_815_733_953_134, 1_098_725_649_018_675] as [UInt64])
    func foundIn32BitCode(seed: UInt64) throws { try expectSame(seed, isNarrow: true) }

    private func expectSame(_ seed: UInt64, isNarrow: Bool) throws {
        let summary = try DifferentialRun(seed: seed, isNarrow: isNarrow).run(count: 1)
        for failure in summary.failures { Issue.record("\(failure)") }
    }
}
