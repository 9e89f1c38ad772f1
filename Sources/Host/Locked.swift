/// A value, and the lock that guards it.
///
/// Like the standard library's `Mutex`, but with a lock that the thread sanitizer sees, also where threads have to wait.
public struct Locked<Value: Sendable>: ~Copyable, @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: the value is reached with the lock held only.

    @usableFromInline let lock = FutexLock()
    @usableFromInline let value: UnsafeMutablePointer<Value>

    public init(_ value: Value) {
        self.value = .allocate(capacity: 1)
        self.value.initialize(to: value)
    }

    deinit {
        value.deinitialize(count: 1)
        value.deallocate()
    }

    /// Runs `body` with the lock held.
    @inlinable
    public borrowing func withLock<Result: ~Copyable, Failure: Error>(
        _ body: (inout Value) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        lock.lock()
        defer { lock.unlock() }
        return try body(&value.pointee)
    }
}
