// KVMInterface
