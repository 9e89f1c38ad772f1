import CHost
import Interrupts
import KVMInterface
import SystemPackage

/// Guests that change the task priority all the time, and clients that patch them.
///
/// The client learns where the guest accesses the register, replaces these accesses by ones to a word of memory, and the core
/// keeps register and word in step whenever guest code is entered or left.
///
/// > Concurrency: the owner.
/// > Source: Linux, `arch/x86/kvm/lapic.c` (behaviour); Documentation/virt/kvm/api.rst, `KVM_EXIT_TPR_ACCESS`.
struct TaskPriorityPatching: Sendable {
    /// `KVM_TPR_ACCESS_REPORTING`.
    var reportsAccesses = false
    /// `KVM_SET_VAPIC_ADDR`: the guest physical address of the word; 0 without.
    var wordAddress: UInt64 = 0
    /// An access that the client is still to hear of.
    var reported: (rip: UInt64, isWrite: Bool)?
    /// The guest lowered the priority in the client's own local APIC, which the client is still to hear of
    /// (`KVM_EXIT_SET_TPR`).
    var wasLowered = false
}

extension UserspaceVCPU {
    /// The offset of the register in the local APIC's page.
    private static let registerOffset: UInt32 = 0x80

    /// Notes an access of the guest to the local APIC's page. The exit follows the instruction.
    func noticeTaskPriorityAccess(offset: UInt32, isWrite: Bool) {
        guard offset == Self.registerOffset, taskPriorityPatching.reportsAccesses else { return }
        taskPriorityPatching.reported = (processor.accessingRIP, isWrite)
        processor.raiseAttention()
    }

    /// Fills the exit for an access that was noted.
    /// - Returns: whether there was one.
    func describeTaskPriorityAccess() -> Bool {
        guard let access = taskPriorityPatching.reported else { return false }
        taskPriorityPatching.reported = nil
        let run = runArea.run
        run.pointee.tpr_access.rip = access.rip
        run.pointee.tpr_access.is_write = access.isWrite ? 1 : 0
        return true
    }

    /// Whether the client is to hear that the priority is lower now; true once.
    func takeLoweredTaskPriority() -> Bool {
        defer { taskPriorityPatching.wasLowered = false }
        return taskPriorityPatching.wasLowered
    }

    /// > Concurrency: the owner, inside, before it runs guest code.
    func storeTaskPriorityWord() {
        guard let apic else { return }
        withUnsafeBytes(of: apic.taskPriorityWord) { _ = writeGuest(Array($0), at: taskPriorityPatching.wordAddress) }
    }

    /// > Concurrency: the owner, inside, when it has run guest code.
    func loadTaskPriorityWord() {
        guard let apic, let word = readGuest(UInt32.self, at: taskPriorityPatching.wordAddress) else { return }
        apic.setTaskPriority(fromWord: word)
    }

    // MARK: Requests

    /// - Throws: `EINVAL` for flags.
    func setTaskPriorityReporting(at argument: UInt) throws(Errno) {
        var request = kvm_tpr_access_ctl()
        try ClientMemory.copyIn(&request, from: argument)
        guard request.flags == 0 else { throw .invalidArgument }
        taskPriorityPatching.reportsAccesses = request.enabled != 0
        try ClientMemory.copyOut(request, to: argument)
    }

    /// - Throws: `EINVAL` if the client has the local APIC, or there is no memory at the address.
    func setTaskPriorityWord(at argument: UInt) throws(Errno) {
        guard apic != nil else { throw .invalidArgument }
        var request = kvm_vapic_addr()
        try ClientMemory.copyIn(&request, from: argument)
        if request.vapic_addr != 0 {
            requests.enter()
            let isMemory = readGuest(UInt32.self, at: request.vapic_addr) != nil
            requests.leave()
            guard isMemory else { throw .invalidArgument }
        }
        taskPriorityPatching.wordAddress = request.vapic_addr
    }
}
