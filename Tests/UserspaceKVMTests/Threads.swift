import Glibc
import Host
import Synchronization

/// Runs `body` on `count` threads and `meanwhile` on this one, all from the same moment, and waits for all.
func withThreads(
    _ count: Int, _ body: @escaping @Sendable (Int) -> Void, meanwhile: () throws -> Void = {}
) throws {
    Watchdog.begin()
    defer { Watchdog.end() }
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

/// Ends the process with SIGALRM when tests that could hang make no progress: a time limit does not end a thread.
enum Watchdog {
    private static let users = Atomic<Int>(0)
    private static let seconds: UInt32 = 120

    static func begin() {
        users.wrappingAdd(1, ordering: .relaxed)
        alarm(seconds)
    }

    static func end() {
        let left = users.wrappingSubtract(1, ordering: .relaxed).newValue
        alarm(left == 0 ? 0 : seconds)
    }
}
