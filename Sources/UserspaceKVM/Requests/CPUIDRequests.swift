import CHost
import Interrupts
import KVMInterface
import SystemPackage
import Translator

// CPUID leaves, model-specific registers and the local APIC of a vCPU.

extension UserspaceVCPU {
    /// - Throws: `E2BIG` if there is too little room.
    func getCPUID(at argument: UInt) throws(Errno) {
        var room: UInt32 = 0
        try ClientMemory.copyIn(&room, from: argument)
        let entries = followState(cpuidTable.entries)
        guard room >= entries.count else { throw .argListTooLong }
        try ClientMemory.copyOut(entries, to: argument &+ 8)
        try ClientMemory.copyOut(UInt32(entries.count), to: argument)
    }

    /// - Throws: `E2BIG` for too many leaves; `EINVAL` if the vCPU has run and the leaves differ, or for a width of linear
    ///   addresses that no processor has.
    func setCPUID(at argument: UInt) throws(Errno) {
        var count: UInt32 = 0
        try ClientMemory.copyIn(&count, from: argument)
        guard count <= Limits.cpuidEntryCount else { throw .argListTooLong }
        let entries = try ClientMemory.copyIn(count: Int(count), of: CPUIDEntry(), from: argument &+ 8)
        try setCPUID(entries)
    }

    /// The older request, whose leaves have no index.
    func setPlainCPUID(at argument: UInt) throws(Errno) {
        var count: UInt32 = 0
        try ClientMemory.copyIn(&count, from: argument)
        guard count <= Limits.cpuidEntryCount else { throw .argListTooLong }
        let entries = try ClientMemory.copyIn(count: Int(count), of: kvm_cpuid_entry(), from: argument &+ 8)
        try setCPUID(
            entries.map {
                CPUIDEntry(function: $0.function, eax: $0.eax, ebx: $0.ebx, ecx: $0.ecx, edx: $0.edx)
            })
    }

    private func setCPUID(_ entries: [CPUIDEntry]) throws(Errno) {
        if hasRun {
            guard areEqual(followState(entries), followState(cpuidTable.entries)) else { throw .invalidArgument }
            return
        }
        let table = CPUIDTable(entries)
        guard table.hasKnownLinearAddresses else { throw .invalidArgument }
        cpuidTable = table
        processor.cpuidDidChange()
        guard let apic else { return }
        let features = cpuidTable.find(1)?.ecx ?? 0
        apic.supportsX2APIC = features & 1 << 21 != 0
        apic.supportsTSCDeadline = features & 1 << 24 != 0
        apic.physicalAddressBits = UInt64(cpuidTable.physicalAddressBits)
    }

    /// The leaves as the guest sees them now.
    private func followState(_ entries: [CPUIDEntry]) -> [CPUIDEntry] {
        entries.map { entry in
            let given = CPUIDResult(eax: entry.eax, ebx: entry.ebx, ecx: entry.ecx, edx: entry.edx)
            let seen = CPUIDAdjustment.adjusted(
                followState(given, function: entry.function), function: entry.function, index: entry.index,
                cr4: processor.system.cr4, xcr0: processor.system.xcr0)
            var entry = entry
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (seen.eax, seen.ebx, seen.ecx, seen.edx)
            return entry
        }
    }

    private func areEqual(_ a: [CPUIDEntry], _ b: [CPUIDEntry]) -> Bool {
        a.withUnsafeBytes { first in
            b.withUnsafeBytes { second in first.elementsEqual(second) }
        }
    }

    // MARK: Local APIC

    /// - Throws: `EINVAL` if the client has the local APIC.
    func getLocalAPIC(at argument: UInt) throws(Errno) {
        guard let apic else { throw .invalidArgument }
        var page = LocalAPICRegisters()
        let state = apic.saveState(hasExtendedID: vm.hasExtendedAPICIDs.load(ordering: .relaxed), now: now)
        withUnsafeMutableBytes(of: &page) { state.copy(to: $0) }
        try ClientMemory.copyOut(page, to: argument)
    }

    /// - Throws: `EINVAL` if the client has the local APIC, or the page contradicts the x2APIC ID.
    func setLocalAPIC(at argument: UInt) throws(Errno) {
        guard let apic else { throw .invalidArgument }
        var page = LocalAPICRegisters()
        try ClientMemory.copyIn(&page, from: argument)
        let state = withUnsafeBytes(of: page) { LocalAPICState(page: $0) }
        let isTaken = apic.loadState(
            state, hasExtendedID: vm.hasExtendedAPICIDs.load(ordering: .relaxed), now: now)
        guard isTaken else { throw .invalidArgument }
    }
}

/// `kvm_msrs`: registers one after the other, until one is refused.
enum MSRRequest {
    /// Reads registers with `read`, which gives nil for one that does not exist.
    /// - Returns: how many were read.
    static func answer(at argument: UInt, _ read: (UInt32) -> UInt64?) throws(Errno) -> Int32 {
        var entries = try decode(at: argument)
        var count = 0
        while count < entries.count, let value = read(entries[count].index) {
            entries[count].data = value
            count += 1
        }
        try ClientMemory.copyOut(entries, to: argument &+ 8)
        return Int32(count)
    }

    /// Writes registers with `write`, which says whether it took the value.
    /// - Returns: how many were written.
    static func take(at argument: UInt, _ write: (UInt32, UInt64) -> Bool) throws(Errno) -> Int32 {
        let entries = try decode(at: argument)
        var count = 0
        while count < entries.count, write(entries[count].index, entries[count].data) { count += 1 }
        return Int32(count)
    }

    private static func decode(at argument: UInt) throws(Errno) -> [MSREntry] {
        var count: UInt32 = 0
        try ClientMemory.copyIn(&count, from: argument)
        guard count < Limits.msrEntryCount else { throw .argListTooLong }
        return try ClientMemory.copyIn(count: Int(count), of: MSREntry(), from: argument &+ 8)
    }
}
