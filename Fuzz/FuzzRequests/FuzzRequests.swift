import CFuzzer
import RequestCase

/// Fuzzes the core's requests; arguments are libFuzzer's.
@main struct FuzzRequests {
    static func main() {
        // The first core installs the translator's signal handlers.
        RequestCase.run(UnsafeRawBufferPointer(start: nil, count: 0))
        fuzzer_catch_crashes()
        var count = CommandLine.argc
        var arguments: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>? = CommandLine.unsafeArgv
        _ = LLVMFuzzerRunDriver(&count, &arguments) { data, byteCount in
            RequestCase.run(UnsafeRawBufferPointer(start: data, count: byteCount))
            return 0
        }
    }
}
