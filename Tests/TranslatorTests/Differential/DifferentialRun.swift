import Glibc
import TestSupport

/// Generates cases, runs them on the host and in the guest, and compares.
final class DifferentialRun {
    private static var batchCount: Int { 64 }

    private let isNarrow: Bool
    private let seed: UInt64
    private let native: NativeRunner
    private let guest: GuestRunner
    private let disassembler: Disassembler
    private var generator: SequenceGenerator
    /// Two slots a case, in memory shared with children: for the host's results and for the guest's.
    private let area: UnsafeMutableRawPointer
    private let areaByteCount: Int

    init(seed: UInt64, isNarrow: Bool) throws {
        self.seed = seed
        self.isNarrow = isNarrow
        let images = MemoryImages(seed: seed)
        native = NativeRunner(images: images)
        guest = try GuestRunner(images: images)
        disassembler = Disassembler(isNarrow: isNarrow)
        generator = SequenceGenerator(
            isNarrow: isNarrow, catalog: InstructionCatalog(isNarrow: isNarrow), disassembler: disassembler,
            random: SeededGenerator(seed: seed))
        areaByteCount = Self.batchCount * 2 * CaseSlot.byteCount
        area = mmap(nil, areaByteCount, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
    }

    deinit { munmap(area, areaByteCount) }

    private func nativeSlot(_ i: Int) -> CaseSlot { CaseSlot(base: area + i * 2 * CaseSlot.byteCount) }
    private func guestSlot(_ i: Int) -> CaseSlot { CaseSlot(base: area + (i * 2 + 1) * CaseSlot.byteCount) }

    /// What a run found.
    struct Summary {
        var caseCount = 0
        var faultCount = 0
        var failures: [String] = []
        /// Instructions of the catalog that were in no sequence that reached its end.
        var uncovered: [String] = []
        var mnemonicCount = 0
    }

    /// Runs `count` cases; stops after `maximumFailures` failures.
    func run(count: Int, maximumFailures: Int = 5) throws -> Summary {
        var names = generator.catalog.names
        var summary = Summary()
        summary.mnemonicCount = names.count
        while summary.caseCount < count && summary.failures.count < maximumFailures {
            let batch = min(Self.batchCount, count - summary.caseCount)
            var codes: [([UInt8], [Int])] = []
            var mnemonics: [Set<UInt32>] = []
            for i in 0..<batch {
                generator.random = SeededGenerator(seed: seed &+ UInt64(summary.caseCount + i) &* 0x1_0000_0001)
                generator.fill(nativeSlot(i))
                codes.append((generator.bytes, generator.starts))
                mnemonics.append(generator.mnemonics)
                prepare(i, generator.bytes)
            }
            do {
                try native.run((0..<batch).map { nativeSlot($0) })
            } catch let accident as NativeRunner.Accident {
                let number = accident.caseNumber
                let address = TestArea.code + UInt64(nativeSlot(number).codeOffset)
                summary.failures.append(
                    """
                    case \(summary.caseCount + number) of seed \(seed): \(accident)
                    \(disassembler.listing(codes[number].0, at: address))
                    before: \(Comparison.describe(nativeSlot(number).input))
                    """)
                return summary
            }
            for i in 0..<batch {
                try runGuest(i, codes[i].0)
                if nativeSlot(i).output.vector != RegisterBlock.completed {
                    summary.faultCount += 1
                } else {
                    for mnemonic in mnemonics[i] { names[mnemonic] = nil }
                }
            }
            let failing = (0..<batch).filter { Comparison(nativeSlot($0), guestSlot($0)).differs }
            for i in failing.prefix(maximumFailures - summary.failures.count) {
                let name = "case \(summary.caseCount + i) of seed \(seed)"
                summary.failures.append(try shrink(i, codes[i].0, codes[i].1, name))
            }
            summary.caseCount += batch
        }
        summary.uncovered = names.values.sorted()
        return summary
    }

    /// Writes `code` into the slots of case `i`, with the ending each side wants.
    private func prepare(_ i: Int, _ code: [UInt8]) {
        let native = nativeSlot(i)
        let guest = guestSlot(i)
        memcpy(guest.base, native.base, 0xB00)
        let end = TestArea.code + UInt64(native.codeOffset + code.count)
        for (slot, ending) in [(native, NativeRunner.ending(at: end, isNarrow: isNarrow)), (guest, GuestRunner.ending)]
        {
            let bytes = code + ending
            slot.codeByteCount = bytes.count
            bytes.withUnsafeBytes {
                slot.code.copyMemory(from: $0.baseAddress.unsafelyUnwrapped, byteCount: bytes.count)
            }
        }
    }

    private func runGuest(_ i: Int, _ code: [UInt8]) throws {
        try guest.run(guestSlot(i), end: TestArea.code + UInt64(guestSlot(i).codeOffset + code.count))
    }

    /// Replaces instructions by NOPs as long as the case still fails; returns its description.
    private func shrink(_ i: Int, _ code: [UInt8], _ starts: [Int], _ name: String) throws -> String {
        let original = Comparison(nativeSlot(i), guestSlot(i)).differences()
        var code = code
        for (number, start) in starts.enumerated().reversed() {
            let end = number + 1 < starts.count ? starts[number + 1] : code.count
            var shorter = code
            for position in start..<end { shorter[position] = 0x90 }
            prepare(i, shorter)
            guard (try? native.run([nativeSlot(i)])) != nil else { continue }
            try runGuest(i, shorter)
            if Comparison(nativeSlot(i), guestSlot(i)).differs { code = shorter }
        }
        prepare(i, code)
        try native.run([nativeSlot(i)])
        try runGuest(i, code)
        let address = TestArea.code + UInt64(nativeSlot(i).codeOffset)
        let comparison = Comparison(nativeSlot(i), guestSlot(i))
        let differences = comparison.differs ? comparison.differences() : ["does not repeat; it was:"] + original
        return """
            \(name):
            \(disassembler.listing(code, at: address))
            before: \(Comparison.describe(nativeSlot(i).input))
            \(differences.joined(separator: "\n"))
            """
    }
}
