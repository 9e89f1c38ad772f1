import KVMInterface
import UserspaceKVM

/// The core that guests run on.
func makeBackend() -> any KVMBackend { UserspaceKVM() }
