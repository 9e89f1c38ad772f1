import Glibc
import Host
import Synchronization

/// Steps that threads take in turn.
final class Stage: Sendable {
    private let stage = Atomic<Int>(0)
    let readerLeft = Atomic<Bool>(false)
    let sawReaderLeave = Atomic<Bool>(false)
    var value: Int { stage.load(ordering: .relaxed) }
    func set(_ number: Int) { stage.store(number, ordering: .relaxed) }
    func wait(for number: Int) { while value < number { sched_yield() } }
}
