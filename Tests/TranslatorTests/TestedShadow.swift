import Glibc
import GuestMemory
import MMU
import RCU
import Translator

/// The shadow pages of a test's machine, used as the environment's `MARTLET_MMU` says.
final class TestedShadow {
    private let domain = RCUDomain()
    private let reader: RCUReader

    init() {
        reader = RCUReader(domain)
        reader.online()
    }

    deinit { reader.offline() }

    func makeProcessor(
        _ memory: GuestMemory, _ cache: TranslationCache, _ platform: any ProcessorPlatform
    ) throws -> Processor {
        let kind = getenv("MARTLET_MMU").flatMap { MMUKind(rawValue: String(cString: $0)) } ?? .walk
        // The processor never passes a quiescent state, so nothing is freed. Tracking would end `run()`.
        let shadow = ShadowMMU(memory: memory, domain: domain, pageLimit: 4096, trackingThreshold: .max) {
            cache.isMarked($0)
        }
        return try Processor(memory: memory, cache: cache, shadow: shadow, mmu: kind, platform: platform)
    }
}
