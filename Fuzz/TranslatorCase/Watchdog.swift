import Glibc
import Synchronization
import Translator

/// A thread that makes a processor leave guest code once its time is up.
final class Watchdog: Sendable {
    static let shared = Watchdog()

    private struct Watched {
        // The processor outlives its watch.
        nonisolated(unsafe) unowned let processor: Processor
        let deadline: UInt64
    }

    private let watched = Mutex<Watched?>(nil)

    private init() {
        var thread = pthread_t()
        let result = pthread_create(&thread, nil, { _ in Watchdog.shared.loop() }, nil)
        precondition(result == 0, "no thread for the watchdog")
        pthread_detach(thread)
    }

    private func loop() -> Never {
        while true {
            usleep(1000)
            watched.withLock {
                if let current = $0, TranslatorCase.now() >= current.deadline { current.processor.raiseAttention() }
            }
        }
    }

    func watch(_ processor: Processor, until deadline: UInt64) {
        let entry = Watched(processor: processor, deadline: deadline)
        watched.withLock { $0 = entry }
    }

    func stop() { watched.withLock { $0 = nil } }
}
