import Addressing
import CHost
import GuestMemory
import SystemPackage
import Translator

// Memory slots and their dirty logs.

extension UserspaceVM {
    /// The corresponding C request is `KVM_SET_USER_MEMORY_REGION`.
    ///
    /// When it returns no vCPU uses the old slot any more: all have dropped their translations, and acknowledged.
    /// - Throws: as `GuestMemory.setUserMemoryRegion`.
    func setUserMemoryRegion(at argument: UInt) throws(Errno) {
        var request = kvm_userspace_memory_region()
        try ClientMemory.copyIn(&request, from: argument)
        let region = UserMemoryRegion(
            slot: request.slot, flags: request.flags, guestPhysicalAddress: request.guest_phys_addr,
            memorySize: request.memory_size, userspaceAddress: request.userspace_addr)
        try memory.setUserMemoryRegion(region) { change in
            switch change {
            case .delete, .move: forgetTranslations()
            case .create, .flagsOnly: requestAll(.flushTLB)
            }
        }
    }

    /// Drops translations of addresses, and of code, which is known by guest physical addresses.
    private func forgetTranslations() {
        VCPURequests.withAllPaused(gate, among: enumerateRequests) {
            requestAll(.flushTLB)
            cache.reset()
        }
    }

    /// The corresponding C request is `KVM_GET_DIRTY_LOG`.
    /// - Throws: `EINVAL` for a slot or address space that cannot be, `ENOENT` for a slot that does not exist or is not
    ///   logged.
    func getDirtyLog(at argument: UInt) throws(Errno) {
        var request = kvm_dirty_log()
        try ClientMemory.copyIn(&request, from: argument)
        let bitmap = try memory.getDirtyLog(slot: request.slot) { _ in requestAll(.dropWriteEntries) }
        try ClientMemory.copyOut(bitmap, to: UInt(bitPattern: request.dirty_bitmap))
    }
}

extension UserspaceVCPU {
    /// Writes guest memory by its physical address. Where there is none, nothing is written.
    /// > Concurrency: the owner, inside.
    func writeGuest(_ bytes: [UInt8], at address: UInt64) {
        bytes.withUnsafeBytes { buffer in
            try? vm.memory.write(GuestPhysicalAddress(address), from: buffer)
        }
    }
}
