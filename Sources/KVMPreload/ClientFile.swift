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

    /// Creates a file for an object that is still to be made; see ``enter(_:at:)``.
    ///
    /// It is one that can do nothing, so `dup`, `poll`, `fstat` and `close` work by themselves.
    /// - Throws: `EMFILE`, `ENFILE`, `ENOMEM`.
    static func makeFile(_ kind: Kind, name: String, closesOnExec: Bool) throws(Errno) -> Int32 {
        let descriptor =
            kind == .system ? SystemFile.duplicate(name, closesOnExec: closesOnExec) : martlet_preload_make_file(name)
        guard descriptor >= 0 else { throw Errno(rawValue: -descriptor) }
        guard descriptor < MARTLET_PRELOAD_DESCRIPTORS else {
            close(descriptor)
            throw .tooManyOpenFiles
        }
        if !closesOnExec, kind != .system { _ = fcntl(descriptor, F_SETFD, 0) }
        return descriptor
    }

    /// Lets a file's descriptor stand for an object.
    /// - Returns: what the number stood for, if the client closed it by a way that does not lead here.
    static func enter(_ file: ClientFile, at descriptor: Int32) -> ClientFile? {
        ClientFile(entry: martlet_preload_exchange(descriptor, file.entry))
    }
}

/// The file that every descriptor of the device stands for: clients open the device for each question, and a file is slow to
/// make.
enum SystemFile {
    /// Where the library's own descriptor is to be: out of the way, as clients know the numbers that they get.
    private static let firstNumber: Int32 = 900
    private static let lock = FutexLock()
    /// Guarded by `lock`, with what `fstat` says of it: a client may close by a way that does not lead here.
    private nonisolated(unsafe) static var descriptor: Int32 = -1
    private nonisolated(unsafe) static var status = stat()

    /// - Returns: a descriptor, or the negated error number.
    static func duplicate(_ name: String, closesOnExec: Bool) -> Int32 {
        let command = closesOnExec ? F_DUPFD_CLOEXEC : F_DUPFD
        // Handlers of a fork that other libraries have may come here.
        return martlet_get_thread_forks() != 0
            ? duplicate(name, command) : lock.withLock { duplicate(name, command) }
    }

    private static func duplicate(_ name: String, _ command: Int32) -> Int32 {
        guard isOpen || make(name) else { return -errno }
        let duplicate = fcntl(descriptor, command, 0)
        return duplicate >= 0 ? duplicate : -errno
    }

    private static var isOpen: Bool {
        var now = stat()
        return descriptor >= 0 && fstat(descriptor, &now) == 0 && now.st_ino == status.st_ino
            && now.st_dev == status.st_dev
    }

    private static func make(_ name: String) -> Bool {
        descriptor = martlet_preload_make_file(name)
        guard descriptor >= 0 else {
            errno = -descriptor
            return false
        }
        let distant = fcntl(descriptor, F_DUPFD_CLOEXEC, firstNumber)
        if distant >= 0 {
            close(descriptor)
            descriptor = distant
        }
        martlet_note_descriptor(descriptor, true)
        return fstat(descriptor, &status) == 0
    }

    /// Around a fork: the child finds the lock free.
    static func beginFork() { lock.lock() }
    static func endFork() { lock.unlock() }
}
