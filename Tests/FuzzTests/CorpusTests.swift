import Glibc
import Host
import TestSupport
import Testing

/// Runs the inputs of Fuzz/Corpus: what the fuzz targets start from, and what they once found.
///
/// A broken promise ends the process, as it does under the fuzzer; the name of the input is the last thing printed.
@Suite(.serialized) struct FuzzCorpusTests {
    @Test func loader() throws {
        let fixture = LoaderCase()
        let loaded = try Self.inputs("Loader").count { input in input.withUnsafeBytes { fixture.run($0) } }
        #expect(loaded >= 15, "kernels that load")
    }

    @Test func translator() throws {
        let entered = try Self.inputs("Translator").count { input in
            input.withUnsafeBytes { TranslatorCase.run($0) } > 0
        }
        #expect(entered >= 40, "guests that run")
    }

    @Test func requests() throws {
        let succeeded = try Self.inputs("Requests").reduce(0) { sum, input in
            sum + input.withUnsafeBytes { RequestCase.run($0) }
        }
        #expect(succeeded >= 40, "requests that succeed")
    }

    /// Inputs at random, most of whose steps are plausible.
    @Test func requestsAtRandom() {
        let seed = runSeed("requests")
        var random = SeededGenerator(seed: seed)
        var (cases, succeeded) = (0, 0)
        let deadline = MonotonicClock.nanoseconds() + UInt64(stressSeconds(60) * 1e9)
        while MonotonicClock.nanoseconds() < deadline {
            cases += 1
            let input = (0..<1 + random.next() % 96).flatMap { _ in Self.step(&random) }
            succeeded += input.withUnsafeBytes { RequestCase.run($0) }
        }
        print("requests: \(cases) cases, \(succeeded) requests succeeded; seed \(seed)")
        #expect(succeeded > cases, "seed \(seed)")
    }

    private static func step(_ random: inout SeededGenerator) -> [UInt8] {
        var bytes = (0..<20).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        // As a rule the request exists, its descriptor too, and its argument can be read and written.
        if random.next() % 8 != 0 { bytes[0] %= 250 }
        if random.next() % 4 != 0 { bytes[1] %= 4 }
        if random.next() % 4 != 0 { bytes[2] = 6 }
        if random.next() % 4 != 0 { bytes[3] |= 1 }
        return bytes
    }

    /// The files of one corpus, by name; each is announced when it is reached.
    private static func inputs(_ name: String) throws -> LazyMapSequence<[String], [UInt8]> {
        let root = #filePath.split(separator: "/").dropLast(3).reduce("") { $0 + "/" + $1 }
        let directory = "\(root)/Fuzz/Corpus/\(name)"
        guard let stream = opendir(directory) else { throw Missing(path: directory) }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            if !name.hasPrefix(".") { names.append(name) }
        }
        return names.sorted().lazy.map { name in
            // Past any buffer, which a crash would lose.
            let line = Array("fuzz corpus: \(name)\n".utf8)
            write(STDERR_FILENO, line, line.count)
            return contents("\(directory)/\(name)")
        }
    }

    private struct Missing: Error { let path: String }

    private static func contents(_ path: String) -> [UInt8] {
        guard let file = fopen(path, "rb") else { return [] }
        defer { fclose(file) }
        return [UInt8](unsafeUninitializedCapacity: 1 << 20) { buffer, count in
            count = fread(buffer.baseAddress, 1, buffer.count, file)
        }
    }
}
