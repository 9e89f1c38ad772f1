import Glibc
import Host
import Testing

/// A program that must not compile, and its twin that must: they differ in one line.
struct EscapeCase: Sendable, CustomTestStringConvertible {
    let name: String
    let lines: String
    /// Stands for `LINE` in `lines`.
    let good: String
    let bad: String
    /// A part of the error that the bad line gives.
    let diagnostic: String

    var testDescription: String { name }

    static let all = [
        EscapeCase(
            name: "the result of its section",
            lines: """
                func read(_ pointer: borrowing RCUPointer<Int>) {
                LINE
                }
                """,
            good:
                "_ = ThreadRCU.withReadSection { (s: borrowing ReadSection) -> Int? in pointer.load(in: s)?.pointee }",
            bad:
                "_ = ThreadRCU.withReadSection { (s: borrowing ReadSection) -> RCUReference<Int>? in pointer.load(in: s) }",
            diagnostic: "requires that 'RCUReference<Int>' conform to 'Escapable'"),
        EscapeCase(
            name: "assigned to a variable outside",
            lines: """
                func read(_ pointer: borrowing RCUPointer<Int>) {
                    var outer: RCUReference<Int>?
                    ThreadRCU.withReadSection { section in
                        var inner: RCUReference<Int>?
                LINE
                        _ = inner
                    }
                    _ = outer
                }
                """,
            good: "inner = pointer.load(in: section)",
            bad: "outer = pointer.load(in: section)",
            diagnostic: "lifetime-dependent variable 'outer' escapes its scope"),
        EscapeCase(
            name: "captured by a closure that escapes",
            lines: """
                func keep(_ body: @escaping () -> Int) {}
                func use(_ body: () -> Int) {}
                func read(_ pointer: borrowing RCUPointer<Int>) {
                    ThreadRCU.withReadSection { section in
                        guard let reference = pointer.load(in: section) else { return }
                LINE
                    }
                }
                """,
            good: "use { reference.pointee }",
            bad: "keep { reference.pointee }",
            diagnostic: "lifetime-dependent variable 'reference' escapes its scope"),
        EscapeCase(
            name: "stored in an object",
            lines: """
                final class Holder {
                LINE
                }
                """,
            good: "var value: Int?",
            bad: "var value: RCUReference<Int>?",
            diagnostic: "accessor cannot return a ~Escapable result"),
        EscapeCase(
            name: "put into an array",
            lines: """
                func read(_ pointer: borrowing RCUPointer<Int>) {
                    ThreadRCU.withReadSection { section in
                        guard let reference = pointer.load(in: section) else { return }
                LINE
                    }
                }
                """,
            good: "_ = [reference.pointee]",
            bad: "_ = [reference]",
            diagnostic: "'Array' requires that 'RCUReference<Int>' conform to 'Escapable'"),
        EscapeCase(
            name: "returned by a function that was lent the section",
            lines: """
                LINE
                """,
            good:
                "func find(_ p: borrowing RCUPointer<Int>, _ s: borrowing ReadSection) -> Int? { p.load(in: s)?.pointee }",
            bad:
                "func find(_ p: borrowing RCUPointer<Int>, _ s: borrowing ReadSection) -> RCUReference<Int>? { p.load(in: s) }",
            diagnostic: "a function cannot return a ~Escapable result"),
        EscapeCase(
            name: "the section itself, kept",
            lines: """
                func read(_ pointer: borrowing RCUPointer<Int>) {
                    ThreadRCU.withReadSection { section in
                LINE
                    }
                }
                """,
            good: "_ = pointer.load(in: section)",
            bad: "let kept = section; _ = pointer.load(in: kept)",
            diagnostic: "'section' is borrowed and cannot be consumed"),
        EscapeCase(
            name: "a section made up",
            lines: """
                func read(_ pointer: borrowing RCUPointer<Int>) {
                    ThreadRCU.withReadSection { section in
                LINE
                    }
                }
                """,
            good: "_ = pointer.load(in: section)",
            bad: "_ = pointer.load(in: ReadSection())",
            diagnostic: "'ReadSection' initializer is inaccessible due to 'internal' protection level"),
        EscapeCase(
            name: "a section of the quiescent-state kind",
            lines: """
                func read(_ pointer: borrowing RCUPointer<Int>, _ reader: borrowing RCUReader) {
                    var outer: RCUReference<Int>?
                    reader.withReadSection { section in
                        var inner: RCUReference<Int>?
                LINE
                        _ = inner
                    }
                    _ = outer
                }
                """,
            good: "inner = pointer.load(in: section)",
            bad: "outer = pointer.load(in: section)",
            diagnostic: "lifetime-dependent variable 'outer' escapes its scope"),
        EscapeCase(
            name: "a section of SRCU",
            lines: """
                func read(_ pointer: borrowing RCUPointer<Int>, _ domain: SRCUDomain) {
                    var outer: RCUReference<Int>?
                    domain.withReadSection { section in
                        var inner: RCUReference<Int>?
                LINE
                        _ = inner
                    }
                    _ = outer
                }
                """,
            good: "inner = pointer.load(in: section)",
            bad: "outer = pointer.load(in: section)",
            diagnostic: "lifetime-dependent variable 'outer' escapes its scope"),
        EscapeCase(
            name: "a section in an asynchronous function",
            lines: """
                func other() {}
                func read() async {
                LINE
                }
                """,
            good: "other()",
            bad: "ThreadRCU.withReadSection { _ in }",
            diagnostic: "is unavailable from asynchronous contexts"),
        EscapeCase(
            name: "writing through a reference",
            lines: """
                func read(_ pointer: borrowing RCUPointer<Int>) {
                    ThreadRCU.withReadSection { section in
                        guard let reference = pointer.load(in: section) else { return }
                LINE
                    }
                }
                """,
            good: "_ = reference.pointee",
            bad: "reference.pointee = 1",
            diagnostic: "cannot assign to property: 'pointee' is a get-only property")
    ]
}

