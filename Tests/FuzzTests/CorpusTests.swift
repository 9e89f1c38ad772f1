import Glibc
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

    /// The files of one corpus, by name; each is announced when it is reached.
    private static func inputs(_ name: String) throws -> LazyMapSequence<[String], [UInt8]> {
        let directory = #filePath.split(separator: "/").dropLast(3).reduce("") { $0 + "/" + $1 } + "/Fuzz/Corpus/\(name)"
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
            print("fuzz corpus: \(name)")
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
