import KVMInterface
import SystemPackage

/// What the board's processors can do: what KVM supports, and what it leaves to its client to say.
public enum ProcessorFeatures {
    /// The leaves of CPUID without topology.
    ///
    /// > Source: Documentation/virt/kvm/api.rst, KVM_GET_SUPPORTED_CPUID.
    public static func leaves(of system: KVMSystem) throws(Errno) -> [CPUIDEntry] {
        var leaves = try system.supportedCPUID()
        let hasDeadlineTimer = try system.checkExtension(.tscDeadlineTimer) > 0
        for index in leaves.indices where leaves[index].function == 1 {
            leaves[index].ecx |= 1 << 31  // there is a hypervisor
            // Depends on the local APICs, which the board has.
            if hasDeadlineTimer { leaves[index].ecx |= 1 << 24 }
        }
        return leaves
    }
}