@Suite struct EscapeTests {
    @Test(
        .enabled(if: Compiler.shared != nil, "needs swiftc in PATH, and the modules this test was built with"),
        arguments: EscapeCase.all)
    func doesNotCompile(_ escape: EscapeCase) throws {
        let compiler = try #require(Compiler.shared)
        let good = try compiler.compile("import RCU\n" + escape.lines.replacing("LINE", with: escape.good))
        #expect(good.status == 0, "the twin must compile: \(good.output)")
        let bad = try compiler.compile("import RCU\n" + escape.lines.replacing("LINE", with: escape.bad))
        #expect(bad.status != 0, "it compiles")
        let errors = bad.output.split(separator: "\n").filter { $0.contains("error: ") }
        #expect(errors.contains { $0.contains(escape.diagnostic) }, "another error: \(bad.output)")
    }
}

/// The Swift compiler, with the modules of this build.
private struct Compiler: Sendable {
    /// The folder of products that this test is one of.
    let products: String

    static let shared: Compiler? = {
        guard let program = realpath("/proc/self/exe", nil) else { return nil }
        defer { free(program) }
        let products = String(cString: program).split(separator: "/").dropLast().map { "/" + $0 }.joined()
        guard access(products + "/Modules/RCU.swiftmodule", R_OK) == 0 else { return nil }
        let compiler = Compiler(products: products)
        guard let version = try? compiler.run(["--version"]), version.status == 0 else { return nil }
        return compiler
    }()

    func compile(_ source: String) throws -> (status: Int32, output: String) {
        let path = "/tmp/martlet-escape-\(getpid())-\(UInt64.random(in: 0...UInt64.max)).swift"
        try write(source, to: path)
        defer { unlink(path) }
        // Not -typecheck: lifetimes are checked on the intermediate language.
        return try run(
            ["-emit-sil", "-o", "/dev/null", "-parse-as-library", "-swift-version", "6", "-diagnostic-style", "llvm"]
                + ["-I", products + "/Modules"] + moduleMaps.flatMap { ["-Xcc", "-fmodule-map-file=" + $0] } + [path])
    }

    /// The C modules that `RCU` and what it imports need.
    private var moduleMaps: [String] {
        [
            products + "/CHost.build/module.modulemap",
            products + "/../../checkouts/swift-system/Sources/CSystem/include/module.modulemap"
        ]
    }

    func run(_ arguments: [String]) throws -> (status: Int32, output: String) {
        var descriptors: [Int32] = [0, 0]
        try #require(pipe(&descriptors) == 0)
        defer { close(descriptors[0]) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, descriptors[1], 1)
        posix_spawn_file_actions_adddup2(&actions, descriptors[1], 2)
        posix_spawn_file_actions_addclose(&actions, descriptors[0])
        var words = (["swiftc"] + arguments).map { strdup($0) } + [nil]
        defer { words.forEach { free($0) } }
        var process = pid_t()
        let error = posix_spawnp(&process, "swiftc", &actions, nil, &words, environ)
        close(descriptors[1])
        try #require(error == 0)
        var output: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 4096)
        while true {
            let count = Glibc.read(descriptors[0], &buffer, buffer.count)
            if count <= 0 { break }
            output += buffer[..<count]
        }
        var status: Int32 = 0
        waitpid(process, &status, 0)
        return (status, String(decoding: output, as: UTF8.self))
    }

    private func write(_ text: String, to path: String) throws {
        let file = try OwnedDescriptor.open(path: path, flags: O_WRONLY | O_CREAT | O_EXCL)
        var text = text
        let count = try text.withUTF8 { try file.write(UnsafeRawBufferPointer($0)) }
        try #require(count == text.utf8.count)
    }
}
