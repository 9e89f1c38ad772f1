import Glibc
import RCU

/// Read sections of any thread: vCPUs, clients that raise interrupts, timers.
///
/// All vCPU tables of the process share one RCU domain, in which each thread has a reader of its own that is off-line outside
/// read sections. So reading writes no shared memory, a section ends by itself, and no writer waits for a vCPU that runs.
enum ThreadReader {
    /// Where tables send what they replaced.
    static let domain = RCUDomain()

    /// The thread-local slot of this thread's reader, which ends with the thread.
    private static let key: pthread_key_t = {
        var key = pthread_key_t()
        let error = pthread_key_create(&key) { pointer in
            // SAFETY: the slot holds the box that `current` retained.
            if let pointer { Unmanaged<ReaderBox>.fromOpaque(pointer).release() }
        }
        precondition(error == 0, "no thread-local slot is left: errno \(error)")
        return key
    }()

    private static var current: ReaderBox {
        if let pointer = pthread_getspecific(key) {
            // SAFETY: the slot holds the box that was retained below.
            return Unmanaged<ReaderBox>.fromOpaque(pointer).takeUnretainedValue()
        }
        let box = ReaderBox(domain)
        pthread_setspecific(key, Unmanaged.passRetained(box).toOpaque())
        return box
    }

    /// Runs `body`, in which pointers of the domain may be read and used. Sections nest.
    static func withReadSection<Result>(_ body: () -> Result) -> Result {
        let box = current
        guard !box.reader.isOnline else { return body() }
        box.reader.online()
        defer { box.reader.offline() }
        return body()
    }
}

private final class ReaderBox {
    let reader: RCUReader
    init(_ domain: RCUDomain) { reader = RCUReader(domain) }
}
