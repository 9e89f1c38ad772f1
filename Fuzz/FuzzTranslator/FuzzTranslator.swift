import CFuzzer
import TranslatorCase

/// Fuzzes decoder and translator; arguments are libFuzzer's.
@main struct FuzzTranslator {
    static func main() {
        // The first machine installs the translator's signal handlers.
        TranslatorCase.run(UnsafeRawBufferPointer(start: nil, count: 0))
        fuzzer_catch_crashes()
        var count = CommandLine.argc
        var arguments: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>? = CommandLine.unsafeArgv
        _ = LLVMFuzzerRunDriver(&count, &arguments) { data, byteCount in
            TranslatorCase.run(UnsafeRawBufferPointer(start: data, count: byteCount))
            return 0
        }
    }
}
