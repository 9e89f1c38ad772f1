import Glibc
import Synchronization

// What threads of a test tell each other. All of it is relaxed: it must not order what is tested.

/// A counter of several threads.
public final class Counter: Sendable {
    private let count = Atomic<Int>(0)

    public init() {}

    public var value: Int { count.load(ordering: .relaxed) }
    public func add(_ number: Int) { count.wrappingAdd(number, ordering: .relaxed) }
    public func wait(for number: Int) { while value != number { sched_yield() } }
}

/// Set once.
public final class Flag: Sendable {
    private let flag = Atomic<Bool>(false)

    public init() {}

    public var isSet: Bool { flag.load(ordering: .relaxed) }
    public func set() { flag.store(true, ordering: .relaxed) }
}
