import CHost
import SystemPackage

/// Memory of the client that requests point to.
///
/// Each structure is copied once: nothing the client changes afterwards is seen. An address that is not mapped gives `EFAULT`
/// and no crash: ``HostFaults`` catches the copy's signal.
enum ClientMemory {
    static func copyIn(_ bytes: UnsafeMutableRawBufferPointer, from address: UInt) throws(Errno) {
        guard let destination = bytes.baseAddress, bytes.count > 0 else { return }
        try copy(to: destination, from: try pointer(address, byteCount: bytes.count), bytes.count)
    }

    static func copyOut(_ bytes: UnsafeRawBufferPointer, to address: UInt) throws(Errno) {
        guard let source = bytes.baseAddress, bytes.count > 0 else { return }
        try copy(to: try pointer(address, byteCount: bytes.count), from: source, bytes.count)
    }

    private static func copy(
        to destination: UnsafeMutableRawPointer, from source: UnsafeRawPointer, _ byteCount: Int
    ) throws(Errno) {
        // SAFETY: one side is a buffer of the caller, the other may be any address of user space.
        if martlet_guarded_copy(destination, source, byteCount) != 0 { throw .badAddress }
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
}
