import ArgumentParser
import KVMInterface
import KernelKVM
import SystemPackage
import UserspaceKVM

/// The core that guests run on, as the user asks for it.
enum Accelerator: String, CaseIterable, ExpressibleByArgument {
    /// The kernel's if it runs guests at the processor's speed, otherwise user space.
    case auto
    /// Martlet's own.
    case user
    /// The kernel's.
    case kernel
}

extension MMUKind: ExpressibleByArgument {}

/// A core that was chosen, and why.
struct Backend {
    let system: KVMSystem
    /// For the user, without a line break.
    let reason: String

    private static let device = "/dev/kvm"

    /// Chooses the core for a machine of up to `processorCount` vCPUs.
    ///
    /// - Parameter mmu: how Martlet's own translates the guest's accesses.
    static func choose(_ accelerator: Accelerator, processorCount: Int, mmu: MMUKind = .walk) throws -> Backend {
        switch accelerator {
        case .user: return try userSpace(mmu, because: "asked for")
        case .kernel:
            switch KernelCandidate(isThorough: true) {
            case .usable(let system, let speed):
                try check(system, processorCount)
                return Backend(system: system, reason: "kernel: \(device) \(describe(speed))")
            case .missing(let problem), .unusable(let problem):
                throw CommandFailure.hostFailure(
                    "\(device) \(problem); leave out '--accel kernel', or give '--accel user', to run without it")
            }
        case .auto:
            switch KernelCandidate(isThorough: false) {
            case .usable(let system, let speed) where speed.isNative:
                guard maximumProcessorCount(system) >= processorCount else {
                    return try userSpace(mmu, because: "\(device) has no machines of \(processorCount) vCPUs")
                }
                return Backend(system: system, reason: "kernel: \(device) \(describe(speed))")
            case .usable(_, let speed): return try userSpace(mmu, because: "\(device) \(describe(speed))")
            case .missing(let problem), .unusable(let problem):
                return try userSpace(mmu, because: "\(device) \(problem)")
            }
        }
    }

    /// What each way of choosing gives here, for `martlet doctor`.
    static func report() -> [(accelerator: Accelerator, outcome: String)] {
        Accelerator.allCases.map { accelerator in
            do {
                return (accelerator, try choose(accelerator, processorCount: 1).reason)
            } catch let failure as CommandFailure {
                return (accelerator, "no: \(failure.message.prefix { $0 != ";" })")
            } catch {
                return (accelerator, "no: \(error)")
            }
        }
    }

    private static func userSpace(_ mmu: MMUKind, because reason: String) throws -> Backend {
        do {
            return Backend(system: try KVMSystem(backend: UserspaceKVM(mmu: mmu)), reason: "user space: \(reason)")
        } catch Errno.operationNotSupportedByDevice {
            throw CommandFailure.hostFailure(
                "this host's processor lacks AVX2 or BMI2, which translated code needs, and \(reason); see 'martlet doctor'"
            )
        } catch {
            throw CommandFailure.hostFailure("the virtual machine core cannot be opened: \(error)")
        }
    }

    private static func check(_ system: KVMSystem, _ processorCount: Int) throws {
        let limit = maximumProcessorCount(system)
        guard limit >= processorCount else {
            throw CommandFailure.badInput(
                "\(processorCount) vCPUs are more than \(device) gives a machine, which is \(limit); give the guest fewer "
                    + "(--cpus), or leave out '--accel kernel'")
        }
    }

    private static func maximumProcessorCount(_ system: KVMSystem) -> Int {
        (try? system.checkExtension(.maximumVCPUCount)) ?? 0
    }

    private static func describe(_ speed: AccelerationProbe.Speed) -> String {
        let rate = min(speed.kernelMode, speed.userMode ?? speed.kernelMode)
        let tenths = Int((rate * 10).rounded())
        let number = rate < 100 ? "\(tenths / 10).\(tenths % 10)" : "\(Int(rate.rounded()))"
        return
            "\(speed.isNative ? "runs guest code" : "only emulates guest code") (\(number) million instructions a second)"
    }
}

/// `/dev/kvm`, opened and tried.
private enum KernelCandidate {
    /// There is no device that opens, and why, as the end of a sentence.
    case missing(String)
    case unusable(String)
    case usable(KVMSystem, AccelerationProbe.Speed)

    init(isThorough: Bool) {
        let system: KVMSystem
        do {
            system = try KVMSystem(backend: KernelKVM())
        } catch {
            self = .missing(Self.describe(error))
            return
        }
        switch AccelerationProbe.run(on: system, isThorough: isThorough) {
        case .works(let speed): self = .usable(system, speed)
        case .unusable(let problem): self = .unusable(problem)
        }
    }

    private static func describe(_ error: Errno) -> String {
        switch error {
        case .noSuchFileOrDirectory: "is not there"
        case .permissionDenied: "may not be opened by this user"
        case .noSuchAddressOrDevice, .operationNotSupportedByDevice: "is there, but the kernel has no KVM for it"
        case .inappropriateIOCTLForDevice, .notSupported: "is not a KVM of API version 12"
        default: "cannot be opened (\(error))"
        }
    }
}
