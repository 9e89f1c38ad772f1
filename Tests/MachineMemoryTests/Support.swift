import AddressSpace
import Addressing
import Glibc
import KVMInterface
import Machine
import Synchronization
import SystemPackage

/// Ends the process with SIGALRM if `body` hangs: a time limit does not end a thread.
func withWatchdog<Result>(_ body: () throws -> Result) rethrows -> Result {
    Watchdog.begin()
    defer { Watchdog.end() }
    return try body()
}

private enum Watchdog {
    private static let users = Atomic<Int>(0)

    static func begin() {
        users.wrappingAdd(1, ordering: .relaxed)
        alarm(120)
    }

    static func end() {
        let left = users.wrappingSubtract(1, ordering: .relaxed).newValue
        alarm(left == 0 ? 0 : 120)
    }
}

/// Zeroed pages, unmapped by `unmap` or with the object.
final class Pages: @unchecked Sendable {
    let base: UnsafeMutableRawPointer
    let byteCount: Int
    private var isMapped = true

    init(_ count: Int) {
        byteCount = count * 4096
        base = mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    }

    deinit { unmap() }

    func unmap() {
        if isMapped { munmap(base, byteCount) }
        isMapped = false
    }

    func host(page: Int = 0) -> HostVirtualAddress { HostVirtualAddress(UInt(bitPattern: base) + UInt(page * 4096)) }
}

/// The error that `body` throws.
func errno(_ body: () throws(Errno) -> Void) -> Errno? {
    do throws(Errno) { try body() } catch { return error }
    return nil
}
