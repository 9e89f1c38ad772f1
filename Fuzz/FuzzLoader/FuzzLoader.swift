import CFuzzer
import LoaderCase

/// Fuzzes the guest loader; arguments are libFuzzer's.
@main struct FuzzLoader {
    private static let fixture = LoaderCase()

    static func main() {
        var count = CommandLine.argc
        var arguments: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>? = CommandLine.unsafeArgv
        _ = LLVMFuzzerRunDriver(&count, &arguments) { data, byteCount in
            FuzzLoader.fixture.run(UnsafeRawBufferPointer(start: data, count: byteCount))
            return 0
        }
    }
}
