import Glibc
import Host
import Synchronization

/// Runs `body` on `count` threads and `meanwhile` on this one, all from the same moment, and waits for all.
func withThreads(
    _ count: Int, _ body: @escaping @Sendable (Int) -> Void, meanwhile: () throws -> Void = {}
) throws {
    let barrier = Barrier(count + 1)
    var threads: [HostThread] = []
    for index in 0..<count {
        threads.append(
            try HostThread(name: "test-\(index)") {
                barrier.wait()
                body(index)
            })
    }
    barrier.wait()
    let result = Result { try meanwhile() }
    for thread in threads { thread.join() }
    try result.get()
}

/// Lets nobody through before all have come.
private final class Barrier: Sendable {
    private let missing: Atomic<Int>

    init(_ count: Int) { missing = Atomic(count) }

    func wait() {
        missing.wrappingSubtract(1, ordering: .acquiringAndReleasing)
        while missing.load(ordering: .acquiring) > 0 { sched_yield() }
    }
}
