import CHost
import CPreload
import Glibc
import Host
import KVMInterface
import SystemPackage
import Translator
import UserspaceKVM

// What the C library's functions do for descriptors that are Martlet's; see CPreload.h.

@_cdecl("martlet_preload_open")
func openDevice(_ flags: Int32) -> Int32 {
    ClientSignals.enterCore()
    defer { ClientSignals.leaveCore() }
    let session = Session.current
    return answer(session, "open", nil, UInt(UInt32(bitPattern: flags))) { () throws(Errno) in
        guard flags & (O_CREAT | O_EXCL) != O_CREAT | O_EXCL else { throw .fileExists }
        guard flags & O_DIRECTORY == 0 else { throw .notDirectory }
        return try session.publish(.system, name: "kvm", closesOnExec: flags & O_CLOEXEC != 0) { () throws(Errno) in
            try session.backend.openSystem()
        }
    }
}

@_cdecl("martlet_preload_ioctl")
func performRequest(_ entry: UInt32, _ descriptor: Int32, _ request: UInt32, _ argument: UInt) -> Int32 {
    guard var file = ClientFile(entry: entry) else { return -EBADF }
    ClientSignals.enterCore()
    defer { ClientSignals.leaveCore() }
    let session = Session.current
    do throws(Errno) {
        switch file.kind {
        case .foreign: return -EIO
        case .inheritedSystem: file = try session.adopt(descriptor)
        default: break
        }
        if session.trace == nil, session.tally == nil { return try performKnown(session, file, request, argument) }
    } catch {
        return -error.rawValue
    }
    let start = MonotonicClock.nanoseconds()
    let result: Int32
    do throws(Errno) {
        result = try performKnown(session, file, request, argument)
    } catch {
        result = -error.rawValue
    }
    let nanoseconds = MonotonicClock.nanoseconds() &- start
    let exit = request == KVMRequest.run.rawValue && result == 0 ? exitReason(session, file) : nil
    session.tally?.count(request, result, exit, nanoseconds: nanoseconds)
    session.trace?.record(file, descriptor, request, argument, result, exit, nanoseconds: nanoseconds)
    return result
}

/// A request, and a descriptor for what it makes.
@inline(__always)
private func performKnown(
    _ session: Session, _ file: ClientFile, _ request: UInt32, _ argument: UInt
) throws(Errno) -> Int32 {
    switch request {
    case KVMRequest.run.rawValue: return try session.backend.ioctl(file.descriptor, request, argument)
    case KVMRequest.createVM.rawValue where file.kind == .system:
        return try publish(session, file, request, argument, as: .machine, name: "kvm-vm")
    case KVMRequest.createVCPU.rawValue where file.kind == .machine:
        return try publish(session, file, request, argument, as: .vcpu, name: "kvm-vcpu:\(argument)")
    case KVMRequest.getStatisticsDescriptor.rawValue:
        return try publish(session, file, request, argument, as: .statistics, name: "kvm-stats")
    default: return try session.backend.ioctl(file.descriptor, request, argument)
    }
}

@inline(never)
private func publish(
    _ session: Session, _ file: ClientFile, _ request: UInt32, _ argument: UInt, as kind: ClientFile.Kind, name: String
) throws(Errno) -> Int32 {
    // As the kernel's.
    try session.publish(kind, name: name, closesOnExec: kind != .statistics) { () throws(Errno) in
        KVMDescriptor(rawValue: try session.backend.ioctl(file.descriptor, request, argument))
    }
}

private func exitReason(_ session: Session, _ file: ClientFile) -> VCPUExitDescription? {
    guard let area = try? session.backend.mapRunArea(file.descriptor) else { return nil }
    defer { session.backend.unmapRunArea(area) }
    return VCPUExitDescription(area)
}

@_cdecl("martlet_preload_map")
func mapObject(
    _ entry: UInt32, _ address: UnsafeMutableRawPointer?, _ count: Int, _ protection: Int32, _ flags: Int32,
    _ offset: Int
) -> Int {
    guard let file = ClientFile(entry: entry) else { return -Int(EBADF) }
    ClientSignals.enterCore()
    defer { ClientSignals.leaveCore() }
    let session = Session.current
    do throws(Errno) {
        let mapped = try VCPUMapping(
            address: address, byteCount: count, protection: protection, flags: flags, offset: offset
        ).perform(on: file, session.backend)
        session.trace?.record(
            "mmap", file, "\(count) bytes at offset \(offset)", "0x" + String(UInt(bitPattern: mapped), radix: 16))
        return Int(bitPattern: mapped)
    } catch {
        session.trace?.record("mmap", file, "\(count) bytes at offset \(offset)", "\(error)")
        return -Int(error.rawValue)
    }
}

