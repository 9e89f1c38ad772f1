import CHost
import Glibc
import Synchronization

/// Sleeping on, and waking sleepers of, a 32-bit word in memory.
///
/// The word is an `Atomic<UInt32>` to those who change it. A wake-up may be spurious: callers re-check in a loop.
public enum Futex {
    /// Why `wait` returned.
    public enum Outcome: Sendable {
        /// Woken, or woken spuriously.
        case woken
        /// The word did not hold the expected value; nothing slept.
        case changed
        /// The deadline passed.
        case timedOut
        /// A signal handler ran on this thread.
        case interrupted
    }

    /// Sleeps while the word holds `expected`. The C call is `futex(FUTEX_WAIT_BITSET)`.
    ///
    /// - Parameter word: 4-byte aligned.
    /// - Parameter deadlineNanoseconds: on `MonotonicClock`; nil waits without bound.
    /// - Parameter processPrivate: false if the word lies in memory shared with another process.
    public static func wait(
        on word: UnsafeMutableRawPointer, while expected: UInt32, deadlineNanoseconds: UInt64? = nil,
        processPrivate: Bool = true
    ) -> Outcome {
        let error: Int32
        if let deadlineNanoseconds {
            var deadline = MonotonicClock.moment(nanoseconds: deadlineNanoseconds)
            error = martlet_futex_wait(word, expected, &deadline, processPrivate)
        } else {
            error = martlet_futex_wait(word, expected, nil, processPrivate)
        }
        switch error {
        case 0: return .woken
        case EAGAIN: return .changed
        case ETIMEDOUT: return .timedOut
        case EINTR: return .interrupted
        default: fatalError("futex wait on \(word) failed: errno \(error)")
        }
    }

    /// Wakes up to `count` sleepers and returns how many. The C call is `futex(FUTEX_WAKE)`.
    @discardableResult
    public static func wake(
        _ word: UnsafeMutableRawPointer, count: Int32 = .max, processPrivate: Bool = true
    ) -> Int {
        Int(martlet_futex_wake(word, count, processPrivate))
    }
}

/// A 32-bit atomic word at a stable address on its own cache line, to sleep on.
public struct FutexWord: ~Copyable, @unchecked Sendable {
    /// The word's address; valid while the owner lives.
    public let address: UnsafeMutableRawPointer

    public init(_ value: UInt32 = 0) {
        address = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 64)
        address.initializeMemory(as: UInt32.self, repeating: value, count: 16)
    }

    deinit { address.deallocate() }

    /// The word as an atomic.
    @inline(__always)
    public var atomic: UnsafeMutablePointer<Atomic<UInt32>> {
        // SAFETY: `Atomic<UInt32>` has the size and layout of `UInt32`; the memory lives as long as self.
        address.assumingMemoryBound(to: Atomic<UInt32>.self)
    }

    /// Sleeps while the word holds `expected`; see `Futex.wait`.
    @discardableResult
    public borrowing func wait(while expected: UInt32, deadlineNanoseconds: UInt64? = nil) -> Futex.Outcome {
        Futex.wait(on: address, while: expected, deadlineNanoseconds: deadlineNanoseconds)
    }

    /// Wakes up to `count` sleepers and returns how many.
    @discardableResult
    public borrowing func wake(count: Int32 = .max) -> Int { Futex.wake(address, count: count) }
}
