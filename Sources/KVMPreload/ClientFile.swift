import CHost
import CPreload
import Glibc
import Host
import KVMInterface
import SystemPackage

/// What a descriptor of the client stands for, as the table of descriptors holds it.
///
/// One word: kind and number of the object, never 0.
struct ClientFile: Hashable {
    enum Kind: UInt32 {
        case system
        case machine
        case vcpu
        case statistics
        /// The device, opened before the process was forked from one that used it.
        case inheritedSystem
        /// An object that belongs to the process that this one was forked from.
        case foreign
    }

    let kind: Kind
    /// Meaningless if the kind is `inheritedSystem` or `foreign`.
    let descriptor: KVMDescriptor

    init(_ kind: Kind, _ descriptor: KVMDescriptor) {
        self.kind = kind
        self.descriptor = descriptor
    }

    /// nil for 0.
    init?(entry: UInt32) {
        guard entry != 0, let kind = Kind(rawValue: entry & 7) else { return nil }
        self.init(kind, KVMDescriptor(rawValue: Int32(entry >> 3) - 1))
    }

    var entry: UInt32 { UInt32(bitPattern: descriptor.rawValue + 1) << 3 | kind.rawValue }

    /// Creates a descriptor for the object.
    ///
    /// It is a file of its own that can do nothing, so `dup`, `poll`, `fstat` and `close` work by themselves.
    /// - Throws: `EMFILE`, `ENFILE`, `ENOMEM`.
    static func open(_ file: ClientFile, name: String, closesOnExec: Bool = true) throws(Errno) -> Int32 {
        let isSystem = file.kind == .system
        let descriptor =
            isSystem ? SystemFile.duplicate(name, closesOnExec: closesOnExec) : martlet_preload_make_file(name)
        guard descriptor >= 0 else { throw Errno(rawValue: -descriptor) }
        guard descriptor < MARTLET_PRELOAD_DESCRIPTORS else {
            close(descriptor)
            throw .tooManyOpenFiles
        }
        if !closesOnExec, !isSystem { _ = fcntl(descriptor, F_SETFD, 0) }
        _ = martlet_preload_exchange(descriptor, file.entry)
        return descriptor
    }
}

/// The file that every descriptor of the device stands for: clients open the device for each question, and a file is slow to
/// make.
private enum SystemFile {
    private static let firstDistant: Int32 = 900
    private static let lock = FutexLock()
    /// Guarded by `lock`, with what `fstat` says of it: a client may close descriptors that it does not know.
    private nonisolated(unsafe) static var descriptor: Int32 = -1
    private nonisolated(unsafe) static var status = stat()

    /// - Returns: a descriptor, or the negated error number.
    static func duplicate(_ name: String, closesOnExec: Bool) -> Int32 {
        lock.withLock {
            var now = stat()
            if descriptor < 0 || fstat(descriptor, &now) != 0 || now.st_ino != status.st_ino
                || now.st_dev != status.st_dev
            {
                descriptor = martlet_preload_make_file(name)
                guard descriptor >= 0, fstat(descriptor, &status) == 0 else { return descriptor }
                // Out of the way: clients know the numbers that they get.
                let distant = fcntl(descriptor, F_DUPFD_CLOEXEC, firstDistant)
                if distant >= 0 {
                    close(descriptor)
                    descriptor = distant
                }
            }
            let duplicate = fcntl(descriptor, closesOnExec ? F_DUPFD_CLOEXEC : F_DUPFD, 0)
            return duplicate >= 0 ? duplicate : -errno
        }
    }
}
