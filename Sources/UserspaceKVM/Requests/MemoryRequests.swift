import CHost
import GuestMemory
import KVMInterface
import SystemPackage
import Translator

extension UserspaceVM {
    func setUserMemoryRegion(at argument: UInt) throws(Errno) { throw .invalidArgument }
    func getDirtyLog(at argument: UInt) throws(Errno) { throw .invalidArgument }
    func writeGuest(_ bytes: [UInt8], at address: UInt64) {}
}
