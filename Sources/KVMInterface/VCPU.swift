import CHost
import SystemPackage

/// A virtual CPU.
///
/// > Concurrency: one thread at a time, as a rule the one that runs it; `immediateExit` may be set by any.
public final class VCPU: @unchecked Sendable {
    public let backend: any KVMBackend
    public let descriptor: KVMDescriptor
    public let id: UInt32
    public let runArea: RunArea

    /// Takes over `descriptor` and the mapping of its run area.
    public init(
        backend: any KVMBackend, descriptor: KVMDescriptor, id: UInt32, runArea: UnsafeMutableRawBufferPointer
    ) {
        self.backend = backend
        self.descriptor = descriptor
        self.id = id
        self.runArea = RunArea(runArea)
    }

    deinit {
        backend.unmapRunArea(runArea.bytes)
        backend.close(descriptor)
    }

    /// Runs guest code until something needs the client. The corresponding C request is `KVM_RUN`.
    ///
    /// The answer to an I/O or MMIO exit is left in the exit's data before the next run. Other state may be looked at only
    /// after the exit has been completed: run once more with ``immediateExit`` set.
    /// - Throws: `Errno.badAddress` if guest memory could not be accessed. `EINTR` is `.interrupted`.
    public func run() throws(Errno) -> VCPUExit {
        while true {
            do {
                try backend.call(descriptor, .run)
                return runArea.exit
            } catch Errno.interrupted {
                return .interrupted
            } catch Errno.resourceTemporarilyUnavailable {
                // A vCPU that waited to be started has been: nothing is there for the client to do.
            }
        }
    }

    /// Makes the current run, or else the next one, return `.interrupted`: sets ``immediateExit`` and sees to it that it is
    /// noticed. Whoever runs the vCPU resets the flag.
    /// > Concurrency: any thread.
    public func requestExit() {
        immediateExit = true
        backend.kick(descriptor)
    }

    /// Makes the next run return `.interrupted` as soon as a pending I/O or MMIO exit is completed.
    /// > Concurrency: any thread.
    public var immediateExit: Bool {
        get { runArea.immediateExit }
        set { runArea.immediateExit = newValue }
    }
}