@_cdecl("martlet_preload_read")
func readObject(
    _ entry: UInt32, _ descriptor: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ offset: Int
) -> Int {
    guard let file = ClientFile(entry: entry) else { return -Int(EBADF) }
    guard file.kind == .statistics else { return -Int(EINVAL) }
    ClientSignals.enterCore()
    defer { ClientSignals.leaveCore() }
    let start = offset >= 0 ? offset : lseek(descriptor, 0, SEEK_CUR)
    guard start >= 0 else { return -Int(errno) }
    do throws(Errno) {
        let result = try Session.current.backend.readStatistics(
            file.descriptor, at: start, to: UInt(bitPattern: buffer), byteCount: count)
        if offset < 0 { lseek(descriptor, result, SEEK_CUR) }
        return result
    } catch {
        return -Int(error.rawValue)
    }
}

@_cdecl("martlet_preload_retain")
func retainObject(_ entry: UInt32) {
    guard let file = ClientFile(entry: entry), file.descriptor.rawValue >= 0 else { return }
    ClientSignals.enterCore()
    defer { ClientSignals.leaveCore() }
    Session.existing?.retain(file.descriptor)
}

@_cdecl("martlet_preload_release")
func releaseObject(_ entry: UInt32) {
    guard let file = ClientFile(entry: entry), file.descriptor.rawValue >= 0 else { return }
    ClientSignals.enterCore()
    defer { ClientSignals.leaveCore() }
    Session.existing?.trace?.record("close", file, "", "")
    Session.existing?.release(file.descriptor)
}

@_cdecl("martlet_preload_enter_cancellable")
func enterCancellable(_ entry: UInt32, _ thread: UInt) {
    guard let file = ClientFile(entry: entry), file.kind == .vcpu else { return }
    ClientSignals.enterCore()
    defer { ClientSignals.leaveCore() }
    Session.existing?.enterCancellable(thread, file.descriptor)
}

@_cdecl("martlet_preload_leave_cancellable")
func leaveCancellable(_ thread: UInt) {
    ClientSignals.enterCore()
    defer { ClientSignals.leaveCore() }
    Session.existing?.leaveCancellable(thread)
}

@_cdecl("martlet_preload_cancelled")
func cancelThread(_ thread: UInt) {
    ClientSignals.enterCore()
    defer { ClientSignals.leaveCore() }
    Session.existing?.cancel(thread)
}

@_cdecl("martlet_preload_before_fork")
func beginFork() {
    ClientSignals.enterCore()
    Session.beginFork()
}

@_cdecl("martlet_preload_after_fork")
func endFork(_ isChild: Int32) {
    Session.endFork(isChild: isChild != 0)
    ClientSignals.leaveCore()
}

@_cdecl("martlet_preload_forked")
func forkedProcess() { Session.forget() }

@_cdecl("martlet_preload_started")
func startedProgram() { VirtualizationFlag.show() }

@_cdecl("martlet_preload_admit_faults")
func admitFaults(_ set: UnsafeMutablePointer<sigset_t>) { HostFaults.remove(from: set) }

@_cdecl("martlet_preload_replace_action")
func replaceAction(
    _ signal: Int32, _ action: UnsafePointer<sigaction>?, _ old: UnsafeMutablePointer<sigaction>?
) -> Int32 { -ClientSignals.replaceAction(signal, action, old) }

/// Runs a call and traces it.
private func answer(
    _ session: Session, _ name: String, _ file: ClientFile?, _ argument: UInt, _ body: () throws(Errno) -> Int32
) -> Int32 {
    let result: Int32
    do throws(Errno) { result = try body() } catch { result = -error.rawValue }
    session.trace?.record(name, file, "0x" + String(argument, radix: 16), RequestTrace.describe(result))
    return result
}
