import CHost
import Glibc
import SystemPackage

/// Memory of the client that requests point to.
///
/// Each structure is copied once, by the kernel: an address that is not mapped gives `EFAULT` instead of a crash, and
/// nothing the client changes afterwards is seen. Where the kernel does not allow that copy (a strict sandbox), it is
/// made directly, and only the null page is caught.
enum ClientMemory {
    static func copyIn(_ bytes: UnsafeMutableRawBufferPointer, from address: UInt) throws(Errno) {
        guard let destination = bytes.baseAddress, bytes.count > 0 else { return }
        let source = try pointer(address, byteCount: bytes.count)
        // SAFETY: the kernel checks `source`; `destination` is the caller's buffer.
        let error = martlet_copy_checked(destination, source, bytes.count)
        if error == 0 { return }
        guard isRefused(error) else { throw .badAddress }
        destination.copyMemory(from: source, byteCount: bytes.count)
    }

    static func copyOut(_ bytes: UnsafeRawBufferPointer, to address: UInt) throws(Errno) {
        guard let source = bytes.baseAddress, bytes.count > 0 else { return }
        let destination = try pointer(address, byteCount: bytes.count)
        // SAFETY: the kernel checks `destination`, and only reads `source`.
        let error = martlet_copy_out_checked(destination, source, bytes.count)
        if error == 0 { return }
        guard isRefused(error) else { throw .badAddress }
        destination.copyMemory(from: source, byteCount: bytes.count)
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
        try elements.withUnsafeMutableBufferPointer { (buffer) throws(Errno) in
            try copyIn(UnsafeMutableRawBufferPointer(buffer), from: address)
        }
        return elements
    }

    static func copyOut<T>(_ elements: [T], to address: UInt) throws(Errno) {
        try elements.withUnsafeBufferPointer { (buffer) throws(Errno) in
            try copyOut(UnsafeRawBufferPointer(buffer), to: address)
        }
    }

    private static func pointer(_ address: UInt, byteCount: Int) throws(Errno) -> UnsafeMutableRawPointer {
        let (end, overflow) = address.addingReportingOverflow(UInt(byteCount))
        guard address >= 4096, !overflow, end <= 1 << 56, let pointer = UnsafeMutableRawPointer(bitPattern: address)
        else { throw .badAddress }
        return pointer
    }

    private static func isRefused(_ error: Int32) -> Bool { error == EPERM || error == ENOSYS || error == EACCES }
}
