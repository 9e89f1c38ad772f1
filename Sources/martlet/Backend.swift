import ArgumentParser
import KVMInterface
import UserspaceKVM

/// The core that guests run on.
func makeBackend(mmu: MMUKind) -> any KVMBackend { UserspaceKVM(mmu: mmu) }

extension MMUKind: ExpressibleByArgument {}
