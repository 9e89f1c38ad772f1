import Glibc
import SystemPackage

/// Memory of the client that requests point to.
///
/// Each structure is copied once, by the kernel: an address that is not mapped gives `EFAULT` instead of a crash, and
/// nothing the client changes afterwards is seen. Where the kernel does not allow that copy (a strict sandbox), it is
/// made directly, and only the null page is caught.
enum ClientMemory {
    static func copyIn(_ bytes: UnsafeMutableRawBufferPointer, from address: UInt) throws(Errno) {
        guard bytes.count > 0 else { return }
        let source = try pointer(address, byteCount: bytes.count)
        var local = iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
        var remote = iovec(iov_base: source, iov_len: bytes.count)
        // SAFETY: the kernel checks `remote`; `local` is the caller's buffer.
        let count = process_vm_readv(getpid(), &local, 1, &remote, 1, 0)
        if count == bytes.count { return }
        guard count < 0, isRefused(errno) else { throw .badAddress }
        bytes.baseAddress!.copyMemory(from: source, byteCount: bytes.count)
    }

    static func copyOut(_ bytes: UnsafeRawBufferPointer, to address: UInt) throws(Errno) {
        guard bytes.count > 0 else { return }
        let destination = try pointer(address, byteCount: bytes.count)
        var local = iovec(iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
        var remote = iovec(iov_base: destination, iov_len: bytes.count)
        // SAFETY: the kernel checks `remote`, and only reads `local`.
        let count = process_vm_writev(getpid(), &local, 1, &remote, 1, 0)
        if count == bytes.count { return }
        guard count < 0, isRefused(errno) else { throw .badAddress }
        destination.copyMemory(from: bytes.baseAddress!, byteCount: bytes.count)
    }

    /// Copies a structure of the ABI, which is trivial even where Swift cannot see it.
    static func copyIn<T>(_ value: inout T, from address: UInt) throws(Errno) {
        try withUnsafeMutableBytes(of: &value) { (bytes) throws(Errno) in try copyIn(bytes, from: address) }
    }

    static func copyOut<T>(_ value: T, to address: UInt) throws(Errno) {
        var copy = value
        try withUnsafeMutableBytes(of: &copy) { (bytes) throws(Errno) in
            try copyOut(UnsafeRawBufferPointer(bytes), to: address)
        }
    }

    /// Copies `count` elements that lie one behind the other.
    ///
    /// - Parameter placeholder: a value to fill the array with before the copy.
    static func copyIn<T>(count: Int, of placeholder: T, from address: UInt) throws(Errno) -> [T] {
        var elements = [T](repeating: placeholder, count: count)
        try elements.withUnsafeMutableBytes { (bytes) throws(Errno) in try copyIn(bytes, from: address) }
        return elements
    }

    static func copyOut<T>(_ elements: [T], to address: UInt) throws(Errno) {
        try elements.withUnsafeBytes { (bytes) throws(Errno) in try copyOut(bytes, to: address) }
    }

    private static func pointer(_ address: UInt, byteCount: Int) throws(Errno) -> UnsafeMutableRawPointer {
        let (end, overflow) = address.addingReportingOverflow(UInt(byteCount))
        guard address >= 4096, !overflow, end <= 1 << 56, let pointer = UnsafeMutableRawPointer(bitPattern: address)
        else { throw .badAddress }
        return pointer
    }

    private static func isRefused(_ error: Int32) -> Bool { error == EPERM || error == ENOSYS || error == EACCES }
}
