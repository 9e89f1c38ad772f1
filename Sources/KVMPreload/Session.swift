import CHost
import CPreload
import Glibc
import Host
import KVMInterface
import RCU
import Synchronization
import SystemPackage
import UserspaceKVM

/// The core as the client of this process uses it, from its first `open("/dev/kvm")` on.
///
/// Never freed. A process that was forked starts a new one: threads and locks of its parent's are not there.
/// > Concurrency: every member may be used from any thread.
final class Session: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: `counts` is guarded by `lock`; the rest does not change.

    let backend: UserspaceKVM
    let trace: RequestTrace?
    let tally: RequestTally?
    private let lock = FutexLock()
    /// How many descriptors of the client stand for each object.
    private var counts: [KVMDescriptor: Int] = [:]
    /// The vCPUs that threads run which may be cancelled at any moment. Guarded by `lock`.
    private var cancellable: [UInt: KVMDescriptor] = [:]

    private static let place = Atomic<UInt>(0)
    private static let creation = FutexLock()

    private init(options: Options) {
        backend = UserspaceKVM(mmu: options.mmu)
        trace = options.logPath.flatMap { RequestTrace(path: $0) }
        tally = options.countsRequests ? RequestTally() : nil
        martlet_preload_watch_signals()
    }

    /// nil before the first use.
    static var existing: Session? {
        // ORDERING: acquire pairs with the release in `current`.
        let address = UnsafeRawPointer(bitPattern: place.load(ordering: .acquiring))
        return address.map { Unmanaged<Session>.fromOpaque($0).takeUnretainedValue() }
    }

    /// The process's session, made at the first use.
    static var current: Session {
        if let session = existing { return session }
        // Handlers of a fork that other libraries have may come here.
        return martlet_get_thread_forks() != 0 ? make() : creation.withLock(make)
    }

    private static func make() -> Session {
        if let session = existing { return session }
        let session = Session(options: Options(environment: { getenv($0).map { String(cString: $0) } }))
        place.store(UInt(bitPattern: Unmanaged.passRetained(session).toOpaque()), ordering: .releasing)
        if let tally = session.tally { tally.printAtExit() }
        return session
    }

    /// The process was forked: its descriptors of the device stay usable, those of machines and vCPUs do not.
    static func forget() {
        place.store(0, ordering: .releasing)
        for descriptor in 0..<martlet_preload_end() {
            guard let file = ClientFile(entry: martlet_preload_entry(descriptor)) else {
                // The library's own, of which the child will have others.
                _ = martlet_preload_exchange(descriptor, 0)
                continue
            }
            let kind: ClientFile.Kind
            switch file.kind {
            case .system, .inheritedSystem: kind = .inheritedSystem
            case .machine, .vcpu, .statistics, .foreign: kind = .foreign
            }
            _ = martlet_preload_exchange(descriptor, ClientFile(kind, KVMDescriptor(rawValue: -1)).entry)
        }
    }

    // MARK: Descriptors

    /// Makes an object of the core and gives the client a descriptor for it.
    ///
    /// The file comes first: what the core has published, as a vCPU, cannot be taken back.
    /// - Throws: as `ClientFile.makeFile`, and what `make` throws.
    func publish(
        _ kind: ClientFile.Kind, name: String, closesOnExec: Bool = true, _ make: () throws(Errno) -> KVMDescriptor
    ) throws(Errno) -> Int32 {
        let descriptor = try ClientFile.makeFile(kind, name: name, closesOnExec: closesOnExec)
        let object: KVMDescriptor
        do throws(Errno) {
            object = try make()
        } catch {
            close(descriptor)
            throw error
        }
        retain(object)
        if let old = ClientFile.enter(ClientFile(kind, object), at: descriptor), old.descriptor.rawValue >= 0 {
            release(old.descriptor)
        }
        return descriptor
    }

    func retain(_ object: KVMDescriptor) {
        lock.withLock { counts[object, default: 0] += 1 }
    }

    /// One descriptor less; with the last one the object is closed.
    func release(_ object: KVMDescriptor) {
        let isLast = lock.withLock { () -> Bool in
            guard let count = counts[object] else { return false }
            counts[object] = count == 1 ? nil : count - 1
            return count == 1
        }
        if isLast { backend.close(object) }
    }

    // MARK: Cancellation

    func enterCancellable(_ thread: UInt, _ vcpu: KVMDescriptor) { lock.withLock { cancellable[thread] = vcpu } }

    /// Whatever came too late for the run must not end the next one.
    func leaveCancellable(_ thread: UInt) {
        lock.withLock {
            if let vcpu = cancellable.removeValue(forKey: thread) { backend.withdrawInterrupt(vcpu) }
        }
    }

    /// Ends the run of a thread that was cancelled.
    func cancel(_ thread: UInt) {
        lock.withLock {
            if let vcpu = cancellable[thread] { backend.interrupt(vcpu) }
        }
    }

    // MARK: Forks

    /// Takes what a child needs to find free.
    static func beginFork() {
        creation.lock()
        SystemFile.beginFork()
        ClientSignals.beginFork()
        usesThreadRCU = existing != nil
        if usesThreadRCU { ThreadRCU.beginFork() }
        martlet_set_thread_forks(1)
    }

    static func endFork(isChild: Bool) {
        martlet_set_thread_forks(0)
        if usesThreadRCU { ThreadRCU.endFork(isChild: isChild) }
        ClientSignals.endFork()
        SystemFile.endFork()
        creation.unlock()
    }

    /// Guarded by `creation`.
    private nonisolated(unsafe) static var usesThreadRCU = false

    /// A descriptor of the device that the process inherited gets an object of its own.
    func adopt(_ descriptor: Int32) throws(Errno) -> ClientFile {
        let file = ClientFile(.system, try backend.openSystem())
        lock.withLock { counts[file.descriptor, default: 0] += 1 }
        _ = martlet_preload_exchange(descriptor, file.entry)
        return file
    }
}

/// What `martlet kvm` tells the library, in environment variables.
struct Options {
    var mmu = MMUKind.walk
    var logPath: String?
    var countsRequests = false

    /// - Parameter environment: the value of a variable; nil if it is not set.
    init(environment: (String) -> String?) {
        mmu = environment("MARTLET_KVM_MMU").flatMap { MMUKind(rawValue: $0) } ?? .walk
        logPath = environment("MARTLET_KVM_LOG")
        countsRequests = environment("MARTLET_KVM_STATS") != nil
    }
}
