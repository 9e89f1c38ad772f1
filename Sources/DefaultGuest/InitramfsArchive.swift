/// A cpio archive in the format the kernel unpacks as its first file system ("newc").
///
/// Everything belongs to root, and times are 0, so that the same contents give the same bytes.
///
/// > Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
public struct InitramfsArchive {
    /// The archive so far; complete once ``finish()`` was called.
    public private(set) var bytes: [UInt8] = []
    private var nextInode: UInt32 = 1
    private var directories: Set<String> = []

    public init() {}

    /// Adds a directory and those above it, unless they are there.
    ///
    /// - Parameter path: relative to the root, without a leading slash.
    public mutating func addDirectory(_ path: String) {
        guard !path.isEmpty, !directories.contains(path) else { return }
        addParents(of: path)
        directories.insert(path)
        add(path, mode: 0o040755)
    }

    public mutating func addFile(_ path: String, permissions: UInt32, contents: [UInt8]) {
        addParents(of: path)
        add(path, mode: 0o100000 | permissions, contents: contents)
    }

    public mutating func addSymbolicLink(_ path: String, to target: String) {
        addParents(of: path)
        add(path, mode: 0o120777, contents: Array(target.utf8))
    }

    public mutating func addCharacterDevice(_ path: String, permissions: UInt32, major: UInt32, minor: UInt32) {
        addParents(of: path)
        add(path, mode: 0o020000 | permissions, device: (major, minor))
    }

    /// Adds the trailer; nothing may be added after it.
    public mutating func finish() {
        nextInode = 0
        add("TRAILER!!!", mode: 0)
    }

    private mutating func addParents(of path: String) {
        if let slash = path.lastIndex(of: "/") { addDirectory(String(path[..<slash])) }
    }

    private mutating func add(
        _ path: String, mode: UInt32, contents: [UInt8] = [], device: (major: UInt32, minor: UInt32) = (0, 0)
    ) {
        let isTrailer = nextInode == 0
        let isDirectory = mode & 0o170000 == 0o040000
        let name = Array(path.utf8) + [0]
        let fields: [UInt32] = [
            nextInode, mode, 0, 0, isDirectory ? 2 : 1, 0, UInt32(contents.count),
            0, 0, device.major, device.minor, UInt32(name.count), 0
        ]
        bytes += Array("070701".utf8)
        for field in fields { bytes += Self.hexadecimal(field) }
        bytes += name
        pad()
        bytes += contents
        pad()
        if !isTrailer { nextInode += 1 }
    }

    private mutating func pad() {
        while bytes.count % 4 != 0 { bytes.append(0) }
    }

    private static func hexadecimal(_ value: UInt32) -> [UInt8] {
        let digits = String(value, radix: 16, uppercase: true)
        return Array((String(repeating: "0", count: 8 - digits.count) + digits).utf8)
    }
}
